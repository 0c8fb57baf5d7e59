"""From a folder of weights to films: what is asked for, how many, from which noise, through which alpha."""
import json
import shutil
from copy import copy
from dataclasses import asdict, replace

import pytest
import torch

from tests.tiny import AUTOENCODER, UNET, normal, shaken, tiny_unet
from vldm_mini.autoencoder import Autoencoder, VideoDecoder
from vldm_mini.boxes import box_map
from vldm_mini.context import context_mask
from vldm_mini.diffusion import ddim, ddim_times, guided
from vldm_mini.pipeline import PipelineConfig, VideoLDM
from vldm_mini.temporal import band, extend, insert
from vldm_mini.training import rng
from vldm_mini.upsampler import SidewaysConv, Upsampler, UpsamplerConfig, VideoUpsampler
from vldm_mini.weights import write_text

WORDS = (("action", ("wave", "jump", "bend", "sit")), ("person", tuple(f"person {i}" for i in range(9))))
CONFIG = PipelineConfig(WORDS, pixels=16, frames=4, fps=8.0, steps=2, label_guidance=1.5, temporal_guidance=2.0,
                        temporal_guidance_above=200, eta=1.0, guide_labels_with_context=True, context_order=2,
                        context_power=1.5, anchored=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the recipes leave it: three stages with random weights, and config.json."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    autoencoder, theta = shaken(Autoencoder(AUTOENCODER), 0.05), tiny_unet()
    layers = shaken(insert(theta, ff_mult=1, ff_in=False), 0.3)
    autoencoder.save_pretrained(folder / "autoencoder")
    theta.save_pretrained(folder / "image")
    layers.save_pretrained(folder / "temporal")
    write_text(folder / "config.json", json.dumps(asdict(CONFIG)))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return VideoLDM.from_pretrained(str(folder))


@pytest.fixture
def bend(model):
    return model.labels(action="bend", person=2)


# -- the folder -------------------------------------------------------------------------------------------------------

def test_a_folder_of_weights_comes_back_as_it_was_saved(model):
    assert model.theta.config == UNET and model.autoencoder.config == AUTOENCODER and len(model.layers.mixes) == 12
    assert {k: v for k, v in asdict(model.config).items() if k != "label_names"} == \
           {k: v for k, v in asdict(CONFIG).items() if k != "label_names"}
    assert [(name, tuple(classes)) for name, classes in model.config.label_names] == list(WORDS)


@pytest.mark.parametrize("part", ["autoencoder", "image", "temporal"])
def test_a_folder_without_one_of_its_stages_says_which(folder, tmp_path, part):
    shutil.copytree(folder, tmp_path / "less", ignore=shutil.ignore_patterns(part))
    with pytest.raises(FileNotFoundError, match=f"less.{part}"):
        VideoLDM.from_pretrained(str(tmp_path / "less"))


def test_weights_that_nobody_trained_are_refused_by_name():
    with pytest.raises(FileNotFoundError, match="no weights called 'nowhere'"):
        VideoLDM.from_pretrained("nowhere")


# -- labels -----------------------------------------------------------------------------------------------------------

def test_labels_are_asked_for_in_words_or_numbers_and_what_is_not_asked_is_null(model):
    assert model.labels(action="bend", person=2).tolist() == [[2, 2]]
    assert model.labels(person="person 7").tolist() == [[4, 7]]
    assert model.labels().tolist() == model.theta.null_labels(1).tolist() == [[4, 9]]


@pytest.mark.parametrize("asked, message", [
    (dict(action="fly"), "unknown action 'fly'; choose from: wave, jump, bend, sit"),
    (dict(person=12), r"person must lie in 0\.\.8, got 12"), (dict(action=-1), r"action must lie in 0\.\.3, got -1"),
    (dict(colour="red"), "unknown label 'colour'; this model knows action, person")])
def test_an_unknown_label_is_refused_with_those_that_are_known(model, asked, message):
    with pytest.raises(ValueError, match=message):
        model.labels(**asked)


# -- films ------------------------------------------------------------------------------------------------------------

def test_films_have_the_shape_and_the_range_they_should(model, bend):
    films = model.generate(bend.repeat(2, 1))
    assert films.shape == (2, 4, 3, 16, 16) and films.abs().max() <= 1 and films.std() > 0.01


@pytest.mark.parametrize("frames", [1, 7, 16])
def test_a_film_may_have_any_number_of_frames(model, bend, frames):
    film = model.generate(bend, frames=frames)
    assert film.shape == (1, frames, 3, 16, 16) and film.isfinite().all()


def test_a_film_may_have_another_size_than_those_of_training(model, bend):
    film = model.generate(bend, size=(32, 48))
    assert film.shape == (1, 4, 3, 32, 48) and film.isfinite().all()
    assert torch.equal(model.generate(bend, size=(16, 16)), model.generate(bend))
    with pytest.raises(ValueError, match="multiples of 8 pixels"):
        model.generate(bend, size=(32, 44))


def test_in_a_long_film_frames_look_no_further_than_in_training(model, bend):
    z, at = normal(1, 9, 4, 4, 4), torch.tensor([500])
    ask = lambda z, mask: model.model(z, at, labels=bend, mask=mask)                                    # noqa: E731
    assert band(9, 3).sum(1).tolist() == [4, 5, 6, 7, 7, 7, 6, 5, 4]
    assert torch.equal(ask(z, None), ask(z, torch.ones(9, 9, dtype=torch.bool)))
    seen, real = [], model.model.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.model, "forward", lambda *a, **how: seen.append(how["mask"]) or real(*a, **how))
        model.generate(bend, frames=4)
        model.generate(bend, frames=9)
    assert seen[0] is None and torch.equal(seen[-1], band(9, 3))
    assert not torch.equal(ask(z, band(9, 3)), ask(z, None))                                    # and it makes a difference


