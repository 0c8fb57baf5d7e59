"""VideoLDM: sampling with guidance, long videos, interpolation, the stack.

Most checks are exact: a TargetModel stands in for the network, so that what comes out is known.
"""
import shutil
from copy import copy, deepcopy
from dataclasses import replace
from threading import Thread

import pytest
import torch

from tests.tiny import PIPELINE, TargetModel, normal, random_weights, shaken, tiny_unet
from vldm_mini.autoencoder import VideoDecoder
from vldm_mini.context import context_mask
from vldm_mini.diffusion import Schedule, ddim, ddim_times, guided, rng
from vldm_mini.pipeline import PipelineConfig, VideoLDM
from vldm_mini.temporal import band, insert
from vldm_mini.upsampler import SidewaysConv, Upsampler, UpsamplerConfig, VideoUpsampler

CONFIG = PIPELINE
MASK = context_mask(5, 1, 1)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("weights") / "a", CONFIG)


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("whole") / "b", CONFIG, whole=True)


@pytest.fixture(scope="module")
def model(folder):
    return VideoLDM.from_pretrained(str(folder), "cpu")


@pytest.fixture(scope="module")
def long_model(whole_folder):
    return VideoLDM.from_pretrained(whole_folder, "cpu")


@pytest.fixture
def bend(model):
    return model.labels(action="bend", person=2)


def with_target(model, stage, target, prediction="v", **config):
    """A copy of a VideoLDM in which a TargetModel stands in for one stage. -> both."""
    model, fake = copy(model), TargetModel(model.schedule, target, prediction)
    model.config, model.prediction = replace(model.config, **config), prediction
    if stage == "temporal":
        model.model = fake
    else:
        model.context_models = {**model.context_models, stage: fake}
    return model, fake


# -- generate -------------------------------------------------------------------------------------

def test_the_defaults_are_the_papers_way():
    config = PipelineConfig()
    assert config.eta == 0 and config.temporal_guidance == 1 and config.label_guidance == 1
    assert config.context_order == 1 and config.context_power == 1
    assert not config.anchored and not config.guide_labels_with_context


def test_videos_have_the_right_shape_and_range(model, bend):
    videos = model.generate(bend.repeat(2, 1))
    assert videos.shape == (2, 4, 3, 16, 16) and videos.abs().max() <= 1 and videos.std() > 0.01


@pytest.mark.parametrize("frames", [1, 7, 16])
def test_a_video_may_have_any_number_of_frames(model, bend, frames):
    video = model.generate(bend, frames=frames)
    assert video.shape == (1, frames, 3, 16, 16) and video.isfinite().all()


def test_a_video_may_have_another_size_than_in_training(model, bend):
    video = model.generate(bend, size=(32, 48))
    assert video.shape == (1, 4, 3, 32, 48) and video.isfinite().all()
    assert torch.equal(model.generate(bend, size=(16, 16)), model.generate(bend))
    with pytest.raises(ValueError, match="multiples of 8 pixels"):
        model.generate(bend, size=(32, 44))


def test_in_a_long_video_frames_attend_as_far_as_in_training(model, bend):
    z, at = normal(1, 9, 4, 4, 4), torch.tensor([500])

    def predict(z, mask):
        return model.model(z, at, labels=bend, mask=mask)
    assert band(9, 3).sum(1).tolist() == [4, 5, 6, 7, 7, 7, 6, 5, 4]
    assert torch.equal(predict(z, None), predict(z, torch.ones(9, 9, dtype=torch.bool)))
    assert not torch.equal(predict(z, band(9, 3)), predict(z, None))
    fake, calls = with_target(model, "temporal", lambda **_: 0.0)
    fake.latents(bend, frames=4)
    fake.latents(bend, frames=9)
    assert calls.calls[0]["mask"] is None and torch.equal(calls.calls[-1]["mask"], band(9, 3))


