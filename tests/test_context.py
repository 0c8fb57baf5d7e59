"""What a clip is conditioned on: masks, c_S, its own learned convolution, and the windows of long
videos."""

import pytest
import torch

from tests.tiny import UNET, normal, shaken, tiny_unet
from vldm_mini.context import (
    anchored_denoiser,
    context_condition,
    context_mask,
    interpolation_windows,
    linear_interpolation,
    prediction_windows,
)
from vldm_mini.diffusion import Schedule, add_noise, chained_guidance, guided, target, to_x0
from vldm_mini.temporal import TemporalLayers, VideoModel, extend, insert

TAU = torch.tensor([300, 700])


def context_model(seed=0, **options):
    """A video model with room for c_S, all its weights random but for the convolutions of c_S,
    which are untrained."""
    theta = tiny_unet(seed)
    plain = shaken(insert(theta, ff_mult=1, ff_in=False), 0.3)
    return VideoModel(theta, extend(plain, theta, **({"context_channels": 5} | options)))


def trained(model, size=0.3):
    """The same with convolutions of c_S that are not zero."""
    for mix in model.layers.mixes.values():
        if getattr(mix.layer, "context", None) is not None:
            shaken(mix.layer.context, size)
    return model


# -- masks and c_S ---------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "mask"),
    [
        (0, 0, [0, 0, 0, 0, 0]),
        (1, 0, [1, 0, 0, 0, 0]),
        (2, 0, [1, 1, 0, 0, 0]),
        (1, 1, [1, 0, 0, 0, 1]),
    ],
)
def test_one_mask_function_for_none_prediction_and_interpolation(first, last, mask):
    assert context_mask(5, first, last).tolist() == mask


def test_more_given_frames_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="cannot give 3 first and 3 last of 5"):
        context_mask(5, 3, 3)


def test_c_s_is_the_masked_clip_and_the_mask():
    z = normal(2, 3, 4, 5, 6)
    c = context_condition(z, torch.stack([context_mask(3, 1), context_mask(3)]))
    assert c.shape == (2, 5, 3, 5, 6)
    assert (
        torch.equal(c[0, :4, 0], z[0, 0])
        and c[0, :, 1:].abs().max() == 0
        and (c[0, 4, 0] == 1).all()
    )
    assert c[1].abs().max() == 0, "S = 0: no context frame, and nothing else"


def test_noise_augmentation_is_what_the_schedule_does_and_the_mask_says_how_much():
    z, eps, keep = normal(1, 3, 4, 5, 6), normal(1, 3, 4, 5, 6, seed=1), torch.tensor([0.8])
    c = context_condition(z, context_mask(3, 2)[None], keep, eps)
    assert torch.allclose(c[0, :4, 1], 0.8 * z[0, 1] + 0.6 * eps[0, 1], atol=1e-6)
    assert torch.allclose(c[0, 4, :2], torch.tensor(0.8)) and c[0, :, 2].abs().max() == 0
    own = context_condition(z, context_mask(3, 2)[None], torch.tensor([[0.8, 0.6, 0.8]]), eps)
    assert torch.equal(own[0, :, 0], c[0, :, 0]) and torch.allclose(own[0, 4, 1], torch.tensor(0.6))
    assert torch.allclose(own[0, :4, 1], 0.6 * z[0, 1] + 0.8 * eps[0, 1], atol=1e-6)


# -- in the network ---------------------------------------------


def test_untrained_c_s_a_mask_of_zeros_and_no_context_are_exactly_equal():
    z, labels = normal(2, 4, 4, 16, 16), torch.tensor([[0, 1], [2, 3]])
    given_frames = context_condition(z, context_mask(4, 2).expand(2, -1))
    model = context_model()
    with torch.no_grad():
        nothing = model(z, TAU, labels=labels)
        assert torch.equal(model(z, TAU, labels=labels, context=given_frames), nothing), "untrained"
        trained(model)
        assert torch.equal(model(z, TAU, labels=labels), nothing), "no context"
        assert torch.equal(
            model(z, TAU, labels=labels, context=torch.zeros_like(given_frames)), nothing
        ), "a mask of zeros"
        assert not torch.allclose(model(z, TAU, labels=labels, context=given_frames), nothing), (
            "c_S must have an effect"
        )


