"""The driving world: one scene at any size and rate, and its labels and boxes are those of the picture."""
import numpy as np
import pytest

from vldm_mini.datasets import driving
from vldm_mini.datasets.driving import Scene

BUSY = [Scene(1, night=False, traffic=1), Scene(3, night=True, traffic=1)]


def psnr(a, b):
    """dB, of values 0 to 255."""
    return 10 * np.log10(255 ** 2 / np.square(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("scene", BUSY)
def test_a_small_frame_is_the_large_one_averaged(scene):
    """At least 31 dB; a frame sampled at points, not averaged, is the opponent, and so is the frame 0.1 s later."""
    large, later = scene.render([1.0, 1.1], 256)
    for height in (32, 64):
        f = 256 // height
        small, mean = scene.render([1.0], height)[0], large.reshape(height, f, 2 * height, f, 3).mean((1, 3))
        assert psnr(small, mean) > 31
        assert psnr(large[f // 2::f, f // 2::f], mean) < psnr(small, mean) - 3
        assert psnr(later.reshape(height, f, 2 * height, f, 3).mean((1, 3)), mean) < psnr(small, mean) - 3


def test_a_crop_is_that_part_of_the_frame():
    whole, part = BUSY[0].render([1.0], 64)[0], BUSY[0].render([1.0], 64, crop=(16, 32, 32, 48))[0]
    assert np.abs(whole[16:48, 32:80].astype(int) - part).max() <= 1


def test_frame_k_at_one_rate_is_frame_16_k_at_a_rate_16_times_as_high():
    slow, fast = (BUSY[0].render(np.arange(n) / fps, 32) for n, fps in ((3, 1.875), (33, 30)))
    assert np.abs(slow.astype(int) - fast[::16]).max() <= 1
    assert np.abs(slow[1:].astype(int) - fast[15:-1:16]).mean() > 0.5                           # the one before differs


def test_frames_do_not_depend_on_what_is_drawn_with_them():
    times = np.array([9.0, 0.0, 3.0])
    together = BUSY[0].render(times, 32)
    assert all(np.array_equal(BUSY[0].render([time], 32)[0], frame) for time, frame in zip(times, together))


def test_a_scene_is_a_function_of_its_seed():
    assert np.array_equal(Scene(5).render([0.5], 32), Scene(5).render([0.5], 32))
    assert not np.array_equal(Scene(5).render([0.5], 32), Scene(6).render([0.5], 32))


@pytest.mark.parametrize("scene", BUSY)
def test_boxes_contain_the_cars_and_are_filled_by_them(scene, monkeypatch):
    """Cars are what changes when they are taken away; shadows and lamps may spill over."""
    frame, boxes = scene.render([1.0], 128)[0].astype(int), scene.boxes(1.0)
    monkeypatch.setattr(scene, "cars", lambda time: np.zeros((0, 5)))
    changed = np.abs(frame - scene.render([1.0], 128)[0]).max(-1) > 40
    inside, looked_at = np.zeros_like(changed), 0
    for x0, y0, x1, y1, visible in boxes:
        area = slice(int(y0 * 128), int(np.ceil(y1 * 128))), slice(int(x0 * 256), int(np.ceil(x1 * 256)))
        inside[area] = True
        if x1 - x0 > 0.06 and visible > 0.8 and not scene.night:
            assert changed[area].mean() > 0.5
            looked_at += 1
    assert (looked_at > 0 or scene.night) and changed.sum() > 300 and (changed & inside).sum() > 0.85 * changed.sum()
    assert inside.mean() < 0.2                                                   # the whole picture would hold them too


def test_traffic_and_night_are_as_asked_and_labels_say_so():
    empty, busy = Scene(2, night=False, traffic=0), Scene(2, night=True, traffic=1)
    times = np.arange(8) / 1.875
    assert empty.labels(times)["cars"].tolist() == [0] * 8 and not empty.labels(times)["night"].any()
    assert busy.labels(times)["cars"].mean() > 1 and busy.labels(times)["night"].all()
    assert busy.render(times[:1], 32).mean() < 0.6 * empty.render(times[:1], 32).mean()
    nights = np.mean([Scene(seed).night for seed in range(60)])
    assert 0.2 < nights < 0.6 and min(Scene(seed).traffic for seed in range(20)) == 0


def test_speed_is_the_way_in_its_time_and_stays_in_its_range():
    times = np.linspace(0, 60, 1801)
    for seed in range(6):
        scene = Scene(seed)
        speed, way = scene.speed(times), scene.travelled(times)
        assert speed.min() >= 0 and speed.max() <= driving.MAX_SPEED
        assert np.abs(np.diff(way) * 30 - (speed[1:] + speed[:-1]) / 2).max() < 0.05
    assert any((Scene(seed).speed(times) == 0).any() for seed in range(6))                       # some stop


def test_oncoming_cars_do_not_drive_through_one_another():
    """Cars seen from ahead are those of the oncoming lane."""
    pairs = 0
    for scene in BUSY:
        for time in np.linspace(0, 20, 41):
            cars = scene.cars(time)
            oncoming = np.sort(cars[cars[:, 4] == 1, 0])
            assert (np.diff(oncoming) > 5).all()
            pairs += len(oncoming) > 1
    assert pairs > 40                                                                      # of 82 moments


def test_captions_say_what_the_labels_say_in_several_wordings():
    day, night = Scene(2, night=False, traffic=0), BUSY[1]
    said = {scene: [scene.caption(1.0, wording) for wording in range(12)] for scene in (day, night)}
    assert all("empty" in text and not any(word in text for word in ("night", "dark", "sunset")) for text in said[day])
    assert all("car" in text or "crowded" in text for text in said[night]) and len(set(said[night])) >= 6


def test_splits_never_meet():
    splits = [set(driving.seeds(split, 1000)) | set(driving.seeds(split, 5, 999_995)) for split in driving.SPLITS]
    assert not splits[0] & splits[1] and not splits[1] & splits[2] and not splits[0] & splits[2]


@pytest.mark.parametrize("ask, message", [
    (lambda: driving.seeds("test", 3), "splits are train"), (lambda: driving.seeds("train", 2, 999_999), "a million"),
    (lambda: Scene(0, traffic=2), "traffic lies in 0"), (lambda: BUSY[0].render([-1.0]), "begins at time 0"),
    (lambda: BUSY[0].render([0.0], 64, crop=(40, 0, 32, 32)), "crop lies inside")])
def test_what_cannot_be_asked_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


# -- as a set of clips ------------------------------------------------------------------------------------------------

def test_a_drive_is_its_scene_at_key_frames_and_draws_nothing_until_asked(monkeypatch):
    (clip,) = driving.clips("held_out", 1, 3, 32, first=7)
    assert clip.seed == 1_000_007 and clip.name == "driving/1000007-3x32"
    assert np.array_equal(clip.frames, Scene(1_000_007).render([0, 1 / 1.875, 2 / 1.875], 32))
    monkeypatch.setattr(Scene, "render", None)
    assert clip.labels().shape == (3, 2) and len(clip.boxes) == 3


def test_cars_in_sight_are_wide_enough_and_not_hidden():
    boxes = np.array([[0.1, 0, 0.17, 1, 1.0], [0.1, 0, 0.15, 1, 1.0], [0.1, 0, 0.5, 1, 0.4]])
    assert np.array_equal(driving.in_sight(boxes), boxes[:1, :4])


def test_the_summary_counts_light_and_cars():
    said = driving.summary(6)
    assert "light: day (" in said and "4 or more (" in said and "held_out" in said
