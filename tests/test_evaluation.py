"""Measures of videos: exact answers on simple videos, and the baselines that each must tell
apart."""
import math

import pytest
import torch

from tests.clips import circling_clip, noise, seeded
from vldm_mini.datasets import video
from vldm_mini.evaluation import baselines, flicker, frechet, measures


def ramp(t=8, acceleration=0.0, speed=0.1):
    """A video whose every pixel is speed * t + acceleration * t^2 / 2: (1 t 3 16 16)."""
    time = torch.arange(t, dtype=torch.float64)
    values = speed * time + acceleration * time ** 2 / 2
    return values.view(1, t, 1, 1, 1).expand(1, t, 3, 16, 16)


def test_motion_is_the_change_per_frame_and_jerk_ignores_even_motion_and_even_acceleration():
    assert measures.motion(ramp(speed=0.1)).item() == pytest.approx(0.1, rel=1e-12)
    assert measures.jerk(ramp(speed=0.1)).item() == pytest.approx(0, abs=1e-12)
    assert measures.jerk(ramp(acceleration=0.02)).item() == pytest.approx(0, abs=1e-12)


def test_jerk_of_a_cubic_is_its_third_difference():
    time = torch.arange(6, dtype=torch.float64)
    clip = (0.5 * time ** 3).view(1, 6, 1, 1, 1).expand(1, 6, 1, 8, 8)
    # third difference of t^3 is 3! = 6
    assert measures.jerk(clip).item() == pytest.approx(3.0, rel=1e-9)


def test_independent_frames_move_by_root_2_and_jerk_by_root_20_spreads():
    clip = noise(1, 4000, 1, 1, 1).expand(1, 4000, 1, 4, 4)
    assert measures.motion(clip).item() == pytest.approx(math.sqrt(2), rel=0.05)
    assert measures.jerk(clip).item() == pytest.approx(math.sqrt(20), rel=0.05)


def test_flicker_of_single_pixels_is_no_motion_but_counts_unblurred():
    clip = noise(2, 8, 3, 64, 64)
    assert (measures.motion(clip) < 0.1 * measures.motion(clip, blur=0)).all()


def test_shuffled_frames_of_a_smooth_video_jerk_more():
    clip = video.to_float(circling_clip(1, 3).frames[:24:3])[None]
    shuffled = clip[:, baselines.shuffled_order(8, seeded())]
    assert measures.jerk(shuffled) > 1.5 * measures.jerk(clip)


def test_a_frozen_video_has_no_motion_and_no_jerk():
    clip = noise(1, 1, 3, 16, 16).expand(1, 8, 3, 16, 16)
    assert measures.motion(clip).item() == 0 and measures.jerk(clip).item() == 0


def test_low_pass_is_a_gaussian_that_repeats_the_edges():
    point = torch.zeros(1, 1, 1, 31, 31)
    point[..., 15, 15] = 1
    spread = measures.low_pass(point, 2.0)[0, 0, 0]
    # two pixels away in one direction: exp(-2^2 / (2 2^2)) of the middle
    assert (spread[15, 17] / spread[15, 15]).item() == pytest.approx(math.exp(-0.5), rel=1e-9)
    assert spread.sum().item() == pytest.approx(1, rel=1e-9)
    assert measures.blur_matrix(5, 3.0).sum(1).tolist() == pytest.approx([1] * 5)


def test_low_pass_keeps_a_flat_video_and_is_float64():
    clip = torch.full((1, 2, 3, 16, 16), 0.3)
    assert measures.low_pass(clip, 2.0).dtype == torch.float64
    assert torch.allclose(measures.low_pass(clip, 2.0), clip.double(), atol=1e-12)


