"""Super-resolution: the network's inputs, noise augmentation, tiles and parts, eq. (5)."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import TargetModel, copies, normal, same, shaken
from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.blocks import ChannelLayerNorm, ResBlock, group_norm
from vldm_mini.context import tiles
from vldm_mini.diffusion import Schedule, ddim, ddim_times, rng
from vldm_mini.evaluation import measures
from vldm_mini.temporal import Clip, VideoModel, insert
from vldm_mini.training.randomness import BatchRandom
from vldm_mini.training.sizes import SIZES
from vldm_mini.training.stages.upsampler import (
    draw_level,
    draw_patches,
    patch_store,
    upsampling_loss,
)
from vldm_mini.unet import UNet, UNetConfig
from vldm_mini.upsampler import (
    DETAIL,
    KINDS,
    TAU_GAMMA,
    SidewaysConv,
    Upsampler,
    UpsamplerConfig,
    VideoUpsampler,
    bicubic,
    degraded,
    detail,
    enlarged,
    shrunk,
    with_detail,
)

TINY = UpsamplerConfig(channels=(8, 16), emb_channels=16)
LATENT = replace(TINY, in_channels=4, out_channels=4, patch=1)
CODER = AutoencoderConfig((8, 8), local=True)


def upsampler(kind="pixel"):
    torch.manual_seed(0)
    theta = shaken(Upsampler(TINY if kind == "pixel" else LATENT))
    layers = shaken(insert(theta, conv=SidewaysConv, attention=None))
    coder = shaken(Autoencoder(CODER), 0.02) if kind == "latent" else None
    return VideoUpsampler(theta, layers, coder, precision="fp32")


def clip(frames=6, h=16, w=24, seed=0):
    """A small video, smooth in space."""
    x = normal(1, frames, 3, h, w, seed=seed)
    return F.avg_pool2d(x.flatten(0, 1), 3, 1, 1).unflatten(0, (1, frames))


def with_target(up, target):
    """The same upsampler with a TargetModel in place of the network."""
    up.model = TargetModel(up.schedule, target)
    return up


# -- the network ----------------------------------------------------------------------------------

@torch.no_grad()
def test_the_output_depends_on_the_small_picture_its_noise_level_and_tau():
    model, x, low = shaken(Upsampler(TINY)), normal(2, 3, 32, 64), normal(2, 3, 8, 16, seed=1)
    tau, level = torch.tensor([500, 500]), torch.tensor([100, 100])
    y = model(x, tau, low, level)
    assert y.shape == x.shape
    others = (model(x, tau, -low, level), model(x, tau, low, level + 100),
              model(x, tau + 100, low, level))
    for other in others:
        assert (other - y).abs().max() > 1e-3
    changed = low.clone()
    changed[0] += 1
    assert torch.equal(model(x, tau, changed, level)[1], y[1]), "the other sample is unchanged"


@torch.no_grad()
def test_in_pixels_the_noisy_input_is_added_with_a_gain_for_each_of_its_pixels():
    model, x, low = Upsampler(TINY), normal(1, 3, 32, 64), normal(1, 3, 8, 16, seed=1)
    tau, gains = torch.tensor([500]), normal(48, seed=2)
    bias = torch.cat([torch.full((48,), 0.25), gains])
    model.conv_out.bias.copy_(bias)                                    # its weights are zero
    gain = F.pixel_shuffle(gains[None, :, None, None].expand(1, 48, 8, 16), 4)
    assert torch.allclose(model(x, tau, low, tau), 0.25 + gain * x)


@torch.no_grad()
def test_each_frame_receives_its_own_small_frame():
    up = upsampler()
    x, low, at = normal(1, 4, 3, 64, 96), clip(4), torch.tensor([300])
    changed = low.clone()
    changed[:, 2] += 1

    def moved(alpha):
        a, b = (up.model(x, at, low=some, tau_gamma=at, alpha=alpha) for some in (changed, low))
        return (a - b).abs().amax((0, 2, 3, 4))
    assert moved(1)[2] > 1e-3 and torch.equal(moved(1)[[0, 1, 3]], torch.zeros(3))
    assert (moved(None) > 1e-6).all(), "through the temporal layers all frames depend on it"


def test_wrong_shapes_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="concat must be"):
        at = torch.tensor([1])
        Upsampler(TINY)(normal(1, 3, 32, 32), at, normal(1, 3, 16, 16), at)
    with pytest.raises(ValueError, match=r"\(b, t, 3, h, w\)"):
        upsampler()(normal(1, 3, 16, 16))
    with pytest.raises(ValueError, match="pixel or latent"):
        VideoUpsampler.from_pretrained("driving", kind="wavelet")


@pytest.mark.parametrize("how, message", [
    (dict(tile=16), "a tile is"), (dict(tile=(16,)), "a tile is"),
    (dict(tile=(8, 9)), "multiples of 2"), (dict(tile=(8, 8), margin=3), "multiples of 2"),
    (dict(tile=(0, 8)), "at least one"), (dict(frames=0), "at least one"),
    (dict(steps=0), "steps must lie"), (dict(tau_gamma=TAU_GAMMA + 1), "tau_gamma is"),
    (dict(tau_gamma=0.5), "tau_gamma is"), (dict(alpha=1.5), "alpha lies in")])
def test_values_out_of_range_are_refused_before_the_first_part(how, message):
    with pytest.raises(ValueError, match=message):
        upsampler().parts(clip(2), **how)
    with pytest.raises(ValueError, match="multiples of 2"):
        upsampler().parts(clip(2, w=23))


@torch.no_grad()
def test_a_position_depends_on_its_neighbours_in_the_next_frame_on_the_way_up_only():
    layers = shaken(insert(Upsampler(TINY), conv=SidewaysConv, attention=None), 0.5)
    about = Clip(4, emb=normal(1, 4, TINY.emb_channels))
    for name, mix in layers.mixes.items():
        z = normal(1, mix.layer.conv1.in_channels, 4, 9, 9)
        changed = z.clone()
        changed[:, :, 1, 4, 4] += 1
        change = (mix.layer(changed, about) - mix.layer(z, about)).abs().amax((0, 1))[2] > 1e-6
        assert int(change.sum()) == (9 if name.startswith("up") else 1) and change[4, 4]


@torch.no_grad()
def test_fresh_temporal_layers_and_alpha_1_are_the_image_upsampler_bit_for_bit():
    theta, low, schedule = shaken(Upsampler(TINY)), clip(), Schedule.linear()
    plain = VideoUpsampler(theta, insert(theta, conv=SidewaysConv, attention=None), None, "fp32")
    noise = plain.noise((1, 6, 3, 64, 96), 0, 0, 0)[0]
    zero = torch.tensor([0])

    def denoise(x, tau):
        return theta(x, tau, low[0], zero)
    frames = ddim(schedule, denoise, noise, ddim_times(2), "v")
    frames = with_detail(frames, low[0]).clamp(-1, 1)[None]
    assert torch.equal(plain(low, steps=2), frames)
    plain.layers.remove()
    layers = shaken(insert(theta, conv=SidewaysConv, attention=None))
    up = VideoUpsampler(theta, layers, None, "fp32")
    assert torch.equal(up(low, steps=2, alpha=1), frames)
    assert (up(low, steps=2) - frames).abs().max() > 1e-3
    for p in layers.parameters():
        p.fill_(float("nan"))
    assert torch.equal(up(low, steps=2, alpha=1), frames), "alpha = 1 skips the temporal layers"


def test_a_network_of_size_s_is_small_enough_for_a_laptop():
    from torch.utils.flop_counter import FlopCounterMode
    theta = Upsampler(UpsamplerConfig(**SIZES["s"].upsampler.widths))
    model = VideoModel(theta, insert(theta, conv=SidewaysConv, attention=None))
    at = torch.tensor([1])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(normal(1, 4, 3, 64, 64), at, low=normal(1, 4, 3, 16, 16), tau_gamma=at)
    assert 50e3 < counter.get_total_flops() / (4 * 64 * 64) < 150e3


# -- noise augmentation ---------------------------------------------------------------------------

def test_noise_augmentation_is_alpha_tau_low_plus_sigma_tau_eps():
    schedule, low, eps = Schedule.linear(), normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)
    given = degraded(schedule, low, torch.tensor([20, 250, 0]), eps)
    for i, tau in enumerate((20, 250)):
        alpha_tau, sigma_tau = float(schedule.alpha_tau[tau]), float(schedule.sigma_tau[tau])
        assert torch.allclose(given[i], alpha_tau * low[i] + sigma_tau * eps[i], atol=1e-6)
    assert torch.equal(given[2], low[2]), "level 0 is no noise at all"


def test_the_network_receives_the_small_video_with_the_noise_of_its_level():
    low, up = clip(3), with_target(upsampler(), lambda low, **_: F.interpolate(
        low.flatten(0, 1), scale_factor=4).unflatten(0, low.shape[:2]))
    up(low, steps=1, seed=5, tau_gamma=60)
    call = up.model.calls[0]
    expected = degraded(up.schedule, low, torch.tensor([60]), up.noise(low.shape, 5, 0, 1))
    assert torch.equal(call["low"], expected) and call["tau_gamma"].tolist() == [60]
    assert call["image"] is False and call["alpha"] is None


def test_shrinking_is_the_mean_of_4x4_pixels_and_bicubic_keeps_a_plain_colour():
    low = clip()
    assert torch.allclose(shrunk(low.repeat_interleave(4, -1).repeat_interleave(4, -2)), low,
                          atol=1e-6)
    ramp = torch.arange(16.0).view(1, 1, 1, 4, 4).expand(1, 1, 3, 4, 4)
    assert torch.allclose(shrunk(ramp), torch.tensor(7.5))
    plain = torch.full((1, 2, 3, 4, 4), 0.3)
    assert bicubic(plain).shape == (1, 2, 3, 16, 16)
    assert torch.allclose(bicubic(plain), torch.tensor(0.3)) and bicubic(9 * plain).max() == 1


def test_detail_is_what_bicubic_lacks_and_is_added_back():
    x, given = clip(h=32, w=48), clip(h=8, w=12, seed=1)
    assert torch.allclose(with_detail(detail(x, given), given), x, atol=1e-5)
    assert torch.equal(detail(enlarged(given), given), torch.zeros_like(x))
    assert torch.allclose(detail(enlarged(given) + 1 / DETAIL, given), torch.tensor(1.0), atol=1e-4)


# -- patches, tiles, parts ------------------------------------------------------------------------

@torch.no_grad()
def test_bytes_are_taken_as_colours_from_minus_1_to_1():
    up, low = upsampler(), (clip(2) * 60 + 128).clamp(0, 255).byte()
    assert torch.equal(up(low, steps=1), up(low / 127.5 - 1, steps=1))


@torch.no_grad()
def test_an_unfinished_generator_of_parts_changes_no_other():
    up, low = upsampler(), clip(6)
    whole, parts = up(low, steps=1, frames=3), up.parts(low, steps=1, frames=3, alpha=0.5)
    next(parts)
    assert torch.equal(up(low, steps=1, frames=3), whole)


@torch.no_grad()
@pytest.mark.parametrize("local, exact", [(True, True), (False, False)])
def test_far_from_its_edge_a_patch_is_the_crop_of_the_whole_with_local_norms(local, exact):
    block = shaken(ResBlock(32, 32, norm=ChannelLayerNorm if local else group_norm))
    x = normal(1, 32, 24, 24)
    x[..., 12:] += 3
    whole, patch = block(x)[..., 2:10, 2:10], block(x[..., :12, :12])[..., 2:10, 2:10]
    assert torch.allclose(whole, patch, atol=1e-5) == exact


@torch.no_grad()
def test_a_network_with_local_norms_has_no_other_norm():
    def norms(model):
        return {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    theta = Upsampler(TINY)
    layers = insert(theta, conv=SidewaysConv, attention=None)
    for model in (theta, layers, Autoencoder(AutoencoderConfig(local=True))):
        assert norms(model) == {"ChannelLayerNorm"}
    assert norms(UNet(UNetConfig())) == {"GroupNorm"}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_parts_are_close_to_the_whole_video_and_a_narrow_margin_is_not(kind):
    up, low = upsampler(kind), clip(12, 32, 48)
    whole = up(low, steps=3, frames=12)
    tiled, parts = up(low, steps=3, frames=12, tile=(16, 16)), up(low, steps=3, frames=4)
    no_overlap = up(low, steps=3, frames=4, overlap=0)
    no_margin = up(low, steps=3, frames=12, tile=(16, 16), margin=0)

    def near(x):
        return measures.psnr(x, whole).mean()
    assert near(tiled) > 45 and near(parts) > 45
    assert near(no_margin) < near(tiled) - 3 and near(no_overlap) < near(parts) - 3
    assert whole.shape == (1, 12, 3, 128, 192) and whole.abs().max() <= 1


def own_pixels(low, **_):
    """A target that is different at every pixel and depends on `low` alone."""
    large = F.interpolate(low.flatten(0, 1), scale_factor=4, mode="nearest")
    return large.unflatten(0, low.shape[:2])


@pytest.mark.parametrize("tile, margin, frames, overlap", [
    ((8, 8), 4, 12, 0), ((4, 16), 4, 3, 1), ((16, 6), 4, 2, 2), ((6, 10), 16, 5, 0)])
def test_every_tile_and_every_frame_stands_at_its_own_position(tile, margin, frames, overlap):
    low = torch.arange(7.0 * 16 * 24).view(1, 7, 1, 16, 24).expand(1, 7, 3, 16, 24) / 3000 - 0.5
    up = with_target(upsampler(), own_pixels)
    expected = with_detail(own_pixels(low), low).clamp(-1, 1)
    parts = list(up.parts(low, steps=1, tile=tile, margin=margin, frames=frames, overlap=overlap))
    assert [part.shape[1] for part in parts[:-1]] == [frames] * (len(parts) - 1)
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-4)


@torch.no_grad()
def test_the_noise_of_a_frame_depends_on_the_seed_and_its_number_alone():
    up, low = upsampler(), clip(6)
    assert torch.equal(up(low, steps=2, seed=3), up(low, steps=2, seed=3))
    assert not torch.equal(up(low, steps=2, seed=3), up(low, steps=2, seed=4))
    for kind in (0, 1):
        noise = up.noise((2, 3, 3, 8, 8), 7, 4, kind)
        for i in range(2):
            for k in range(3):
                own = torch.randn(3, 8, 8, generator=rng(7, 2_000_000 + 2 * (4 + k) + kind, i))
                assert torch.equal(noise[i, k], own)
    assert torch.equal(up.start(low[:, 2:], 2, 3), up.start(low, 0, 3)[:, 2:])
    level = torch.tensor([50])
    assert torch.equal(up.given(low[:, 2:], 2, 3, level), up.given(low, 0, 3, level)[:, 2:])


def test_each_part_starts_from_the_noise_of_its_own_frames(monkeypatch):
    up, low, seen = upsampler(), clip(6), []
    monkeypatch.setattr(up, "noise", lambda shape, seed, first, kind: seen.append(
        (shape[1], seed, first, kind)) or torch.zeros(shape))
    list(up.parts(low, steps=1, seed=9, frames=3, overlap=1))
    assert seen == [(4, 9, 0, 1), (4, 9, 0, 0), (4, 9, 2, 1), (4, 9, 2, 0)]
    seen.clear()
    list(up.parts(low, steps=1, frames=3, overlap=1, alpha=1))
    assert [row[:1] + row[2:] for row in seen[::2]] == [(3, 0, 1), (3, 3, 1)], "no overlap needed"


def test_a_network_that_gives_nan_is_an_error():
    with pytest.raises(FloatingPointError, match="the upsampler gave values that are not finite"):
        with_target(upsampler(), lambda **_: float("nan"))(clip(2), steps=1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_upsampler_is_loaded_from_its_folder(kind, tmp_path):
    up = upsampler(kind)
    up.theta.save_pretrained(tmp_path / KINDS[kind] / "image", dtype=torch.float32)
    up.layers.save_pretrained(tmp_path / KINDS[kind] / "temporal", dtype=torch.float32)
    if kind == "latent":
        up.autoencoder.save_pretrained(tmp_path / KINDS[kind] / "autoencoder", dtype=torch.float32)
    again = VideoUpsampler.from_pretrained(tmp_path, kind, "cpu")
    again.precision = up.precision
    assert again.to("cpu") is again and again.device == torch.device("cpu")
    low = clip(3)
    assert torch.equal(again(low, steps=2), up(low, steps=2))
    other = {"pixel": "latent", "latent": "pixel"}[kind]
    with pytest.raises(ValueError, match=f"hold no {KINDS[other]}; train it"):
        VideoUpsampler.from_pretrained(tmp_path, other)


@pytest.mark.parametrize("size, tile, overlap",
                         [(1, 1, 0), (16, 16, 4), (17, 8, 4), (113, 8, 4), (20, 6, 30)])
def test_tiles_keep_each_position_once_and_see_their_margin(size, tile, overlap):
    spans = tiles(size, tile, overlap)
    kept = [at for _, span in spans for at in range(span.start, span.stop)]
    assert kept == list(range(size))
    for seen, span in spans:
        assert seen.start == max(0, span.start - overlap)
        assert seen.stop == min(size, span.stop + overlap)


# -- training -------------------------------------------------------------------------------------

def draw(batch, step=0):
    return BatchRandom(0, step, batch, torch.device("cpu"))


def test_low_levels_of_noise_are_the_most_frequent():
    levels = draw_level(draw(4000), 100)
    assert levels.min() == 0 and 90 < levels.max() <= 100 and 15 < levels.float().median() < 35


def test_the_target_is_what_the_noisy_small_video_lacks():
    """The loss of a network that predicts v = 0 is v^2, with v = alpha_tau eps - sigma_tau z."""
    x, schedule = clip(2, 32, 32).expand(3, 2, 3, 32, 32), Schedule.linear()
    model = TargetModel(schedule, None)
    model.forward = lambda noisy, tau, low, tau_gamma: model.calls.append(
        (noisy, low, tau_gamma)) or torch.zeros_like(noisy)
    total, logs = upsampling_loss(model, lambda draw: x)(draw(3))
    noisy, low, tau_gamma = model.calls[0]
    assert tau_gamma.max() > 0 and not torch.equal(low, shrunk(x))
    alpha_tau, sigma_tau = schedule.at(logs["tau"], x)
    z = DETAIL * (x - enlarged(low))
    eps = (noisy - alpha_tau * z) / sigma_tau
    v = alpha_tau * eps - sigma_tau * z
    assert torch.allclose(logs["loss"], v.square().flatten(1).mean(1), rtol=1e-3)
    assert float(total) == pytest.approx(float(logs["loss"].mean()))
    assert float(eps.std()) == pytest.approx(1, abs=0.05), "and eps is standard normal noise"


def test_the_loss_trains_the_temporal_layers_only_and_level_0_means_no_augmentation():
    theta = shaken(Upsampler(TINY)).requires_grad_(False)
    layers, before = insert(theta, attention=None), copies(theta)
    seen = []
    for most in (0, 300):
        model = VideoModel(theta, layers)
        plain = model.forward
        model.forward = lambda *a, plain=plain, **how: seen.append(how) or plain(*a, **how)
        total, logs = upsampling_loss(model, lambda draw: clip(3, 32, 32).expand(2, 3, 3, 32, 32),
                                      most=most)(draw(2))
        total.backward()
    assert same(before, copies(theta)) and all(p.grad is None for p in theta.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layers.parameters())
    assert seen[0]["tau_gamma"].tolist() == [0, 0] and seen[1]["tau_gamma"].max() > 0
    assert torch.equal(seen[0]["low"], shrunk(clip(3, 32, 32)).expand(2, 3, 3, 8, 8))


class Frames:
    """A clip whose pixels all differ."""
    name = "numbered"
    frames = torch.arange(3 * 32 * 48 * 3).remainder(251).byte().view(3, 32, 48, 3)


def test_a_patch_is_a_part_of_a_clip_on_the_grid():
    store = patch_store([Frames], 2)
    patches = draw_patches(store, 16, draw(40))
    assert patches.shape == (40, 2, 3, 16, 16)
    assert torch.equal(patches, draw_patches(store, 16, draw(40)))
    large = Frames.frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    corners = [(t, y, x) for t in range(2) for y in range(0, 17, 4) for x in range(0, 33, 4)]
    crops = {at: large[at[0]:at[0] + 2, :, at[1]:at[1] + 16, at[2]:at[2] + 16] for at in corners}
    found = [[at for at in corners if torch.allclose(crops[at], patch)] for patch in patches]
    assert all(found) and len({at[0] for at in found}) > 20


def test_an_upsampler_without_temporal_layers_is_named(tmp_path):
    up = upsampler()
    up.theta.save_pretrained(tmp_path / "upsampler" / "image")
    with pytest.raises(FileNotFoundError, match="temporal"):
        VideoUpsampler.from_pretrained(tmp_path, device="cpu")