@pytest.mark.parametrize("how, message", [
    (dict(frames=0), "at least one frame, got 0"),
    (dict(alpha=2), r"alpha lies in \[0, 1\], got 2"),
    (dict(alpha=-0.1), r"alpha lies in"), (dict(steps=0), r"steps must lie in 1\.\.1000, got 0"),
    (dict(steps=1001), r"steps must lie in 1\.\.1000, got 1001")])
def test_values_out_of_range_are_refused(model, bend, how, message):
    with pytest.raises(ValueError, match=message):
        model.generate(bend, **how)


def test_seed_and_labels_decide_the_video(model, bend):
    video = model.generate(bend, seed=3)
    assert torch.equal(model.generate(bend, seed=3), video)
    assert not torch.allclose(model.generate(bend, seed=4), video, atol=1e-3)
    wave = model.labels(action="wave", person=2)
    assert not torch.allclose(model.generate(wave, seed=3), video, atol=1e-3)


def test_a_video_does_not_depend_on_the_others_of_its_batch(model, bend):
    three = torch.cat([bend, model.labels(action="wave"), model.labels()])
    first = model.generate(three, seed=5)[:1]
    assert torch.allclose(first, model.generate(bend, seed=5), atol=1e-3)


def test_clips_of_a_batch_have_later_noise_of_their_own(model, bend):
    noise = model.noise(1, 4, seed=9).repeat(2, 1, 1, 1, 1)
    video = model.generate(bend.repeat(2, 1), noise=noise)
    assert not torch.allclose(video[0], video[1], atol=1e-3)
    assert torch.allclose(video[:1], model.generate(bend, noise=noise[:1]), atol=1e-3)


def test_the_starting_noise_can_be_given_and_the_seed_still_gives_the_later_noise(model, bend):
    given = model.generate(bend, noise=model.noise(1, 4, seed=9), seed=9)
    assert torch.equal(given, model.generate(bend, seed=9))
    other = model.generate(bend, noise=model.noise(1, 4, seed=9), seed=8)
    assert not torch.allclose(given, other, atol=1e-3)
    without = dict(noise=model.noise(1, 4, seed=9), eta=0.0)
    assert torch.equal(model.generate(bend, seed=8, **without),
                       model.generate(bend, seed=9, **without))


@torch.no_grad()
def test_alpha_1_gives_the_frames_of_the_image_model_bit_for_bit(model, bend):
    z, labels = model.noise(1, 4, seed=2)[0], bend.repeat(4, 1)

    def conditional(z, tau):
        return model.theta(z, tau, labels)
    denoise = guided(conditional, lambda z, tau: model.theta(z, tau), CONFIG.label_guidance)
    z = ddim(model.schedule, denoise, z, ddim_times(CONFIG.steps), "v", CONFIG.eta, rng(2, 1, 0))
    frames = model.autoencoder.decode(z).clamp(-1, 1)
    assert torch.equal(model.generate(bend, alpha=1, seed=2)[0], frames)
    assert not torch.allclose(model.generate(bend, seed=2)[0], frames, atol=1e-3)


def test_alpha_passes_continuously_from_the_video_model_to_the_image_model(model, bend):
    one, near, zero = (model.latents(bend, alpha=a, seed=2, steps=1) for a in (1, 0.9999, 0.0))
    assert torch.allclose(near, one, atol=0.01) and not torch.allclose(zero, one, atol=0.01)


def test_a_fixed_alpha_holds_for_its_own_call_alone(model, bend):
    before, alphas = model.generate(bend), model.layers.alphas()
    fixed = model.generate(bend, alpha=0.1)
    assert not torch.allclose(fixed, before, atol=1e-3)
    assert torch.equal(model.generate(bend), before) and model.layers.alphas() == alphas


def test_label_guidance_0_gives_the_video_of_no_label(model, bend):
    unguided = model.generate(model.labels(), label_guidance=1)
    assert torch.allclose(model.generate(bend, label_guidance=0), unguided, atol=1e-4)