def test_measures_say_how_many_frames_they_need():
    with pytest.raises(ValueError, match="more than 3 frames"):
        measures.jerk(noise(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="n t c h w"):
        measures.motion(noise(8, 3, 16, 16))


def test_psnr_by_hand():
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    y[0], y[1] = 0.2, 0.02
    # 10 log10(4 / 0.04) = 20, and a tenth of the error is 20 dB more
    assert measures.psnr(x, y).tolist() == pytest.approx([20, 40], abs=1e-5)
    in_0_1 = measures.psnr(x, y, peak=1.0).tolist()
    assert in_0_1 == pytest.approx([20 - 6.0206, 40 - 6.0206], abs=1e-4)
    assert measures.psnr(x, x).tolist() == [math.inf, math.inf]
    with pytest.raises(ValueError, match="of one shape"):
        measures.psnr(x, y[:1])


def test_nearest_finds_the_clip_and_the_shift_that_a_video_was_cut_from():
    bank = [noise(20, 2, 4, 4, seed=k) for k in range(3)]
    videos = torch.stack([bank[1][5:5 + 10:3], bank[2][0:10:3]])
    near = frechet.nearest(videos, bank, stride=3)
    assert near.clip.tolist() == [1, 2] and near.start.tolist() == [5, 0]
    assert near.distance.max() < 1e-6
    # at another stride the same frames are no window
    assert frechet.nearest(videos, bank, stride=2).distance.min() > 0.1


def test_nearest_is_the_plain_distance_over_every_window():
    bank, videos = [noise(9, 3, 2, seed=1), noise(12, 3, 2, seed=2)], noise(4, 3, 3, 2, seed=3)
    every = torch.stack([(videos - clip[s:s + 5:2]).double().pow(2).mean((1, 2, 3)).sqrt()
                         for clip in bank for s in range(len(clip) - 4)])
    found = frechet.nearest(videos, bank, stride=2)
    assert torch.allclose(found.distance, every.min(0).values, atol=1e-6)


def test_nearest_counts_mirrors_only_if_the_bank_holds_them():
    clip = noise(10, 1, 4, 4)
    mirrored = clip[None, 2:6].flip(-1)
    assert frechet.nearest(mirrored, [clip]).distance.item() > 0.5
    assert frechet.nearest(mirrored, [clip, clip.flip(-1)]).distance.item() < 1e-6


def test_nearest_passes_over_clips_that_are_too_short_and_says_so_if_all_are():
    videos = noise(1, 4, 2)
    assert frechet.nearest(videos, [noise(3, 2), noise(4, 2)]).clip.item() == 1
    with pytest.raises(ValueError, match="no clip of the bank has 4 frames"):
        frechet.nearest(videos, [noise(3, 2)])


def test_features_that_are_not_finite_are_counted_and_named():
    features, bad = noise(20, 3), noise(20, 3)
    bad[4, 1], bad[7] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 20 rows of the second features .* not finite"):
        frechet.frechet_distance(features, bad)


@pytest.mark.parametrize("level, width", [(0.95, 2 * 1.960), (0.5, 2 * 0.6745)])
def test_bootstrap_of_a_mean_has_the_width_of_its_level(level, width):
    values = noise(400)
    low, high = frechet.bootstrap(values, torch.mean, seeded(), 4000, level)
    error = float(values.std(correction=0)) / math.sqrt(400)
    assert (high - low) / error == pytest.approx(width, rel=0.06)


def test_bootstrap_holds_the_mean_and_narrows_with_n():
    few, many = noise(25), noise(2500)
    low, high = frechet.bootstrap(many, torch.mean, seeded())
    # 2 * 1.96 / sqrt(2500) = 0.078
    assert low < many.mean() < high and 0.06 < high - low < 0.1
    low_few, high_few = frechet.bootstrap(few, torch.mean, seeded())
    assert high_few - low_few > 5 * (high - low)
    assert frechet.bootstrap(few, torch.mean, seeded()) == (low_few, high_few)


def test_no_measure_changes_what_it_is_given():
    videos = noise(2, 8, 3, 16, 16)
    before = videos.clone()
    measures.motion(videos)
    measures.jerk(videos, blur=0)
    measures.psnr(videos, videos)
    measures.low_pass(videos, 0)
    frechet.nearest(videos, [videos[0]])
    baselines.baselines(videos, seeded())
    flicker.still_flicker(videos, videos)
    flicker.follow_motion(videos)
    assert torch.equal(videos, before)




# -- flicker ---------------------------------------------------------------------------------------

def moving_texture(shift, frames=3, size=48):
    """Smooth noise that moves by `shift` (rows, columns) pixels a frame: (1 t 3 h w), and the
    pixels that stay inside."""
    texture = measures.low_pass(noise(1, 1, 3, size, size), 1.0).float()
    moved = [texture.roll((k * shift[0], k * shift[1]), (-2, -1)) for k in range(frames)]
    return 3 * torch.cat(moved, dim=1)


def test_motion_is_followed_to_where_the_texture_went():
    x = moving_texture((2, -3))
    index, known = flicker.follow_motion(x)
    inner = (..., slice(12, 36), slice(12, 36))
    row, column = index[inner] // 48, index[inner] % 48
    rows = torch.arange(12, 36)[:, None].expand(24, 24)
    columns = torch.arange(12, 36).expand(24, 24)
    assert known[inner].all()
    assert (row == rows + 2).all() and (column == columns - 3).all()


def test_a_texture_that_moves_with_the_scene_does_not_change_along_the_motion():
    x = moving_texture((1, 4))
    index, known = flicker.follow_motion(x)
    known[..., :12, :] = known[..., 36:, :] = known[..., :12] = known[..., 36:] = False
    assert flicker.along_motion(x, index, known) < 1e-8
    stuck = x[:, :1].expand_as(x)
    assert flicker.along_motion(stuck, index, known) > 0.01


def test_what_stands_still_has_no_known_motion_and_flickers_by_its_error_alone():
    still = moving_texture((0, 0))
    assert not flicker.follow_motion(still)[1].any()
    assert flicker.still_flicker(still + 0.5, still) == 0
    blinking = still.clone()
    blinking[:, 1] += 0.5
    assert flicker.still_flicker(blinking, still) == pytest.approx(0.25, rel=1e-4)
    moving = moving_texture((0, 8))
    half = torch.cat([still[..., :24, :], moving[..., 24:, :]], dim=-2)
    wrong = half.clone()
    wrong[:, 1, :, 34:] += 0.5
    assert flicker.still_flicker(wrong, half) < 1e-8, "an error where it moves does not count"


def test_gradient_energy_of_a_ramp_is_the_square_of_its_slope():
    ramp_over_columns = (0.1 * torch.arange(8.0)).expand(2, 3, 1, 8, 8)
    assert flicker.gradient_energy(ramp_over_columns) == pytest.approx([0.01, 0.01], rel=1e-4)