def test_alpha_one_and_image_mode_are_deaf_to_context():
    z, model = normal(2, 4, 4, 16, 16), trained(context_model())
    given_frames = context_condition(z, context_mask(4, 2).expand(2, -1))
    with torch.no_grad():
        image = model(z, TAU, image=True)
        assert torch.equal(model(z, TAU, context=given_frames, image=True), image)
        model.layers.set_alpha(1)
        assert torch.equal(model(z, TAU, context=given_frames), image), (
            "the skip of the mix is taken before c_S joins"
        )


def test_context_of_one_clip_does_not_reach_another():
    z, model = normal(2, 4, 4, 16, 16), trained(context_model())
    given_frames = context_condition(z, context_mask(4, 2).expand(2, -1))
    other = given_frames.clone()
    other[1] = 0
    with torch.no_grad():
        a, b = model(z, TAU, context=given_frames), model(z, TAU, context=other)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])


def test_every_convolution_of_c_s_learns_from_the_first_step():
    z, model = normal(2, 4, 4, 16, 16), context_model()
    model(
        z, TAU, context=context_condition(z, context_mask(4, 1).expand(2, -1))
    ).square().mean().backward()
    downs = [
        mix.layer.context for mix in model.layers.mixes.values() if hasattr(mix.layer, "context")
    ]
    assert len(downs) == len(
        [name for name in model.layers.mixes if name.endswith("block") or "block" in name]
    )
    assert all(
        down.bias is None and down.weight.abs().max() == 0 and down.weight.grad.abs().max() > 0
        for down in downs
    )


def test_a_regime_is_heard_by_temporal_layers_only_and_untrained_changes_nothing():
    z, model = normal(2, 5, 4, 16, 16), context_model(regimes=2)
    both = [torch.full((2,), k) for k in (0, 1)]
    with torch.no_grad():
        assert torch.equal(model(z, TAU, regime=both[1]), model(z, TAU))
        shaken(model.layers, 0.1)
        assert not torch.allclose(model(z, TAU, regime=both[0]), model(z, TAU, regime=both[1]))
        assert torch.equal(
            model(z, TAU, regime=both[0], image=True), model(z, TAU, regime=both[1], image=True)
        )


def test_layers_without_room_say_so_and_a_wrong_shape_is_an_error():
    z, theta = normal(1, 4, 4, 16, 16), tiny_unet()
    model = VideoModel(theta, insert(theta, ff_mult=1, ff_in=False))
    given_frames = context_condition(z, context_mask(4, 1)[None])
    with pytest.raises(ValueError, match="take no context: insert them with context_channels"):
        model(z, TAU[:1], context=given_frames)
    with pytest.raises(ValueError, match="take no regime: insert them with regimes"):
        model(z, TAU[:1], regime=torch.tensor([0]))
    with pytest.raises(ValueError, match=r"context must be \(1, 5, 4, h, w\)"):
        context_model()(z, TAU[:1], context=given_frames[:, :, :3])


def test_extended_layers_predict_as_before_and_come_back_from_a_folder(tmp_path):
    theta, z = tiny_unet(), normal(2, 4, 4, 16, 16)
    layers = shaken(insert(theta, ff_mult=1, ff_in=False), 0.3)
    with torch.no_grad():
        before = VideoModel(theta, layers)(z, TAU)
        extended = extend(layers, theta, context_channels=5)
        assert torch.equal(VideoModel(theta, extended)(z, TAU), before), (
            "and the old layers are off the backbone"
        )
        model = trained(VideoModel(theta, extended))
        model.layers.save_pretrained(tmp_path, dtype=torch.float32)
        given_frames = context_condition(z, context_mask(4, 2).expand(2, -1))
        answer = model(z, TAU, context=given_frames)
        other = tiny_unet()
        again = VideoModel(other, TemporalLayers.from_pretrained(tmp_path, other))
        assert torch.equal(again(z, TAU, context=given_frames), answer)
    assert UNET.channels == theta.config.channels


# -- guidance ---------------------------------------------


def test_both_guidances_together_are_the_formula_of_three_forwards():
    null, plain, full = (lambda z, tau, k=k: k * z for k in (1.0, 3.0, 7.0))
    z, tau = normal(2, 3), torch.tensor([5, 5])
    # f(0,0) + w (f(0,cond) - f(0,0)) + s (f(c_S,cond) - f(0,cond))
    assert torch.allclose(
        chained_guidance([null, plain, full], [2.0, 1.5])(z, tau), (1 + 2 * 2 + 1.5 * 4) * z
    )
    assert torch.allclose(
        chained_guidance([null, plain, full], [1, 1.5])(z, tau), guided(full, plain, 1.5)(z, tau)
    )
    assert torch.allclose(
        chained_guidance([null, plain, full], [2, 2])(z, tau), guided(full, null, 2)(z, tau)
    )
    assert chained_guidance([null, plain, full], [1, 1]) is full