def test_each_guidance_scale_multiplies_its_own_difference(model, bend):
    value = {(False, True): 3.0, (False, False): 2.0, (True, True): 1.0, (True, False): 0.5}

    def target(labels, image, **_):
        return value[image, bool((labels == bend).all())]
    fake, _ = with_target(model, "temporal", target, eta=0.0)
    for g in (0.0, 1.0, 1.5):
        video, image = 2 + g * (3 - 2), 0.5 + g * (1 - 0.5)
        for w in (0.0, 1.0, 2.0):
            z = fake.latents(bend, steps=1, label_guidance=g, temporal_guidance=w)
            assert torch.allclose(z, torch.tensor(image + w * (video - image)), atol=1e-4), (g, w)
        z = fake.latents(bend, steps=1, label_guidance=g, temporal_guidance=3.0, alpha=1)
        assert torch.allclose(z, torch.tensor(image), atol=1e-4), "alpha = 1: the image model"


def test_scales_that_are_left_out_are_those_of_the_config(model, bend):
    how = dict(label_guidance=1.5, temporal_guidance=2.0, eta=1.0, steps=2, frames=4)
    assert torch.equal(model.generate(bend), model.generate(bend, **how))


def test_temporal_guidance_acts_above_the_tau_of_the_config_only(model, bend):
    def make(above, scale):
        changed = copy(model)
        changed.config = replace(model.config, temporal_guidance_above=above)
        return changed.latents(bend, seed=2, steps=4, label_guidance=1, temporal_guidance=scale)
    one, two = make(200, 1), make(200, 2)                              # tau is 999, 749, 499, 249
    assert not torch.allclose(one, two, atol=1e-2) and torch.equal(make(999, 2), one)
    assert torch.equal(make(248, 2), two) and not torch.equal(make(249, 2), two)


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_the_prediction_type_is_that_of_the_backbone(long_model, bend, prediction):
    fake, _ = with_target(long_model, "temporal", lambda **_: 0.7, prediction)
    assert torch.allclose(fake.latents(bend, seed=1), torch.tensor(0.7), atol=1e-3)
    fake, _ = with_target(long_model, "interpolation", lambda **_: 0.7, prediction, anchored=False)
    known, noise = torch.zeros(1, 5, 4, 4, 4), normal(1, 5, 4, 4, 4)
    z = fake.sample_with_context("interpolation", bend, known, MASK, noise, [rng(0, 0, 0)])
    assert torch.allclose(z, torch.tensor(0.7), atol=1e-3)


def test_the_schedule_is_that_of_the_backbone(model, bend):
    fake, calls = with_target(model, "temporal", lambda **_: 0.0)
    fake.schedule = calls.schedule = Schedule.linear(100)
    fake.latents(bend, steps=4, temporal_guidance=1, label_guidance=1)
    assert [int(call["tau"][0]) for call in calls.calls] == [99, 74, 49, 24]
    own = VideoLDM(model.autoencoder, model.theta, model.layers, CONFIG, prediction="x0",
                   schedule=Schedule.linear(50))
    assert own.prediction == "x0" and own.schedule.num_steps == 50
    assert model.prediction == "v" and model.schedule.num_steps == 1000


@pytest.mark.parametrize("how, stage", [(dict(), "temporal"), (dict(alpha=1), "image")])
def test_latents_that_are_not_finite_are_an_error_that_names_the_stage(model, bend, how, stage):
    fake, _ = with_target(model, "temporal", lambda **_: float("nan"))
    with pytest.raises(FloatingPointError, match=f"'{stage}' gave latents that are not finite"):
        fake.generate(bend, **how)


# -- threads and copies ---------------------------------------------------------------------------