def test_a_film_of_no_frames_is_refused(model, bend):
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        model.generate(bend, frames=0)


def test_the_same_seed_gives_the_same_film_and_another_seed_another(model, bend):
    assert torch.equal(model.generate(bend, seed=3), model.generate(bend, seed=3))
    assert not torch.allclose(model.generate(bend, seed=3), model.generate(bend, seed=4), atol=1e-3)


def test_another_label_gives_another_film_from_the_same_noise(model, bend):
    assert not torch.allclose(model.generate(bend), model.generate(model.labels(action="wave", person=2)), atol=1e-3)


def test_a_film_does_not_depend_on_how_many_are_made_with_it(model, bend):
    assert torch.equal(model.noise(3, 4, seed=5)[:1], model.noise(1, 4, seed=5))
    assert not torch.equal(model.noise(3, 4, seed=5)[0], model.noise(3, 4, seed=5)[1])
    three = model.generate(torch.cat([bend, model.labels(action="wave"), model.labels()]), seed=5)
    assert torch.allclose(three[:1], model.generate(bend, seed=5), atol=1e-3)


@torch.no_grad()
def test_alpha_1_gives_the_frames_of_the_image_model_to_the_bit(model, bend):
    z, labels = model.noise(1, 4, seed=2)[0], bend.repeat(4, 1)
    denoise = guided(lambda z, tau: model.theta(z, tau, labels), lambda z, tau: model.theta(z, tau), CONFIG.label_guidance)
    z = ddim(model.schedule, denoise, z, ddim_times(CONFIG.steps), "v", CONFIG.eta, rng(2, 1, 0))
    frames = model.autoencoder.decode(z).clamp(-1, 1)
    assert torch.equal(model.generate(bend, alpha=1, seed=2)[0], frames)
    assert not torch.allclose(model.generate(bend, seed=2)[0], frames, atol=1e-3)


def test_alpha_goes_from_the_video_model_to_the_image_model_without_a_jump(model, bend):
    make = lambda alpha: model.latents(bend, alpha=alpha, seed=2, steps=1)                              # noqa: E731
    assert torch.allclose(make(0.9999), make(1), atol=0.01) and not torch.allclose(make(0.0), make(1), atol=0.01)


