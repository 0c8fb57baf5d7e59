"""Super-resolution: what the network is told, what tiles and chunks change, what each stage trains, eq. (5)."""
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.tiny import copies, made_folder, normal, same, shaken
from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.blocks import ChannelLayerNorm, ResBlock, group_norm
from vldm_mini.context import tiles
from vldm_mini.datasets import video
from vldm_mini.diffusion import Schedule, ddim, ddim_times
from vldm_mini.evaluation import measures
from vldm_mini.temporal import Clip, VideoModel, insert
from vldm_mini.training import Record, Settings, rng, upsampler_recipes
from vldm_mini.training.upsampler_recipes import SIZES, draw_level, draw_patch, large_clips, upsampling_loss
from vldm_mini.unet import UNet, UNetConfig
from vldm_mini.upsampler import (
    KINDS,
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


def upsampler(kind="pixel"):
    torch.manual_seed(0)
    theta = shaken(Upsampler(TINY if kind == "pixel" else LATENT))
    layers = shaken(insert(theta, conv=SidewaysConv, attention=None))
    coder = shaken(Autoencoder(AutoencoderConfig((8, 8), local=True)), 0.02) if kind == "latent" else None
    return VideoUpsampler(theta, layers, coder)


def film(frames=6, h=16, w=24, seed=0):
    """A small film, smooth in space."""
    x = normal(1, frames, 3, h, w, seed=seed)
    return nn.functional.avg_pool2d(x.flatten(0, 1), 3, 1, 1).unflatten(0, (1, frames))


# -- the network ------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_it_hears_the_small_picture_its_noise_level_and_tau():
    model, x, low = shaken(Upsampler(TINY)), torch.randn(2, 3, 32, 64), torch.randn(2, 3, 8, 16)
    tau, level = torch.tensor([500, 500]), torch.tensor([100, 100])
    y = model(x, tau, low, level)
    assert y.shape == x.shape
    for other in (model(x, tau, -low, level), model(x, tau, low, level + 100), model(x, tau + 100, low, level)):
        assert (other - y).abs().max() > 1e-3
    changed = low.clone()
    changed[0] += 1                                                                 # the other sample hears nothing
    assert torch.equal(model(x, tau, changed, level)[1], y[1])


@torch.no_grad()
def test_of_pixels_the_noisy_input_is_added_with_a_gain_for_each_of_its_pixels():
    model, x, low, tau = Upsampler(TINY), torch.randn(1, 3, 32, 64), torch.randn(1, 3, 8, 16), torch.tensor([500])
    gains = torch.rand(48)
    model.conv_out.bias.copy_(torch.cat([torch.full((48,), 0.25), gains]))           # its weights are zero
    gain = nn.functional.pixel_shuffle(gains[None, :, None, None].expand(1, 48, 8, 16), 4)
    assert torch.allclose(model(x, tau, low, tau), 0.25 + gain * x)


@torch.no_grad()
def test_each_frame_of_a_clip_is_told_its_own_small_frame():
    up = upsampler()
    x, low, at = torch.randn(1, 4, 3, 64, 96), film(4), torch.tensor([300])
    up.layers.set_alpha(1)
    changed = low.clone()
    changed[:, 2] += 1
    ask = lambda low: up.model(x, at, low=low, tau_gamma=at)                                            # noqa: E731
    moved = (ask(changed) - ask(low)).abs().amax((0, 2, 3, 4))
    assert moved[2] > 1e-3 and torch.equal(moved[[0, 1, 3]], torch.zeros(3))
    up.layers.set_alpha(None)
    assert ((ask(changed) - ask(low)).abs().amax((0, 2, 3, 4)) > 1e-6).all()         # with time, neighbours hear of it


def test_frames_whose_small_frames_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="concat must be"):
        Upsampler(TINY)(torch.randn(1, 3, 32, 32), torch.tensor([1]), torch.randn(1, 3, 16, 16), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"\(b, t, 3, h, w\)"):
        upsampler()(torch.randn(1, 3, 16, 16))
    with pytest.raises(ValueError, match="pixel or latent"):
        VideoUpsampler.from_pretrained("driving", kind="wavelet")


@pytest.mark.parametrize("how, says", [
    (dict(tile=16), "a tile is"), (dict(tile=(16,)), "a tile is"), (dict(tile=(8, 9)), "multiples of 2"),
    (dict(tile=(8, 8), margin=3), "multiples of 2"), (dict(tile=(0, 8)), "at least one position"),
    (dict(frames=0), "at least one position"), (dict(steps=0), "steps must lie"), (dict(tau_gamma=101), "tau_gamma is"),
    (dict(tau_gamma=0.5), "tau_gamma is")])