def test_two_threads_that_generate_at_the_same_time_get_their_own_videos(long_model, bend):
    calls = [lambda: long_model.generate(bend, frames=4, seed=1, steps=6),
             lambda: long_model.generate(model_labels, frames=7, seed=2, steps=4, alpha=0.3),
             lambda: long_model.generate(bend, frames=5, seed=3, steps=5, alpha=1),
             lambda: torch.cat(list(long_model.rollout(bend, 9, seed=4)), dim=1)]
    model_labels = long_model.labels(action="wave").repeat(2, 1)
    alone, together = [call() for call in calls], [None] * len(calls)

    def work(i):
        together[i] = calls[i]()
    threads = [Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_a_deep_copy_is_the_same_video_model(long_model, bend):
    other = deepcopy(long_model)
    assert torch.equal(other.generate(bend, seed=1), long_model.generate(bend, seed=1))
    shaken(other.layers, 0.3)
    assert not torch.equal(other.generate(bend, seed=1), long_model.generate(bend, seed=1))


# -- one window with context ----------------------------------------------------------------------

def window(model, stage, labels, known, mask, **how):
    """sample_with_context from fixed noise."""
    noise = normal(*known.shape, seed=7)
    generators = [rng(0, 5, i) for i in range(len(known))]
    return model.sample_with_context(stage, labels, known, mask, noise, generators, **how)


def test_the_context_is_the_clean_latents_where_the_mask_is_1(long_model, bend):
    fake, calls = with_target(long_model, "prediction", lambda **_: 0.0)
    known, mask = normal(1, 4, 4, 4, 4), context_mask(4, 2)[None]
    window(fake, "prediction", bend, known, mask)
    context = calls.calls[0]["context"]                                # b c+1 t h w
    assert torch.equal(context[:, :4, :2], known[:, :2].transpose(1, 2))
    assert (context[:, 4, :2] == 1).all() and (context[:, :, 2:] == 0).all()


def test_noise_augmentation_is_alpha_tau_z_plus_sigma_tau_eps(long_model, bend):
    fake, calls = with_target(long_model, "prediction", lambda **_: 0.0)
    known, mask, tau = normal(1, 4, 4, 4, 4), context_mask(4, 2)[None], 100
    window(fake, "prediction", bend, known, mask, augment=tau)
    alpha_tau, sigma_tau = float(fake.schedule.alpha_tau[tau]), float(fake.schedule.sigma_tau[tau])
    eps = torch.randn(known.shape[1:], generator=rng(0, 5, 0))
    context = calls.calls[0]["context"]
    noisy = (alpha_tau * known[0] + sigma_tau * eps)[:2].transpose(0, 1)
    assert alpha_tau > 1.1 * sigma_tau and torch.allclose(context[0, :4, :2], noisy, atol=1e-5)
    assert torch.allclose(context[0, 4, :2], torch.tensor(alpha_tau)), "the mask says how much"


def test_label_and_context_guidance_scale_their_own_differences(long_model, bend):
    def target(labels, context=None, **_):
        if context is not None:
            return 7.0
        return 3.0 if bool((labels == bend).all()) else 2.0
    fake, calls = with_target(long_model, "prediction", target)
    known, mask = torch.zeros(1, 4, 4, 4, 4), context_mask(4, 1)[None]
    for g, s in ((1.0, 1.0), (1.5, 1.0), (1.0, 3.0), (2.0, 2.0), (0.0, 1.0)):
        z = window(fake, "prediction", bend, known, mask, label_guidance=g, context_guidance=s)
        expected = 2 + g * (3 - 2) + s * (7 - 3)
        assert torch.allclose(z, torch.tensor(expected), atol=1e-3), (g, s)
    calls.calls.clear()
    window(fake, "prediction", bend, known, mask, label_guidance=2.0, context_guidance=2.0, steps=1)
    assert len(calls.calls) == 2, "equal scales cost two evaluations, not three"


def test_the_options_of_the_config_choose_times_and_order(long_model, bend, monkeypatch):
    known, mask, orders = torch.zeros(1, 4, 4, 4, 4), context_mask(4, 1)[None], []

    def recorded(*args, order=1, **how):
        orders.append(order)
        return ddim(*args, order=order, **how)
    monkeypatch.setattr("vldm_mini.pipeline.ddim", recorded)
    for power, order in ((1.0, 1), (1.5, 2)):
        fake, calls = with_target(long_model, "prediction", lambda **_: 0.0, context_power=power,
                                  context_order=order)
        window(fake, "prediction", bend, known, mask, steps=4)
        taus = [int(call["tau"][0]) for call in calls.calls]
        assert taus == ddim_times(4, 1000, power)
    window(fake, "prediction", bend, known, mask, steps=4, eta=1.0)
    assert orders == [1, 2, 1], "second order is for steps without new noise"


def test_prediction_pastes_nothing_over_the_context_frames(long_model, bend):
    fake, _ = with_target(long_model, "prediction", lambda **_: 0.25)
    z = window(fake, "prediction", bend, normal(1, 4, 4, 4, 4), context_mask(4, 2)[None])
    assert torch.allclose(z, torch.tensor(0.25), atol=1e-3)


def test_only_interpolation_is_anchored_and_only_if_the_config_says_so(long_model, bend):
    known = normal(1, 5, 4, 4, 4)
    for anchored in (False, True):
        fake, _ = with_target(long_model, "interpolation", lambda **_: 0.25, anchored=anchored)
        z = window(fake, "interpolation", bend, known, MASK)
        assert torch.allclose(z[:, [0, 4]], known[:, [0, 4]], atol=1e-3) == anchored
        assert torch.allclose(z, torch.tensor(0.25), atol=1e-3) != anchored
        fake, _ = with_target(long_model, "prediction", lambda **_: 0.25, anchored=anchored)
        z = window(fake, "prediction", bend, normal(1, 4, 4, 4, 4), context_mask(4, 1)[None])
        assert torch.allclose(z, torch.tensor(0.25), atol=1e-3)


def test_a_stage_that_is_missing_is_named(model, bend):
    with pytest.raises(ValueError, match="hold no prediction; train it"):
        model.rollout(bend, 6)
    with pytest.raises(ValueError, match="hold no interpolation"):
        model.interpolate(normal(1, 3, 4, 4, 4), bend, 0)


@pytest.mark.parametrize("stage", ["prediction", "interpolation"])
def test_a_stage_with_context_that_is_not_finite_is_named(long_model, bend, stage):
    fake, _ = with_target(long_model, stage, lambda **_: float("nan"))
    with pytest.raises(FloatingPointError, match=f"the stage '{stage}'"):
        window(fake, stage, bend, torch.zeros(1, 5, 4, 4, 4), MASK, regime=torch.tensor([0]))


# -- long videos ----------------------------------------------------------------------------------

def counting(context=None, **_):
    """Frame k + 1 is frame k plus one: a target that continues the context by counting."""
    b, _, frames = context.shape[:3]
    s = int(context[0, -1, :, 0, 0].sum())
    last = context[:, :-1, s - 1]                                      # b c h w
    steps = torch.arange(frames) - (s - 1)
    return last[:, None] + steps.view(1, -1, 1, 1, 1)


def test_a_rollout_counts_on_without_a_gap_or_a_repeated_frame(long_model, bend):
    fake, calls = with_target(long_model, "prediction", counting)
    first = torch.zeros(1, 1, 4, 4, 4)
    how = dict(first=first, context_guidance=1.0, label_guidance=1.0, steps=1)
    for context in (1, 2, 3):
        calls.calls.clear()
        parts = list(fake.rollout(bend, 11, context=context, **how))
        values = torch.cat(parts, dim=1)[0, :, 0, 0, 0]
        assert torch.allclose(values, torch.arange(11.0), atol=1e-3)
        given = [int(call["context"][0, -1, :, 0, 0].sum()) for call in calls.calls]
        assert given == [1] + [context] * (len(given) - 1), "S = 1, then S = context"
        assert all(call["context"].shape[2] == 4 for call in calls.calls)


def test_a_rollout_continues_the_frames_that_it_is_given(long_model, bend):
    fake, _ = with_target(long_model, "prediction", counting)
    first = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(1, 5, 4, 4, 4)
    parts = list(fake.rollout(bend, 9, first=first, context_guidance=1.0, steps=1))
    assert parts[0] is first and [part.shape[1] for part in parts] == [5, 2, 2]
    assert torch.allclose(torch.cat(parts, 1)[0, :, 1, 2, 3], torch.arange(9.0), atol=1e-3)


def test_each_window_of_a_rollout_has_noise_of_its_own(long_model, bend, monkeypatch):
    seen = []

    def keep(self, stage, labels, known, mask, noise, generators, **how):
        seen.append(noise)
        return torch.zeros_like(noise)
    monkeypatch.setattr(VideoLDM, "sample_with_context", keep)
    labels = bend.repeat(2, 1)
    list(long_model.rollout(labels, 9, seed=3, first=torch.zeros(2, 1, 4, 4, 4)))
    for window_noise, start in zip(seen, (1, 4, 6, 8)):
        for i in range(2):
            expected = torch.randn(4, 4, 4, 4, generator=rng(3, 2 + start, i))
            assert torch.equal(window_noise[i], expected)
    assert len(seen) == 4


def stored_bytes(values):
    """Bytes of all storages that these values hold on to, containers included."""
    storages, todo = {}, list(values)
    while todo:
        value = todo.pop()
        if torch.is_tensor(value):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (list, tuple, set)):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
    return sum(storages.values())


