"""The value of every loss that training minimises, computed by hand on tiny tensors."""
import math

import pytest
import torch
from torch import nn

from tests.tiny import normal, shaken
from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig, PatchCritic
from vldm_mini.diffusion import Schedule, add_noise
from vldm_mini.training import BatchRandom
from vldm_mini.training.data import Latents, Windows
from vldm_mini.training.losses import (
    ContextOptions,
    LossOptions,
    box_condition,
    diffusion_loss,
    draw_tau,
    drop_labels,
    interpolation_context,
    noisy_context,
    prediction_context,
    self_generated_context,
    temporal_difference_error,
    weighed_error,
)
from vldm_mini.training.stages import autoencoder as autoencoder_stage
from vldm_mini.training.stages import decoder as decoder_stage
from vldm_mini.training.stages import upsampler as upsampler_stage
from vldm_mini.training.stages.upsampler import draw_patches, patch_store

CPU, LINEAR = torch.device("cpu"), Schedule.linear()
NAMES = (("action", tuple("abcd")), ("person", tuple("012345678")))


def draw(batch, step=0, part=0, parts=1):
    return BatchRandom(0, step, batch, CPU, part, parts)


class Given(BatchRandom):
    """Uniform numbers that the test gives, in the order in which they are called for."""

    def __init__(self, *uniform, step=0):
        self.values = [torch.as_tensor(one).float() for one in uniform]
        super().__init__(0, step, len(self.values[0]), CPU)

    def uniform(self, *shape):
        return self.values.pop(0)