def test_what_makes_no_sense_is_refused_before_a_file_is_opened(how, says):
    with pytest.raises(ValueError, match=says):
        upsampler().parts(film(2), **how)                                                # no part was asked for
    with pytest.raises(ValueError, match="multiples of 2"):
        upsampler().parts(film(2, w=23))


@torch.no_grad()
def test_bytes_are_taken_as_colours():
    up, low = upsampler(), (film(2) * 60 + 128).clamp(0, 255).byte()
    assert torch.equal(up(low, steps=1), up(low / 127.5 - 1, steps=1))


@torch.no_grad()
def test_a_generator_of_parts_that_is_left_alone_changes_no_other():
    up, low = upsampler(), film(6)
    whole, parts = up(low, steps=1, frames=3), up.parts(low, steps=1, frames=3, alpha=0.5)
    next(parts)
    assert torch.equal(up(low, steps=1, frames=3), whole)


def test_weights_that_hold_one_upsampler_only_say_so(run, tmp_path):
    shutil.copytree(run / "upsampler", tmp_path / "upsampler")
    assert VideoUpsampler.from_pretrained(tmp_path).autoencoder is None
    with pytest.raises(ValueError, match="hold no latent_upsampler"):
        VideoUpsampler.from_pretrained(tmp_path, "latent")


@torch.no_grad()
def test_a_place_hears_of_its_neighbour_in_the_next_frame_and_no_place_far_off():
    layers = shaken(insert(Upsampler(TINY), conv=SidewaysConv, attention=None), 0.5)
    clip = Clip(4, emb=torch.randn(1, 4, TINY.emb_channels))
    for name, mix in layers.mixes.items():
        z = torch.randn(1, mix.layer.conv1.in_channels, 4, 9, 9)
        changed = z.clone()
        changed[:, :, 1, 4, 4] += 1
        heard = (mix.layer(changed, clip) - mix.layer(z, clip)).abs().amax((0, 1))[2] > 1e-6          # of frame 2
        assert int(heard.sum()) == (9 if name.startswith("up") else 1) and heard[4, 4]


@torch.no_grad()
def test_fresh_temporal_layers_and_alpha_1_are_the_image_upsampler_to_the_bit():
    theta, low, schedule = shaken(Upsampler(TINY)), film(), Schedule.linear()
    plain = VideoUpsampler(theta, insert(theta, conv=SidewaysConv, attention=None))
    noise, level = (plain.noise((1, 6, 3, *size), 0, 0, kind)[0] for size, kind in (((64, 96), 0), ((16, 24), 1)))
    given, zero = degraded(schedule, low[0], torch.zeros(6, dtype=torch.long), level), torch.tensor([0])
    frames = ddim(schedule, lambda x, tau: theta(x, tau, given, zero), noise, ddim_times(2), "v")
    frames = with_detail(frames, given).clamp(-1, 1)[None]
    assert torch.equal(plain(low, steps=2), frames)
    plain.layers.remove()
    up = VideoUpsampler(theta, shaken(insert(theta, conv=SidewaysConv, attention=None)))
    assert torch.equal(up(low, steps=2, alpha=1), frames)
    assert (up(low, steps=2) - frames).abs().max() > 1e-3


def test_a_large_network_is_lean_enough_for_a_laptop():
    from torch.utils.flop_counter import FlopCounterMode
    theta = Upsampler(UpsamplerConfig(**SIZES["s"].widths))
    model, at = VideoModel(theta, insert(theta, conv=SidewaysConv, attention=None)), torch.tensor([1])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 4, 3, 64, 64), at, low=torch.randn(1, 4, 3, 16, 16), tau_gamma=at)
    assert 50e3 < counter.get_total_flops() / (4 * 64 * 64) < 150e3


# -- noise augmentation -----------------------------------------------------------------------------------------------

def test_noise_on_what_is_given_is_of_the_level_that_is_told():
    schedule, low = Schedule.linear(), torch.ones(2, 3, 64, 64)
    given = degraded(schedule, low, torch.tensor([20, 250]), normal(*low.shape))
    for k, tau in enumerate((20, 250)):
        assert float(given[k].mean()) == pytest.approx(float(schedule.alpha_tau[tau]), abs=0.02)
        assert float(given[k].std()) == pytest.approx(float(schedule.sigma_tau[tau]), rel=0.05)


def test_level_0_is_no_noise_at_all():
    low = film()
    assert torch.equal(degraded(Schedule.linear(), low, torch.tensor([0]), normal(*low.shape)), low)
    assert torch.equal(upsampler().given(low, 0, 0, torch.tensor([0])), low)