def test_the_memory_of_a_rollout_is_independent_of_its_length(long_model, bend):
    fake, _ = with_target(long_model, "prediction", counting)
    first = torch.zeros(1, 1, 4, 4, 4)
    rollout = fake.rollout(bend, 41, first=first, context_guidance=1.0, steps=1)
    held = [stored_bytes(rollout.gi_frame.f_locals.values()) for _ in rollout]
    assert len(held) == 21 and held[-2] == held[2] < 20_000


def test_a_rollout_of_several_videos_keeps_them_apart(long_model, bend):
    labels = torch.cat([bend, long_model.labels(action="wave")])
    parts = list(long_model.rollout(labels, 9, seed=3))
    assert [part.shape[1] for part in parts] == [1, 3, 2, 2, 1]
    video = torch.cat(parts, dim=1)
    assert torch.equal(torch.cat(list(long_model.rollout(labels, 9, seed=3)), dim=1), video)
    alone = torch.cat(list(long_model.rollout(bend, 9, seed=3)), dim=1)
    assert torch.allclose(alone, video[:1], atol=1e-4)
    assert not torch.allclose(video[0, 4:], video[1, 4:], atol=1e-2)


def test_the_first_frame_of_a_rollout_is_the_image_models(long_model, bend):
    first = next(long_model.rollout(bend, 9, seed=3))
    assert torch.equal(first, long_model.latents(bend, frames=1, alpha=1, seed=3))