def test_a_fixed_alpha_is_forgotten_after_the_film(model, bend):
    before, alphas = model.generate(bend), model.layers.alphas()
    model.generate(bend, alpha=0.1)
    with pytest.raises(ValueError, match=r"alpha lies in \[0, 1\], got 2"):
        model.generate(bend, alpha=2)
    assert torch.equal(model.generate(bend), before) and model.layers.alphas() == alphas


def test_guidance_scale_0_makes_the_film_that_no_label_asks_for(model, bend):
    assert torch.allclose(model.generate(bend, label_guidance=0), model.generate(model.labels(), label_guidance=1), atol=1e-4)


def test_temporal_guidance_goes_on_from_the_image_model_past_the_video_model(model, bend):
    make = lambda **how: model.latents(bend, seed=2, steps=1, label_guidance=1, **how)                           # noqa: E731
    image, video = make(alpha=1), make(temporal_guidance=1)
    # one DDIM step is linear in the prediction
    assert torch.allclose(make(temporal_guidance=2), image + 2 * (video - image), atol=1e-4)
    assert torch.allclose(make(temporal_guidance=0), image, atol=1e-4) and not torch.allclose(video, image, atol=1e-2)
    assert torch.equal(make(alpha=1, temporal_guidance=3), image)                                  # nothing to guide there
    assert torch.equal(make(), make(temporal_guidance=model.config.temporal_guidance))


def test_temporal_guidance_ends_where_the_config_says(model, bend):
    make = lambda above, motion: VideoLDM(model.autoencoder, model.theta, model.layers,                 # noqa: E731
                                          replace(model.config, temporal_guidance_above=above)).latents(
                                              bend, seed=2, steps=4, label_guidance=1, temporal_guidance=motion)
    one, two = make(200, 1), make(200, 2)
    assert not torch.allclose(one, two, atol=1e-2) and torch.equal(make(999, 2), one)   # of 999, 749, 499, 249 none
    assert torch.equal(make(248, 2), two) and not torch.equal(make(249, 2), two)


def test_the_same_noise_can_be_given_by_hand(model, bend):
    given = model.generate(bend, noise=model.noise(1, 4, seed=9), seed=9)
    assert torch.equal(given, model.generate(bend, seed=9))
    other = model.generate(bend, noise=model.noise(1, 4, seed=9), seed=8)                      # its later noise differs
    assert not torch.allclose(given, other, atol=1e-3)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_cannot_be_is_refused(model, bend, steps):
    with pytest.raises(ValueError, match=rf"steps must lie in 1\.\.1000, got {steps}"):
        model.generate(bend, steps=steps)


@torch.no_grad()
def test_decoding_some_frames_at_a_time_is_decoding_them_all(model):
    z = normal(3, 13, 4, 4, 4)                                              # 39 frames, more than go at a time
    assert torch.allclose(model.decode(z)[2, 12], model.autoencoder.decode(z[2, 12:13])[0].clamp(-1, 1), atol=1e-5)


# -- boxes ------------------------------------------------------------------------------------------------------------

def test_a_box_map_says_how_much_of_a_place_lies_in_a_box_and_where_in_it():
    told, cover, right, down = box_map([(0.25, 0.25, 0.75, 1.0)], 4, 4)
    assert (told == 1).all()
    assert torch.equal(cover, torch.tensor([[0., 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]]))
    assert torch.equal(right[2], torch.tensor([0, -0.5, 0.5, 0]))
    assert torch.allclose(down[:, 1], torch.tensor([0, -2 / 3, 0, 2 / 3]), atol=1e-6)
    # half a place at the left, a quarter in the corner
    assert box_map([(0.375, 0.375, 1, 1)], 4, 4)[1, 1].tolist() == [0, 0.25, 0.5, 0.5]
    assert torch.equal(box_map([], 4, 4)[1:], torch.zeros(3, 4, 4))