def test_shrunk_undoes_what_repeats_and_bicubic_keeps_a_plain_colour():
    low = film()
    assert torch.allclose(shrunk(low.repeat_interleave(4, -1).repeat_interleave(4, -2)), low, atol=1e-6)
    plain = torch.full((1, 2, 3, 4, 4), 0.3)
    assert bicubic(plain).shape == (1, 2, 3, 16, 16) and torch.allclose(bicubic(plain), torch.tensor(0.3))


def test_detail_is_what_bicubic_lacks_and_goes_back():
    x, given = film(h=32, w=48), film(h=8, w=12, seed=1)
    assert torch.allclose(with_detail(detail(x, given), given), x, atol=1e-5)
    assert torch.equal(detail(enlarged(given), given), torch.zeros_like(x))
    large = torch.stack([video.to_float(one) for one in large_clips("driving", SIZES["s"], n=3)])
    assert 0.5 < float(detail(large, shrunk(large)).std()) < 1.5                        # of about unit variance


def test_low_levels_of_noise_are_drawn_most():
    drawn = torch.cat([draw_level(rng(0, 0, k), 100) for k in range(2000)])
    assert drawn.min() == 0 and 90 < drawn.max() <= 100 and 15 < drawn.float().median() < 35


# -- patches, tiles, chunks -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size, tile, overlap", [(1, 1, 0), (16, 16, 4), (17, 8, 4), (113, 8, 4), (20, 6, 30)])
def test_tiles_keep_each_place_once_and_see_their_margin(size, tile, overlap):
    spans = tiles(size, tile, overlap)
    assert [at for _, kept in spans for at in range(kept.start, kept.stop)] == list(range(size))
    for seen, kept in spans:
        assert (seen.start, seen.stop) == (max(0, kept.start - overlap), min(size, kept.stop + overlap))
    with pytest.raises(ValueError, match="at least one position"):
        tiles(size, 0, overlap)


@torch.no_grad()
@pytest.mark.parametrize("local, exact", [(True, True), (False, False)])
def test_far_from_its_edge_a_patch_is_the_crop_of_the_whole_unless_norms_see_the_whole(local, exact):
    block = shaken(ResBlock(32, 32, norm=ChannelLayerNorm if local else group_norm))
    x = normal(1, 32, 24, 24)
    x[..., 12:] += 3
    whole, patch = block(x)[..., 2:10, 2:10], block(x[..., :12, :12])[..., 2:10, 2:10]
    assert torch.allclose(whole, patch, atol=1e-5) == exact


@torch.no_grad()
def test_a_network_with_local_norms_has_no_other_norm_and_one_without_is_as_before():
    norms = lambda model: {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}     # noqa: E731
    theta = Upsampler(TINY)
    insert(theta, attention=None)
    assert norms(theta) == norms(insert(theta, conv=SidewaysConv, attention=None)) == norms(Autoencoder(AutoencoderConfig(local=True))) \
        == {"ChannelLayerNorm"}
    assert norms(UNet(UNetConfig())) == {"GroupNorm"}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_chunks_are_the_whole_film_and_a_narrow_margin_is_not(kind):
    up, low = upsampler(kind), film(12, 32, 48)
    whole = up(low, steps=3, frames=12)
    tiled, parts = up(low, steps=3, frames=12, tile=(16, 16)), up(low, steps=3, frames=4)
    bare = up(low, steps=3, frames=4, overlap=0)
    cut = up(low, steps=3, frames=12, tile=(16, 16), margin=0)
    assert measures.psnr(cut, whole).mean() < measures.psnr(tiled, whole).mean() - 3
    assert measures.psnr(tiled, whole).mean() > 45 and measures.psnr(parts, whole).mean() > 45
    assert measures.psnr(bare, whole).mean() < measures.psnr(parts, whole).mean() - 3
    assert whole.shape == (1, 12, 3, 128, 192) and whole.abs().max() <= 1


@torch.no_grad()
def test_noise_depends_on_seed_and_frame_alone():
    up, low = upsampler(), film(6)
    assert torch.equal(up(low, steps=2, seed=3), up(low, steps=2, seed=3))
    assert not torch.equal(up(low, steps=2, seed=3), up(low, steps=2, seed=4))
    a, b = (up.noise((1, n, 3, 8, 8), 0, first, 0) for n, first in ((6, 0), (2, 4)))
    assert torch.equal(a[:, 4:], b) and not torch.equal(a[:, 0], a[:, 1])
    assert not torch.equal(a, up.noise((1, 6, 3, 8, 8), 0, 0, 1))                       # what is put on the small film