@pytest.mark.parametrize("together, scales", [(True, (2.0, 2.0)), (False, (2.0, 1.0))])
def test_a_rollout_guides_labels_with_the_context_if_the_config_says_so(
        long_model, bend, monkeypatch, together, scales):
    seen = []

    def keep(self, *args, context_guidance, label_guidance, augment, steps):
        seen.append((context_guidance, label_guidance, augment, steps))
        return torch.zeros(1, 4, 4, 4, 4)
    monkeypatch.setattr(VideoLDM, "sample_with_context", keep)
    model = copy(long_model)
    model.config = replace(CONFIG, guide_labels_with_context=together)
    first = torch.zeros(1, 1, 4, 4, 4)
    list(model.rollout(bend, 4, first=first, context_guidance=2.0, augment=60, steps=3))
    list(model.rollout(bend, 4, first=first, context_guidance=2.0, label_guidance=1.25))
    list(model.rollout(bend, 4, first=first))
    default = CONFIG.context_guidance
    assert seen == [(*scales, 60, 3), (2.0, 1.25, 0, None),
                    (default, default if together else 1.0, 0, None)]


# -- interpolation --------------------------------------------------------------------------------

def between(context=None, **_):
    """The linear interpolation of the two ends in the context: a target that is known."""
    ends = context[:, :-1, [0, -1]].transpose(1, 2)                    # b 2 c h w
    share = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1)
    return ends[:, :1] + share * (ends[:, 1:] - ends[:, :1])


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_interpolated_frames_stand_between_their_key_frames_in_order(
        long_model, bend, batch, anchored):
    fake, _ = with_target(long_model, "interpolation", between, anchored=anchored)
    keys = 4 * torch.arange(4.0).view(1, 4, 1, 1, 1) + 100 * torch.arange(2.0).view(2, 1, 1, 1, 1)
    z = fake.interpolate(keys.expand(2, 4, 4, 4, 4), bend.repeat(2, 1), 0, steps=2, batch=batch)
    assert z.shape == (2, 13, 4, 4, 4) and torch.equal(z[:, ::4, 0, 0, 0], keys[..., 0, 0, 0])
    expected = torch.arange(13.0) + torch.tensor([[0.0], [100.0]])
    assert torch.allclose(z[:, :, 1, 2, 3], expected, atol=0.02)