def test_a_near_box_covers_a_far_one_and_boxes_that_touch_are_told_apart():
    far, near = (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 1.0, 1.0)
    both, alone = box_map([far, near], 8, 8), box_map([near], 8, 8)
    assert torch.equal(both[:, 4:, 4:], alone[:, 4:, 4:]) and (both[1] == 1).all()
    side_by_side = box_map([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], 8, 8)
    assert torch.equal(side_by_side[1], box_map([(0, 0, 1, 1)], 8, 8)[1])
    assert not torch.equal(side_by_side[2], box_map([(0, 0, 1, 1)], 8, 8)[2])


@pytest.mark.parametrize("box", [(0.5, 0, 0.4, 1), (-0.1, 0, 0.5, 1), (0, 0, 1, 1.5)])
def test_a_box_outside_the_picture_or_inside_out_is_refused(box):
    with pytest.raises(ValueError, match="a box is x0 y0 x1 y1 with 0 <= x0 < x1 <= 1"):
        box_map([box], 8, 8)


# -- long films -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def long_model(folder, tmp_path_factory):
    """The same folder with prediction, interpolation and temporal decoder beside, random weights all."""
    whole = tmp_path_factory.mktemp("long") / "weights"
    shutil.copytree(folder, whole)
    for stage, options in (("prediction", {}), ("interpolation", {"regimes": 2})):
        theta = tiny_unet()
        shaken(extend(insert(theta, ff_mult=1, ff_in=False), theta, context_channels=5, **options), 0.2) \
            .save_pretrained(whole / stage)
    shaken(insert(Autoencoder(AUTOENCODER).decoder, attention=None), 0.1).save_pretrained(whole / "decoder")
    return VideoLDM.from_pretrained(str(whole))


def test_stages_that_are_not_there_are_asked_for_by_name(model, bend):
    with pytest.raises(ValueError, match="hold no prediction; train it"):
        list(model.rollout(bend, 6))
    with pytest.raises(ValueError, match="hold no interpolation"):
        model.interpolate(normal(1, 3, 4, 4, 4), bend, 0)


def test_a_rollout_gives_as_many_frames_as_asked_part_by_part(long_model, bend):
    labels = bend.repeat(2, 1)
    parts = list(long_model.rollout(labels, 9, seed=3))
    assert [part.shape[1] for part in parts] == [1, 3, 2, 2, 1]                          # T = 4: S = 1, then S = 2
    whole = torch.cat(parts, dim=1)
    assert torch.equal(torch.cat(list(long_model.rollout(labels, 9, seed=3)), dim=1), whole), "the same seed"
    assert torch.allclose(torch.cat(list(long_model.rollout(bend, 9, seed=3)), dim=1), whole[:1], atol=1e-4), \
        "a film does not depend on how many are made"
    assert not torch.allclose(whole[0, 4:], whole[1, 4:], atol=1e-2)


def test_a_rollout_hears_the_frame_it_is_told_and_two_more_than_one(long_model, bend):
    first = normal(1, 2, 4, 4, 4)
    a, b = (torch.cat(list(long_model.rollout(bend, 6, first=x)), dim=1) for x in (first, first.flip(1)))
    assert torch.equal(a[:, :2], first) and not torch.allclose(a[:, 2:], b[:, 2:], atol=1e-3)
    one = torch.cat(list(long_model.rollout(bend, 6, first=first, context=1)), dim=1)
    same_last = torch.cat([normal(1, 1, 4, 4, 4, seed=9), first[:, 1:]], dim=1)
    again = torch.cat(list(long_model.rollout(bend, 6, first=same_last, context=1)), dim=1)
    assert torch.equal(one[:, 2:], again[:, 2:]), "S = 1 knows nothing of the frame before the last"