def test_a_denoiser_that_cancels_is_never_asked():
    def never(z, tau):
        raise AssertionError("asked")

    z, tau = normal(2, 3), torch.tensor([5, 5])
    same = lambda z, tau: z
    chained_guidance([never, same, same], [1, 2])(z, tau)
    chained_guidance([same, never, same], [2, 2])(z, tau)
    with pytest.raises(ValueError, match="3 denoisers have 2 steps, got 1"):
        chained_guidance([same, same, same], [2])


# -- interpolation is anchored at its ends ---------------------------------------------


def test_linear_interpolation_is_linear_between_both_ends():
    x = normal(2, 5, 3, 2, 2)
    line = linear_interpolation(x)
    assert torch.equal(line[:, 0], x[:, 0]) and torch.allclose(line[:, 4], x[:, 4])
    assert torch.allclose(line[:, 1], 0.75 * x[:, 0] + 0.25 * x[:, 4], atol=1e-6)
    assert linear_interpolation(line).allclose(line, atol=1e-6)


def test_an_anchored_denoiser_is_right_at_the_ends_and_only_departs_between():
    schedule, tau = Schedule.linear(), torch.tensor([100, 900])
    x, eps = normal(2, 5, 3, 2, 2), normal(2, 5, 3, 2, 2, seed=1)
    z, v = add_noise(schedule, x, eps, tau), target(schedule, x, eps, tau)
    ends = x * context_mask(5, 1, 1)[None, :, None, None, None]  # what lies between is not known
    assert anchored_denoiser(schedule, lambda z, tau: v, ends)(z, tau).allclose(v, atol=1e-4), (
        "who is right stays right"
    )
    wrong = v + normal(2, 1, 3, 2, 2, seed=2)
    assert anchored_denoiser(schedule, lambda z, tau: wrong, ends)(z, tau).allclose(v, atol=1e-4), (
        "what all frames have wrong is off"
    )
    noise = normal(2, 5, 3, 2, 2, seed=3)
    got = to_x0(schedule, z, anchored_denoiser(schedule, lambda z, tau: noise, ends)(z, tau), tau)
    assert torch.allclose(got[:, [0, 4]], x[:, [0, 4]], atol=1e-3) and not torch.allclose(
        got[:, 2], x[:, 2], atol=0.1
    )


# -- windows ---------------------------------------------


@pytest.mark.parametrize("context_frames", [1, 2, 3])
@pytest.mark.parametrize("window", [4, 5, 8])
@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 30, 113])
def test_a_rollout_makes_every_frame_once_from_frames_that_exist(frames, window, context_frames):
    done = {0}
    for k, (given, made) in enumerate(prediction_windows(frames, window, context_frames)):
        assert set(given) <= done and not set(made) & done and len(given) + len(made) <= window
        assert given == sorted(given) and given[-1] + 1 == made[0], (
            "the last frames, next to those to be made"
        )
        assert len(given) == (1 if k == 0 else min(context_frames, made[0]))
        done |= set(made)
    assert done == set(range(frames))


@pytest.mark.parametrize("frames", [2, 3, 8, 29])
def test_interpolation_drops_no_key_frame_and_makes_every_other_once(frames):
    windows = interpolation_windows(frames)
    made = [k for _, some in windows for k in some]
    given = {k for some, _ in windows for k in some}
    assert given == {4 * k for k in range(frames)}
    assert sorted(made + sorted(given)) == list(range(4 * (frames - 1) + 1))
    assert all(a < k < b for (a, b), some in windows for k in some)


def test_eight_key_frames_become_29_and_113():
    count = lambda n: len({k for given, made in interpolation_windows(n) for k in (*given, *made)})
    assert count(8) == 29 and count(29) == 113


def test_windows_that_cannot_be_are_errors():
    with pytest.raises(ValueError, match="1 to 7 frames, got 8"):
        prediction_windows(20, 8, 8)
    with pytest.raises(ValueError, match="two frames"):
        interpolation_windows(1)