def test_each_window_of_interpolation_has_its_regime_its_labels_and_its_noise(
        long_model, bend, monkeypatch):
    seen = []

    def keep(self, stage, labels, known, mask, noise, generators, regime, steps):
        seen.append((labels, noise, regime))
        assert stage == "interpolation" and mask.tolist() == [[1, 0, 0, 0, 1]] * len(known)
        return known
    monkeypatch.setattr(VideoLDM, "sample_with_context", keep)
    labels = torch.cat([bend, long_model.labels(action="wave")])
    long_model.interpolate(normal(2, 3, 4, 4, 4), labels, 1, seed=6, batch=3)
    windows, noise, regimes = (torch.cat(column) for column in zip(*seen))
    assert torch.equal(windows, labels[[0, 0, 1, 1]]) and regimes.tolist() == [1, 1, 1, 1]
    for i in range(4):
        expected = torch.randn(5, 4, 4, 4, generator=rng(6, 1_000_001, i))
        assert torch.equal(noise[i], expected)


def test_a_smooth_video_is_regime_0_on_the_key_frames_then_regime_1(long_model, bend, monkeypatch):
    regimes = []
    plain = VideoLDM.interpolate

    def keep(self, z, labels, regime, seed):
        regimes.append((regime, z.shape[1], seed))
        return plain(self, z, labels, regime, seed, steps=1)
    monkeypatch.setattr(VideoLDM, "interpolate", keep)
    video = long_model.smooth_video(bend, seed=1)
    assert regimes == [(0, 4, 1), (1, 13, 1)]
    assert video.shape == (1, 16 * (CONFIG.frames - 1) + 1, 3, 16, 16) and video.abs().max() <= 1


def test_real_interpolation_layers_depend_on_their_regime(long_model, bend):
    z = normal(1, 3, 4, 4, 4)
    videos = [long_model.interpolate(z, bend, regime, steps=2) for regime in (0, 1)]
    inner = [k for k in range(9) if k % 4]
    assert not torch.allclose(videos[0][:, inner], videos[1][:, inner], atol=1e-3)


def test_with_an_upsampler_the_video_is_four_times_as_large(long_model, bend, tmp_path):
    with pytest.raises(ValueError, match="hold no upsampler"):
        long_model.smooth_video(bend, kind="pixel")
    theta = shaken(Upsampler(UpsamplerConfig(channels=(8, 16), emb_channels=16)), 0.02)
    theta.save_pretrained(tmp_path / "upsampler" / "image")
    layers = insert(theta, conv=SidewaysConv, attention=None)
    layers.save_pretrained(tmp_path / "upsampler" / "temporal")
    model = copy(long_model)
    model.folder = tmp_path
    small = model.smooth_video(bend, seed=2, steps=2)
    large = model.smooth_video(bend, seed=2, steps=2, kind="pixel")
    assert large.shape == (*small.shape[:3], 64, 64)
    assert torch.equal(large, VideoUpsampler.from_pretrained(tmp_path, device="cpu")(small, seed=2))
    model.folder = None
    with pytest.raises(ValueError, match="came from no folder"):
        model.upsampler()