def test_a_rollout_guides_labels_as_hard_as_the_context_and_each_alone_if_told_so(long_model, bend):
    first, roll = normal(1, 1, 4, 4, 4), lambda labels, **how: list(long_model.rollout(labels, 4, **how))[1]
    nothing = long_model.theta.null_labels(1)
    of = lambda labels=bend, **how: roll(labels, first=first, steps=1, **how)                           # noqa: E731
    assert torch.equal(of(context_guidance=2.0), of(context_guidance=2.0, label_guidance=2.0)), "alike unless told otherwise"
    # one step: the film is linear in the answers, f_nothing + w (f_labels - f_nothing) + s (f_all - f_labels)
    none, labels, all_told = of(nothing, context_guidance=0.0, label_guidance=1.0), of(context_guidance=0.0, label_guidance=1.0), of(context_guidance=1.0)
    assert not torch.allclose(none, labels, atol=1e-3) and not torch.allclose(labels, all_told, atol=1e-3)
    for w, s in ((2.0, 2.0), (1.0, 1.5), (1.5, 3.0)):
        assert torch.allclose(of(context_guidance=s, label_guidance=w), none + w * (labels - none) + s * (all_told - labels), atol=1e-3)


def test_noise_on_the_context_is_told_and_changes_the_film(long_model, bend):
    first = normal(1, 1, 4, 4, 4)
    a, b = (torch.cat(list(long_model.rollout(bend, 4, first=first, augment=tau)), dim=1) for tau in (0, 200))
    assert not torch.allclose(a, b)


def test_interpolation_keeps_the_key_frames_and_hears_its_regime(long_model, bend):
    z = normal(1, 3, 4, 4, 4)
    film = long_model.interpolate(z, bend, 0, steps=2)
    assert film.shape == (1, 9, 4, 4, 4) and torch.equal(film[:, ::4], z)
    between = [k for k in range(9) if k % 4]
    assert not torch.allclose(long_model.interpolate(z, bend, 1, steps=2)[:, between], film[:, between], atol=1e-3)
    assert torch.allclose(long_model.interpolate(z, bend, 0, steps=2, batch=1), film, atol=1e-4)


def test_a_window_of_interpolation_answers_what_is_known_at_its_ends(long_model, bend):
    known, noise = normal(1, 5, 4, 4, 4), normal(1, 5, 4, 4, 4, seed=1)
    z = long_model.sample_with_context("interpolation", bend, known, context_mask(5, 1, 1)[None], noise, [rng(0, 0, 0)],
                                regime=torch.tensor([0]), steps=3, eta=0.0)
    assert torch.allclose(z[:, [0, 4]], known[:, [0, 4]], atol=1e-4) and not torch.allclose(z[:, 2], known[:, 2], atol=0.1)


def test_one_call_goes_from_noise_to_thirteen_frames_times_four(long_model, bend):
    film = long_model.smooth_video(bend, seed=1)
    assert film.shape == (1, 16 * (CONFIG.frames - 1) + 1, 3, 16, 16) and film.abs().max() <= 1


def test_the_temporal_decoder_decodes_in_parts(long_model):
    z = normal(1, 11, 4, 4, 4)
    with torch.no_grad():
        whole = long_model.decoder(z)
        parts = list(long_model.decoder.chunks(z, frames=4, overlap=3))
        assert [part.shape[1] for part in parts] == [4, 4, 3] and torch.cat(parts, 1).shape == whole.shape
        assert torch.equal(torch.cat(list(long_model.decoder.chunks(z, frames=11)), 1), whole)
        plain = VideoDecoder(long_model.autoencoder)(z)
    assert not torch.allclose(whole, plain, atol=1e-3)
    with pytest.raises(ValueError, match="at least one place or frame"):
        next(long_model.decoder.chunks(z, frames=0))


def test_with_an_upsampler_the_film_comes_four_times_as_large(long_model, bend, tmp_path):
    with pytest.raises(ValueError, match="hold no upsampler"):
        long_model.smooth_video(bend, kind="pixel")
    theta = shaken(Upsampler(UpsamplerConfig(channels=(8, 16), emb_channels=16)), 0.02)
    theta.save_pretrained(tmp_path / "upsampler" / "image")
    insert(theta, conv=SidewaysConv, attention=None).save_pretrained(tmp_path / "upsampler" / "temporal")
    model = copy(long_model)
    model.folder = tmp_path
    small, large = model.smooth_video(bend, steps=2), model.smooth_video(bend, steps=2, kind="pixel")
    assert large.shape == (*small.shape[:3], 64, 64)
    assert torch.equal(large, VideoUpsampler.from_pretrained(tmp_path)(small))