class Zero(nn.Module):
    """A network that predicts 0 and keeps what it is called with."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.zeros(1)), []

    def forward(self, z, tau, **conditions):
        self.calls.append((z, tau, conditions))
        return torch.zeros_like(z)


def latents_of(*clips, labels=None, **more):
    if labels is None:
        labels = torch.tensor([[1, 5]]).expand(len(clips), 2)
    return Latents([clip.half() for clip in clips], labels, NAMES, 8.0, **more)


def v_by_hand(noisy, tau, z):
    """v = alpha_tau eps - sigma_tau z, with the eps that is in the noisy input."""
    v = torch.empty_like(noisy)
    for i, at in enumerate(tau.tolist()):
        alpha, sigma = float(LINEAR.alpha_tau[at]), float(LINEAR.sigma_tau[at])
        eps = (noisy[i] - alpha * z[i]) / sigma
        v[i] = alpha * eps - sigma * z[i]
    return v


# -- tau and labels -------------------------------------------------------------------------------

def test_by_default_tau_is_uniform_as_in_the_paper():
    tau = draw_tau(Given([0.0, 0.25, 0.4996, 0.9999]), 1000, LossOptions())
    assert tau.tolist() == [0, 250, 499, 999]


def test_a_logit_normal_tau_has_the_middle_and_the_spread_that_its_options_say():
    """At the quantiles of -1, 0 and 1 standard deviations."""
    u = torch.special.ndtr(torch.tensor([-1.0, 0.0, 1.0]))
    for middle, spread in ((0.5, 1.0), (-0.8, 1.5), (0.4, 1.4)):
        tau = draw_tau(Given(u), 1000, LossOptions(tau=(middle, spread)))
        wanted = [int(1000 / (1 + math.exp(-(middle + spread * n)))) for n in (-1, 0, 1)]
        assert (tau - torch.tensor(wanted)).abs().max() <= 1
    ends = draw_tau(Given([0.0, 1 - 2 ** -24]), 1000, LossOptions(tau=(0.0, 3.0)))
    assert ends.tolist() == [0, 999]


def test_a_stratified_batch_has_one_tau_in_each_of_its_equally_likely_parts():
    options = LossOptions(stratified=True)
    assert draw_tau(Given([0.5] * 4), 1000, options).tolist() == [125, 375, 625, 875]
    for step in range(50):
        tau = draw_tau(draw(4, step), 1000, options)
        assert (tau // 250).tolist() == [0, 1, 2, 3]
    halves = [draw_tau(draw(4, 7, part, 2), 1000, options) for part in range(2)]
    assert torch.equal(torch.cat(halves), draw_tau(draw(4, 7), 1000, options))


def test_each_label_becomes_its_null_label_by_its_own_chance():
    labels = torch.tensor([[1, 2]] * 4)
    u = [[0.05, 0.5], [0.5, 0.05], [0.05, 0.05], [0.1, 0.5]]
    assert drop_labels(labels, (4, 9), Given(u), 0.1).tolist() == [[4, 2], [1, 9], [4, 9], [1, 2]]
    assert drop_labels(labels[:, :0], (), draw(4), 0.1).shape == (4, 0)


@pytest.mark.parametrize("options, share", [(LossOptions(), 0.1), (LossOptions(label_drop=0), 0),
                                            (LossOptions(label_drop=1), 1)])
def test_the_loss_drops_labels_as_often_as_its_options_say(options, share):
    model, clip = Zero(), normal(1, 1, 1, 1)
    diffusion_loss(model, latents_of(clip), 1, 1, LINEAR, options=options)(draw(4000))
    labels = model.calls[0][2]["labels"]
    for column, label, null in ((0, 1, 4), (1, 5, 9)):
        dropped = labels[:, column] == null
        assert float(dropped.float().mean()) == pytest.approx(share, abs=0.02)
        assert (labels[~dropped, column] == label).all()


@pytest.mark.parametrize("middle, spread", [(0.5, 1.0), (-0.8, 1.5), (0.4, 1.4)])
def test_the_loss_draws_tau_by_its_own_options(middle, spread):
    options = LossOptions(tau=(middle, spread), stratified=True)
    loss = diffusion_loss(Zero(), latents_of(normal(1, 1, 1, 1)), 1, 1, LINEAR, options=options)
    logit = ((loss(draw(2000))[1]["tau"].double() + 0.5) / 1000).logit()
    assert float(logit.mean()) == pytest.approx(middle, abs=0.03)
    assert float(logit.std()) == pytest.approx(spread, abs=0.05)
    loss = diffusion_loss(Zero(), latents_of(normal(1, 1, 1, 1)), 1, 1, LINEAR)
    counts = (loss(draw(2000))[1]["tau"] // 100).bincount(minlength=10) / 2000
    assert (counts - 0.1).abs().max() < 0.03, "uniform by default"


# -- eq. (1) and (2) ------------------------------------------------------------------------------

def test_eq_1_by_hand():
    """The loss of a network that predicts 0 is the mean of v^2."""
    model, z = Zero(), normal(1, 4, 2, 2).half().float()
    total, logs = diffusion_loss(model, latents_of(z), 1, 1, LINEAR)(draw(200))
    noisy, tau, conditions = model.calls[0]
    assert noisy.shape == (200, 4, 2, 2) and set(conditions) == {"labels"}
    v = v_by_hand(noisy, tau, z.expand(200, -1, -1, -1))
    each = v.square().flatten(1).mean(1)
    assert torch.allclose(logs["loss"], each, rtol=1e-3) and torch.equal(logs["tau"], tau)
    assert float(total) == pytest.approx(float(each.mean()), rel=1e-4)
    some = tau > 300
    alpha, sigma = (x[tau[some]].float()[:, None, None, None] for x in
                    (LINEAR.alpha_tau, LINEAR.sigma_tau))
    eps = (noisy[some] - alpha * z) / sigma
    assert float(eps.mean()) == pytest.approx(0, abs=0.05)
    assert float(eps.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_target_is_the_one_that_the_model_predicts(prediction):
    model, z = Zero(), normal(1, 4, 2, 2).half().float()
    loss = diffusion_loss(model, latents_of(z), 1, 1, LINEAR, prediction)
    _, logs = loss(draw(8))
    noisy, tau, _ = model.calls[0]
    for i, at in enumerate(tau.tolist()):
        alpha, sigma = float(LINEAR.alpha_tau[at]), float(LINEAR.sigma_tau[at])
        wanted = {"eps": (noisy[i] - alpha * z[0]) / sigma, "x0": z[0]}[prediction]
        assert float(logs["loss"][i]) == pytest.approx(float(wanted.square().mean()), rel=1e-2)


def pooled(error):
    """Means over squares of 4x4, in loops: (b t c h w)."""
    b, t, c, h, w = error.shape
    means = torch.empty(b, t, c, h // 4, w // 4)
    for y in range(h // 4):
        for x in range(w // 4):
            square = error[..., 4 * y:4 * y + 4, 4 * x:4 * x + 4]
            means[..., y, x] = square.mean((3, 4))
    return means


def test_the_temporal_difference_error_by_hand():
    error = normal(2, 3, 4, 8, 8)
    coarse, wanted = pooled(error), torch.zeros(2)
    for i in range(2):
        steps = [(coarse[i, t + 1] - coarse[i, t]).square().mean() for t in range(2)]
        wanted[i] = torch.stack(steps).mean()
    assert torch.allclose(temporal_difference_error(error), wanted)
    shared = error[:, :1].expand(-1, 5, -1, -1, -1)
    assert torch.equal(temporal_difference_error(shared), torch.zeros(2))


def test_eq_2_with_the_temporal_difference_error_by_hand():
    model, z = Zero(), normal(3, 4, 8, 8).half().float()
    options = LossOptions(temporal_difference=8.0)
    total, logs = diffusion_loss(model, latents_of(z), 3, 1, LINEAR, options=options)(draw(6))
    noisy, tau, _ = model.calls[0]
    v = v_by_hand(noisy, tau, z.expand(6, -1, -1, -1, -1))
    change = pooled(v).diff(dim=1).square().flatten(1).mean(1)
    each = v.square().flatten(1).mean(1)
    assert float(total) == pytest.approx(float((each + 8 * change).mean()), rel=1e-3)
    assert torch.allclose(logs["loss"], each, rtol=1e-3), "the record holds eq. (2) alone"


def test_at_a_weight_of_8_white_error_counts_as_much_again_as_its_details():
    white = normal(8, 8, 4, 16, 16, seed=1)
    extra = 8 * float(temporal_difference_error(white).mean())
    assert extra == pytest.approx(float(white.square().mean()), rel=0.05)


def test_an_anchored_error_is_the_departure_from_the_line_between_its_ends():
    error = normal(2, 5, 4, 4, 4)
    departure = torch.empty_like(error)
    for t in range(5):
        departure[:, t] = error[:, t] - (1 - t / 4) * error[:, 0] - t / 4 * error[:, 4]
    plain = departure.square().flatten(1).mean(1)
    assert torch.allclose(weighed_error(error, None, LossOptions(anchored=True)), plain, atol=1e-6)
    assert torch.allclose(weighed_error(error, None, LossOptions()),
                          error.square().flatten(1).mean(1))
    both = LossOptions(anchored=True, temporal_difference=3.0, regime_weights=(0.5, 4.0))
    wanted = plain + 3 * temporal_difference_error(departure)
    found = weighed_error(error, torch.tensor([1, 0]), both)
    assert torch.allclose(found, torch.tensor([4.0, 0.5]) * wanted, atol=1e-5)


def test_the_regime_of_a_clip_decides_its_weight_in_the_loss():
    model, z = Zero(), normal(3, 4, 4, 4)
    options = LossOptions(regime_weights=(0.25, 3.0))
    regime = torch.tensor([0, 1, 1, 0])
    loss = diffusion_loss(model, latents_of(z), 3, 1, LINEAR, options=options,
                          context=lambda z, windows, draw: dict(regime=regime))
    total, logs = loss(draw(4))
    wanted = (torch.tensor([0.25, 3.0, 3.0, 0.25]) * logs["loss"]).mean()
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.equal(model.calls[0][2]["regime"], regime)


# -- windows and their labels ---------------------------------------------------------------------

def numbered(*lengths):
    """Clips whose values say which clip and which frame they are: 100 clip + frame."""
    return [(100 * i + torch.arange(float(n)))[:, None, None, None].expand(-1, 1, 1, 1)
            for i, n in enumerate(lengths)]


def windows_of(latents, frames, stride, batch=400):
    """The frames (b t) and labels (b n) that a loss passes to its model."""
    model = Zero()
    # a schedule without noise: z_tau is the clip itself
    none = Schedule(torch.ones(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64))
    options = LossOptions(label_drop=0)
    diffusion_loss(model, latents, frames, stride, none, options=options)(draw(batch))
    z, _, conditions = model.calls[0]
    return z.flatten(1), conditions["labels"]


def test_a_window_lies_in_one_clip_with_its_stride_and_every_start_is_as_likely():
    latents = latents_of(*numbered(9, 10, 11), labels=torch.tensor([[0, 5], [1, 6], [2, 7]]))
    frames, labels = windows_of(latents, 4, 2, 3000)
    assert (frames.diff(dim=1) == 2).all()
    clip = (frames[:, 0] // 100).long()
    assert torch.equal(labels, torch.stack([clip, clip + 5], 1)), "labels are those of the clip"
    assert (clip.bincount() / 3000 - 1 / 3).abs().max() < 0.03
    for number, starts in enumerate((3, 4, 5)):                      # a window covers 7 frames
        found = (frames[clip == number, 0] - 100 * number).long().bincount()
        assert len(found) == starts and (found / found.sum() - 1 / starts).abs().max() < 0.06


def test_the_label_of_a_window_is_the_rounded_mean_of_its_own_frames():
    of_frames = torch.tensor([0, 0, 1, 3, 3, 3, 0])
    labels = torch.stack([of_frames, torch.arange(7)], 1)[None]
    frames, found = windows_of(latents_of(*numbered(7), labels=labels), 3, 2)
    for start in range(3):
        mine = found[frames[:, 0] == start]
        window = of_frames[start:start + 5:2].float()
        assert len(mine) and (mine[:, 0] == window.mean().round()).all()
        assert (mine[:, 1] == start + 2).all()


# -- context --------------------------------------------------------------------------------------

def test_noise_on_context_has_alpha_tau_as_its_signal_and_one_clip_in_four_has_it():
    z, mask = normal(1, 2, 4, 4, 4).expand(2000, -1, -1, -1, -1), torch.ones(2000, 2)
    options = ContextOptions()
    c = noisy_context(z, mask, draw(2000), LINEAR, options)
    level = c[:, 4, 0, 0, 0]
    noisy = level < 1
    assert float(noisy.float().mean()) == pytest.approx(options.noisy_share, abs=0.03)
    alphas = LINEAR.alpha_tau[1:options.max_tau + 1].float()
    distance = (level[noisy, None] - alphas).abs().min(1)
    assert distance.values.max() < 1e-6, "the levels are alpha_1 to alpha_250"
    assert set(distance.indices.tolist()) > {0, 249} and len(distance.indices.unique()) > 180
    frames = c[:, :4].transpose(1, 2)
    assert torch.equal(frames[~noisy], z[~noisy]), "clean is exactly clean"
    scale = level[noisy].view(-1, 1, 1, 1, 1)
    eps = (frames[noisy] - scale * z[noisy]) / (1 - scale ** 2).sqrt()
    assert float(eps.std()) == pytest.approx(1, abs=0.02)


def test_each_context_frame_can_have_noise_of_its_own_level():
    z, mask = normal(1, 3, 4, 4, 4).expand(2000, -1, -1, -1, -1), torch.ones(2000, 3)
    options = ContextOptions(noisy_share=0.5, per_frame=True)
    c = noisy_context(z, mask, draw(2000), LINEAR, options)
    level = c[:, 4, :, 0, 0]                                                    # b t
    noisy = (level < 1).float()
    assert torch.allclose(noisy.mean(0), torch.tensor(0.5), atol=0.04)
    pairs = torch.corrcoef(torch.cat([noisy, level], dim=1).T).fill_diagonal_(0)
    assert pairs[:3, :3].abs().max() < 0.08 and pairs[3:, 3:].abs().max() < 0.08
    frames = c[:, :4].transpose(1, 2)
    eps = (frames - level[:, :, None, None, None] * z)[noisy > 0]
    scale = (1 - level[noisy > 0] ** 2).sqrt().view(-1, 1, 1, 1)
    assert float((eps / scale).std()) == pytest.approx(1, abs=0.02)


def test_context_is_given_as_often_as_p_s_says_and_at_the_beginning():
    z = normal(1, 4, 4, 2, 2).expand(4, -1, -1, -1, -1)
    options = ContextOptions(noisy_share=0.0)
    given = Given([0.19, 0.21, 0.44, 0.46], [0.0] * 4, [0.0] * 4)
    c = prediction_context(None, LINEAR, "v", options)(z, None, given)["context"]
    masks = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert c[:, 4, :, 0, 0].tolist() == masks
    frames = c[:, :4].transpose(1, 2)
    assert torch.equal(frames, z * torch.tensor(masks)[:, :, None, None, None])


def zero_v(noisy, tau):
    """v = 0: the prediction of x is alpha_tau times the input."""
    zero_v.calls.append((noisy, tau))
    return torch.zeros_like(noisy)


def test_every_second_clip_is_given_frames_as_the_model_predicts_them():
    z, zero_v.calls = normal(8, 6, 4, 2, 2), []
    options = ContextOptions(self_generated=0.5)
    found = self_generated_context(zero_v, z, draw(8), LINEAR, "v", options)
    (noisy, tau), = zero_v.calls
    assert noisy.shape == (4, 4, 4, 2, 2) and tau.max() < options.self_generated_tau
    assert torch.equal(found[1::2], z[1::2]), "the others keep their true frames"
    assert torch.equal(found[:, 4:], z[:, 4:])
    for i, at in enumerate(tau.tolist()):
        own = float(LINEAR.alpha_tau[at]) * noisy[i]
        assert torch.allclose(found[2 * i, :4], own, atol=1e-5)
        alpha, sigma = float(LINEAR.alpha_tau[at]), float(LINEAR.sigma_tau[at])
        if at > 100:
            assert ((noisy[i] - alpha * z[2 * i, :4]) / sigma).std() < 2


def test_a_share_of_a_batch_is_self_generated_wherever_a_part_begins():
    z, zero_v.calls = normal(6, 4, 1, 1, 1), []
    options = ContextOptions(self_generated=0.5)
    whole = self_generated_context(zero_v, z, draw(6), LINEAR, "v", options)
    parts = [self_generated_context(zero_v, part, draw(6, 0, k, 2), LINEAR, "v", options)
             for k, part in enumerate(z.split(3))]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_what_is_to_be_predicted_stays_the_true_clip():
    model, z = Zero(), normal(4, 4, 2, 2).half().float()
    options = ContextOptions(odds=(0.0, 0.0, 1.0), noisy_share=0.0, self_generated=0.5)
    context = prediction_context(zero_v, LINEAR, "v", options)
    zero_v.calls = []
    _, logs = diffusion_loss(model, latents_of(z), 4, 1, LINEAR, context=context)(draw(4))
    noisy, tau, conditions = model.calls[0]
    v = v_by_hand(noisy, tau, z.expand(4, -1, -1, -1, -1))
    assert torch.allclose(logs["loss"], v.square().flatten(1).mean(1), rtol=1e-2)
    given = conditions["context"][:, :4, :2].transpose(1, 2)
    true = [bool(torch.equal(one, z[:2])) for one in given]
    assert true == [False, True, False, True] and len(zero_v.calls) == 1


def test_interpolation_is_given_both_ends_and_the_parity_of_a_clip_is_its_regime():
    z = normal(4, 5, 4, 2, 2)
    windows = Windows(torch.tensor([0, 1, 2, 7]), torch.zeros(4, 5).long())
    options = ContextOptions(noisy_share=0.0)
    found = interpolation_context(LINEAR, options)(z, windows, draw(4))
    assert found["regime"].tolist() == [0, 1, 0, 1]
    c = found["context"].transpose(1, 2)
    assert torch.equal(c[:, [0, 4], :4], z[:, [0, 4]]) and (c[:, [0, 4], 4] == 1).all()
    assert (c[:, 1:4] == 0).all()


def test_a_box_map_is_that_of_the_frame_and_zeros_when_it_is_dropped():
    maps = normal(5, 4, 2, 2).half()
    windows = Windows(torch.zeros(3).long(), torch.tensor([[4], [2], [0]]))
    found = box_condition(maps, 0.1)(None, windows, Given([0.5, 0.09, 0.1]))["concat"]
    assert torch.equal(found, torch.stack([maps[4], 0 * maps[2], maps[0]]).float())


# -- the autoencoder and its critic ---------------------------------------------------------------

def gradient(value, weight):
    return torch.autograd.grad(value, weight, retain_graph=True)[0].norm()


@pytest.mark.parametrize("step", [4, 5])
def test_the_loss_of_the_autoencoder_by_hand(step):
    """L1 + 2e-4 KL, and from half of the run on 0.1 lambda (-D(x_hat))."""
    torch.manual_seed(0)
    model = shaken(Autoencoder(AutoencoderConfig((8, 16))), 0.05)
    x = normal(2, 3, 16, 16).clamp(-1, 1)
    one, two = autoencoder_stage.objectives(model, lambda draw: x, 10)
    assert one.module is model and two.lr_scale == 0.5 and one.lr_scale == 1
    critic = shaken(two.module)
    total, logs = one.loss(draw(2, step))
    posterior = model.posterior(x)
    deviation = (posterior.log_variance / 2).exp()
    noise = draw(2, step).normal(*posterior.mean.shape[1:])
    x_hat = model.decoder(posterior.mean + deviation * noise)
    l1 = (x - x_hat).abs().mean()
    standard = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(posterior.mean, deviation), standard).mean()
    wanted = l1 + 2e-4 * kl
    assert kl.item() > 0.02
    assert logs["kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    if step == 5:
        adversarial = -critic(x_hat).mean()
        last = model.decoder.last_layer
        weight = gradient(l1, last) / (gradient(adversarial, last) + 1e-4)
        assert abs(float(weight) - 1) > 0.05 and abs(adversarial.item()) > 1e-3
        wanted = wanted + 0.1 * float(weight) * adversarial
    # 2e-4 KL is 1e-5 and more of the total
    assert total.item() == pytest.approx(wanted.item(), abs=2e-7)
    grads = [torch.autograd.grad(value, model.decoder.last_layer, retain_graph=True)[0]
             for value in (total, wanted)]
    assert torch.allclose(*grads, atol=1e-7)
    critics = two.loss(draw(2, step))
    if step == 4:
        assert critics is None, "the critic joins half-way"
        return
    real, fake = critic(x), critic(x_hat)
    hinge = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    assert critics[0].item() == pytest.approx(hinge.item(), rel=1e-5)
    model.zero_grad()
    critics[0].backward()
    assert all(p.grad is None for p in model.parameters()), "its loss does not train the decoder"


class OneWeight(nn.Module):
    """A decoder of clips with one weight: x_hat = w base + 0.05 mean(z)."""

    def __init__(self, base):
        super().__init__()
        self.weight, self.base, self.seen = nn.Parameter(torch.tensor([0.7])), base, []
        self.autoencoder = self

    def encode(self, x):
        return x[:, :, ::4, ::4]

    def forward(self, z):
        self.seen.append(z)
        return self.weight * self.base + 0.05 * z.mean()


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_of_the_temporal_decoder_by_hand(step, dims):
    """L1 + 2 |change of the error from frame to frame|, and from a quarter on 0.1 lambda (-D)."""
    x, base = normal(2, 4, 3, 16, 16).clamp(-1, 1), normal(2, 4, 3, 16, 16, seed=1)
    torch.manual_seed(0)
    decoder, critic = OneWeight(base), shaken(PatchCritic(8, 2, dims), 0.2)
    one, two = decoder_stage.objectives(decoder, decoder, decoder.weight, critic, lambda draw: x, 8)
    assert one.module is decoder and two.module is critic and two.lr_scale == 0.5
    total, logs = one.loss(draw(2, step))
    x_hat = decoder.weight * base + 0.05 * decoder.seen[0].mean()
    error = x - x_hat
    change = torch.stack([error[:, t + 1] - error[:, t] for t in range(3)]).abs().mean()
    reconstruction = error.abs().mean() + 2 * change
    assert logs["change"].item() == pytest.approx(change.item(), rel=1e-5)

    def score(clips):
        clips = clips.flatten(0, 1) if dims == 2 else clips.transpose(1, 2)
        return critic(clips)
    wanted = reconstruction
    if step == 2:
        adversarial = -score(x_hat).mean()
        weight = (gradient(reconstruction, decoder.weight)
                  / (gradient(adversarial, decoder.weight) + 1e-4))
        assert abs(adversarial.item()) > 1e-3 and abs(float(weight) - 1) > 0.05
        wanted = wanted + 0.1 * float(weight) * adversarial
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    grads = [torch.autograd.grad(value, decoder.weight, retain_graph=True)[0]
             for value in (total, wanted)]
    assert torch.allclose(*grads, rtol=1e-4)
    found, _ = two.loss(draw(2, step))
    hinge = 0.5 * ((1 - score(x)).clamp(min=0).mean() + (1 + score(x_hat)).clamp(min=0).mean())
    assert found.item() == pytest.approx(hinge.item(), rel=1e-5)


def test_the_decoder_learns_from_latents_with_noise_of_its_own_in_each_frame():
    z = normal(1, 1, 4, 8, 8).expand(200, 4, -1, -1, -1)
    noise = decoder_stage.noisy_latents(z, draw(200)) - z
    assert torch.equal(noise, decoder_stage.noisy_latents(z, draw(200)) - z)
    assert not torch.equal(noise, decoder_stage.noisy_latents(z, draw(200, 1)) - z)
    strength = noise.flatten(1).std(1)
    assert strength.max() < 0.27 and strength.min() < 0.01, "uniform from 0 to 0.25, one a clip"
    assert float(strength.mean()) == pytest.approx(0.125, abs=0.015)
    unit = noise / strength[:, None, None, None, None]
    assert float(unit[:, 0].mul(unit[:, 1]).mean()) == pytest.approx(0, abs=0.05)
    frames = unit.flatten(2).std(2)
    assert frames.min() > 0.7 and frames.max() < 1.4, "a strength is that of all frames"


# -- the upsampler --------------------------------------------------------------------------------

def test_the_upsampler_draws_tau_by_its_own_options(monkeypatch):
    """Logit-normal around 500, stratified: neither that of frames nor that of clips."""
    assert upsampler_stage.OPTIONS == LossOptions(tau=(0.0, 1.4), stratified=True)
    seen = []

    def watched(draw, steps, options):
        seen.append((steps, options))
        return draw_tau(draw, steps, options)
    monkeypatch.setattr(upsampler_stage, "draw_tau", watched)
    model = Zero()
    model.schedule, model.prediction = LINEAR, "v"
    x = normal(4, 2, 3, 16, 16)
    upsampler_stage.upsampling_loss(model, lambda draw: x)(draw(4))
    assert seen == [(1000, upsampler_stage.OPTIONS)]


def test_patches_of_a_step_are_those_of_the_whole_batch():
    class Clip:
        name, frames = "numbered", torch.arange(2 * 24 * 32 * 3).remainder(251).byte().view(
            2, 24, 32, 3)
    store = patch_store([Clip], 1)
    halves = [draw_patches(store, 16, draw(8, 3, part, 2)) for part in range(2)]
    assert torch.equal(torch.cat(halves), draw_patches(store, 16, draw(8, 3)))


def test_added_noise_of_the_fake_networks_is_that_of_the_package():
    """v_by_hand inverts add_noise."""
    z, eps, tau = normal(2, 4, 2, 2), normal(2, 4, 2, 2, seed=1), torch.tensor([100, 700])
    alpha, sigma = LINEAR.at(tau, z)
    wanted = alpha * eps - sigma * z
    assert torch.allclose(v_by_hand(add_noise(LINEAR, z, eps, tau), tau, z), wanted, atol=1e-5)