# -- other backbones and layers -------------------------------------------------------------------

class Shift(torch.nn.Module):
    """A reader's own layer: adds a part of the frame before."""

    def __init__(self, point, strength=0.5):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((point.channels, 1, 1, 1), strength))

    def forward(self, z, clip):
        return z + self.scale * z.roll(1, dims=2)


def test_a_readers_own_layer_class_loads_beside_layers_of_ours(whole_folder, bend, tmp_path):
    shutil.copytree(whole_folder, tmp_path / "own")
    theta = tiny_unet()
    insert(theta, attention=Shift).save_pretrained(tmp_path / "own" / "temporal")
    with pytest.raises(ValueError, match="Shift"):
        VideoLDM.from_pretrained(tmp_path / "own", "cpu")
    model = VideoLDM.from_pretrained(tmp_path / "own", "cpu", attention=Shift)
    kinds = {type(mix.layer).__name__ for mix in model.layers.mixes.values()}
    assert kinds == {"TemporalConv", "Shift"}
    assert model.generate(bend, steps=1).isfinite().all()
    others = {type(mix.layer).__name__ for mix in model.stage("prediction").layers.mixes.values()}
    assert others == {"TemporalConv", "TemporalAttention"}


class Wrapped(torch.nn.Module):
    """A backbone as torch.compile, PEFT or DDP wrap it: its signature says nothing."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *args, **how):
        return self.inner(*args, **how)


def test_a_wrapped_backbone_still_receives_its_labels(model, bend):
    wrapped = VideoLDM(model.autoencoder, Wrapped(model.theta), model.layers, CONFIG)
    assert torch.equal(wrapped.generate(bend, seed=1), model.generate(bend, seed=1))


@pytest.fixture(scope="module")
def diffusers_backbone():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theta = diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(16, 32),
        layers_per_block=1, cross_attention_dim=8, attention_head_dim=8, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    return shaken(theta, 0.02).eval()


def test_a_diffusers_backbone_generates_from_text_and_is_saved_and_loaded(
        diffusers_backbone, model, tmp_path):
    layers = shaken(insert(diffusers_backbone, text_channels=8), 0.1).eval()
    config = replace(PipelineConfig(), pixels=16, frames=3, steps=2)
    sd = VideoLDM(model.autoencoder, diffusers_backbone, layers, config, prediction="eps",
                  schedule=Schedule.scaled_linear())
    labels, text, null_text = sd.labels(), normal(1, 5, 8), normal(1, 5, 8, seed=1)
    assert labels.shape == (1, 0)
    how = dict(text=text, null_text=null_text, label_guidance=3.0)
    video = sd.generate(labels, **how)
    assert video.shape == (1, 3, 3, 16, 16)
    assert not torch.allclose(sd.generate(labels, **how | {"text": normal(1, 5, 8, seed=2)}), video)
    assert not torch.allclose(sd.generate(labels, **how | {"null_text": text}), video)
    with pytest.raises(ValueError, match="null_text"):
        sd.generate(labels, text=text, label_guidance=3.0)
    sd.save_pretrained(tmp_path)
    layers.remove()
    again = VideoLDM.from_pretrained(tmp_path, "cpu", prediction="eps",
                                     schedule=Schedule.scaled_linear())
    assert torch.equal(again.generate(labels, **how), video)


def test_the_decoder_of_a_folder_is_the_temporal_one(long_model, model):
    z = normal(1, 3, 4, 4, 4)
    assert long_model.decoder.net is not None and model.decoder.net is None
    plain = VideoDecoder(long_model.autoencoder)(z).clamp(-1, 1)
    assert not torch.allclose(long_model.decode(z), plain, atol=1e-3)
    assert torch.allclose(model.decode(z), plain, atol=1e-5)