# -- training ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    for train in upsampler_recipes.STAGES.values():
        train("driving", "xs", out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_each_upsampler_leaves_all_that_it_needs_and_comes_back(run, kind):
    parts = ("image", "temporal") + (("autoencoder",) if kind == "latent" else ())
    for part in parts:
        folder = run / KINDS[kind] / part
        assert {"model.safetensors", "config.json", "README.md", "record.json"} <= {f.name for f in folder.iterdir()}
        assert f"`python -m vldm_mini train {KINDS[kind]} --data driving" in (folder / "README.md").read_text()
        assert all(torch.tensor(list(row["losses"].values())).isfinite().all() for row in Record.load(folder).rows)
    large = VideoUpsampler.from_pretrained(run, kind)(film(4), steps=2)
    assert large.shape == (1, 4, 3, 64, 96) and large.isfinite().all()


def test_parts_that_lie_there_without_a_runs_state_are_taken_as_they_are(run, tmp_path):
    shutil.copytree(run / "upsampler" / "image", tmp_path / "upsampler" / "image", ignore=shutil.ignore_patterns("state.pt"))
    before = (tmp_path / "upsampler" / "image" / "model.safetensors").read_bytes()
    upsampler_recipes.train_upsampler("driving", "xs", tmp_path, seed=1)
    assert (tmp_path / "upsampler" / "image" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "upsampler" / "image" / "state.pt").is_file()


def test_temporal_training_leaves_the_image_upsampler_alone_to_the_bit(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    seen = []

    def loss_of(model, *a, **how):
        seen.append((model, copies(model.backbone)) if isinstance(model, VideoModel) else None)
        return upsampling_loss(model, *a, **how)
    monkeypatch.setattr(upsampler_recipes, "upsampling_loss", loss_of)
    before = (tmp_path / "upsampler" / "image" / "model.safetensors").read_bytes()
    phi = weights.load_tensors(tmp_path / "upsampler" / "temporal" / "model.safetensors")
    shutil.rmtree(tmp_path / "upsampler" / "temporal")
    upsampler_recipes.train_upsampler("driving", "xs", tmp_path)                       # done: image is not trained again
    assert same(seen[-1][1], copies(seen[-1][0].backbone))
    assert (tmp_path / "upsampler" / "image" / "model.safetensors").read_bytes() == before
    assert same(phi, weights.load_tensors(tmp_path / "upsampler" / "temporal" / "model.safetensors"))
    assert all(x.abs().sum() > 0 for name, x in phi.items() if name.endswith("conv2.weight"))


def test_the_loss_teaches_only_what_it_should_and_most_0_means_no_augmentation(monkeypatch):
    films, settings = large_clips("driving", SIZES["xs"], n=2), Settings(10, 2, 1e-3)
    theta = shaken(Upsampler(TINY)).requires_grad_(False)
    layers, before, levels = insert(theta, attention=None), copies(theta), []
    monkeypatch.setattr(upsampler_recipes, "degraded", lambda *a: levels.append(a[2]) or degraded(*a))
    for most in (0, 300):
        total, logs = upsampling_loss(VideoModel(theta, layers), films, 3, 32, settings, most=most)(0, [0, 1])
        total.backward()
    assert same(before, copies(theta)) and all(p.grad is None for p in theta.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layers.parameters())
    assert levels[0].tolist() == [0, 0] and levels[1].max() > 0 and logs["loss"].shape == (2,)


def test_a_patch_is_a_part_of_a_film_on_the_grid_and_a_function_of_its_generator():
    film = torch.arange(2 * 64 * 128 * 3, dtype=torch.int64).view(2, 64, 128, 3).remainder(251).byte()
    a, b = (draw_patch([film], 1, 16, rng(3, 0, 0)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (1, 3, 16, 16)
    large = film.permute(0, 3, 1, 2).float() / 127.5 - 1
    found = [(t, y, x) for t in range(2) for y in range(0, 49, 4) for x in range(0, 113, 4)
             if torch.allclose(large[t, :, y:y + 16, x:x + 16], a[0])]
    assert len(found) >= 1


def test_films_too_small_or_too_short_to_learn_from_are_named(tmp_path):
    folder = str(made_folder(tmp_path))
    with pytest.raises(ValueError, match="to learn from it takes"):
        large_clips(folder, replace(SIZES["xs"], frames=10_000))
    with pytest.raises(ValueError, match="no detail to learn from"):
        upsampler_recipes.train_upsampler("actions", "xs", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds none of"):
        upsampler_recipes.train_upsampler("driving", "xs", tmp_path, start=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown size"):
        upsampler_recipes.train_upsampler("driving", "xxl", tmp_path)
