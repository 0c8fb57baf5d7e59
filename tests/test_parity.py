"""Every hand-written piece that diffusers has too says the same as diffusers does."""

import pytest
import torch
from einops import rearrange

from vldm_mini import diffusion
from vldm_mini.blocks import sinusoidal_embedding
from vldm_mini.diffusion import Schedule
from vldm_mini.temporal import Clip, InsertionPoint, TemporalAttention, TemporalConv, TemporalMix

pytest.importorskip("diffusers")

SCHEDULES = {
    "linear": (Schedule.linear(), dict(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2)),
    "scaled_linear": (
        Schedule.scaled_linear(),
        dict(beta_schedule="scaled_linear", beta_start=8.5e-4, beta_end=1.2e-2),
    ),
}
NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def shake(module, randn, size=0.05):
    """Every parameter moved, norms and biases included: a weight copied to the wrong layer
    shows."""
    with torch.no_grad():
        for p in module.parameters():
            p += size * randn(*p.shape)
    return module


# -- schedule, noise, DDIM ---------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_diffusers_alphas_cumprod_squared_up(name):
    from diffusers import DDPMScheduler

    schedule, settings = SCHEDULES[name]
    theirs = DDPMScheduler(**settings).alphas_cumprod.double()
    assert torch.allclose(
        schedule.alpha_tau**2, theirs, rtol=2e-5, atol=0
    )  # theirs is summed in float32
    assert torch.allclose(
        schedule.alpha_tau**2 + schedule.sigma_tau**2, torch.ones(1000).double(), atol=1e-12
    )


def test_the_schedules_pass_through_the_published_values():
    linear = Schedule.linear().alpha_tau ** 2
    assert linear[[0, 499, 999]].tolist() == pytest.approx([0.99990, 0.07859, 4.04e-5], rel=2e-3)
    assert float(Schedule.scaled_linear().alpha_tau[-1] ** 2) == pytest.approx(4.66e-3, rel=2e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noising_and_velocity_are_those_of_diffusers(name, randn):
    from diffusers import DDPMScheduler

    schedule, settings = SCHEDULES[name]
    x, eps, tau = randn(4, 3, 2, 8, 8), randn(4, 3, 2, 8, 8), torch.tensor([0, 20, 600, 999])
    theirs = DDPMScheduler(**settings)
    # theirs takes 1 - alpha_tau^2 in float32: at tau = 0 that is good to three digits of 0.01
    assert torch.allclose(
        diffusion.add_noise(schedule, x, eps, tau), theirs.add_noise(x, eps, tau), atol=3e-5
    )
    assert torch.allclose(
        diffusion.target(schedule, x, eps, tau, "v"), theirs.get_velocity(x, eps, tau), atol=3e-5
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_ddim_step_is_that_of_diffusers(name, prediction, eta, randn):
    schedule, settings = SCHEDULES[name]
    theirs = _ddim(settings, prediction)
    z, y = randn(2, 4, 8, 8), randn(2, 4, 8, 8)
    for tau in (999, 759, 499, 39):  # 25 steps: the step before is 40 earlier
        want = theirs.step(
            y, tau, z, eta=eta, generator=torch.Generator().manual_seed(1)
        ).prev_sample
        ours = diffusion.ddim_step(
            schedule,
            z,
            y,
            tau,
            max(tau - 40, -1),
            prediction,
            eta,
            torch.Generator().manual_seed(1),
        )
        assert torch.allclose(ours, want, rtol=1e-4, atol=1e-4), (tau, (ours - want).abs().max())


def _ddim(settings, prediction, steps=25):
    """diffusers' DDIM, its traps disarmed: no clipping (wrong for latents), a clean end, tau =
    999 included."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **settings,
        prediction_type=NAMES[prediction],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_whole_ddim_run_ends_where_diffusers_run_ends(prediction, eta, randn):
    schedule, settings = SCHEDULES["linear"]
    theirs = _ddim(settings, prediction)
    assert diffusion.ddim_times(25) == theirs.timesteps.tolist()
    z = randn(2, 4, 8, 8)
    denoise = lambda z, tau: torch.tanh(z) * (1 + tau[0] / 1000)
    ours = diffusion.ddim(
        schedule,
        denoise,
        z,
        diffusion.ddim_times(25),
        prediction,
        eta,
        torch.Generator().manual_seed(1),
    )
    generator = torch.Generator().manual_seed(1)
    for tau in theirs.timesteps:
        z = theirs.step(
            denoise(z, tau[None]), int(tau), z, eta=eta, generator=generator
        ).prev_sample
    assert torch.allclose(ours, z, rtol=1e-3, atol=1e-3 * float(z.abs().max()))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [4, 25])
def test_a_second_order_run_ends_where_diffusers_run_ends(prediction, steps, randn):
    from diffusers import DPMSolverMultistepScheduler

    schedule, settings = SCHEDULES["linear"]
    theirs = DPMSolverMultistepScheduler(
        **settings,
        prediction_type=NAMES[prediction],
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    z = randn(2, 4, 8, 8)
    denoise = lambda z, tau: torch.tanh(z) * (1 + tau[0] / 1000)
    ours = diffusion.ddim(schedule, denoise, z, theirs.timesteps.tolist(), prediction, order=2)
    first = diffusion.ddim(schedule, denoise, z, theirs.timesteps.tolist(), prediction)
    for tau in theirs.timesteps:
        z = theirs.step(denoise(z, tau[None]), int(tau), z).prev_sample
    close = lambda x: torch.allclose(x, z, rtol=1e-3, atol=1e-3 * float(z.abs().max()))
    assert close(ours) and not close(first)


def test_stable_diffusions_own_times_can_be_given_as_a_list(randn):
    """SD: 'leading' with steps_offset 1 starts at 961, not 999, and ends on alpha at tau = 0, not
    on 1."""
    from diffusers import DDIMScheduler

    schedule, settings = SCHEDULES["scaled_linear"]
    theirs = DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(25)
    times = theirs.timesteps.tolist()
    assert times[0] == 961 and times[-1] == 1
    z = randn(2, 4, 8, 8)
    ours = z
    for tau, tau_next in zip(times, times[1:] + [0]):  # the last step lands on tau = 0
        z = theirs.step(0.5 * z, tau, z).prev_sample
        ours = diffusion.ddim_step(schedule, ours, 0.5 * ours, tau, tau_next, "eps")
    assert torch.allclose(ours, z, rtol=1e-3, atol=1e-3 * float(z.abs().max()))


@pytest.mark.parametrize("dim", [32, 320])
def test_the_embedding_of_positions_is_diffusers_timesteps(dim):
    from diffusers.models.embeddings import Timesteps

    tau = torch.tensor([0, 1, 7, 499, 999])
    ours, theirs = sinusoidal_embedding(tau, dim), Timesteps(dim, True, downscale_freq_shift=0)(tau)
    assert torch.allclose(ours, theirs, atol=1e-4)  # float32 angles near 1000 are good to 6e-5
    assert torch.allclose(ours[:3], theirs[:3], atol=1e-6)


# -- training ---------------------------------------------


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_moving_average_is_diffusers_emamodel(decay, randn):
    from diffusers.training_utils import EMAModel

    from vldm_mini.training import EMA

    net = torch.nn.Linear(5, 3)
    ours, theirs = EMA(net, decay), EMAModel(net.parameters(), decay=decay)
    for _ in range(30):
        shake(net, randn, 1.0)
        ours.update(net)
        theirs.step(net.parameters())
        for mine, other in zip(ours.shadow.values(), theirs.shadow_params):
            assert torch.allclose(mine, other, atol=1e-6)
    assert not torch.allclose(ours.shadow["weight"], net.weight)
    ours.copy_to(net)
    assert torch.equal(ours.shadow["weight"], net.weight)


# -- temporal layers ---------------------------------------------


class Give(torch.nn.Module):
    """A 'temporal layer' that answers with a given tensor."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, z, clip):
        return self.answer


@pytest.mark.parametrize("mix", [-2.0, 0.0, 0.5, 3.0])
def test_the_mix_is_diffusers_alpha_blender(mix, randn):
    from diffusers.models.resnet import AlphaBlender

    z, z_t = randn(2, 4, 3, 5, 5), randn(2, 4, 3, 5, 5)
    ours = TemporalMix(Give(z_t), InsertionPoint("", "conv", 4))
    ours.mix.data.fill_(mix)
    for strategy in ("learned", "learned_with_images"):
        want = AlphaBlender(mix, strategy)(z, z_t, torch.zeros(2, 3))
        assert torch.allclose(ours(z, Clip(3)), want, atol=1e-6)
    ours.fixed_alpha = 0.3
    assert torch.allclose(ours(z, Clip(3)), AlphaBlender(0.3, "fixed")(z, z_t), atol=1e-6)
    images = AlphaBlender(mix, "learned_with_images")(z, z_t, torch.ones(2, 3))
    assert torch.equal(ours(z, Clip(3, image=True)), images) and torch.equal(images, z)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_the_temporal_conv_block_is_diffusers(eps, randn):
    from diffusers.models.resnet import TemporalResnetBlock

    from vldm_mini.stable_diffusion import copy_conv

    theirs = shake(TemporalResnetBlock(64, 64, 48, eps=eps), randn)
    ours = TemporalConv(InsertionPoint("", "conv", 64, emb_channels=48))
    copy_conv(ours, theirs)
    z, emb = 0.01 * randn(2, 64, 5, 4, 6), randn(2, 5, 48)  # small z: eps of the norms is felt
    with torch.no_grad():
        ours, theirs = ours(z, Clip(5, emb=emb)), theirs(z, emb)
    assert (ours - theirs).abs().max() <= 2e-6


@pytest.mark.parametrize("text_channels", [24, None])
def test_the_temporal_attention_block_is_diffusers(text_channels, randn):
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    from vldm_mini.stable_diffusion import copy_attention

    b, t, h, w, c = 2, 5, 3, 4, 64
    model = shake(
        TransformerSpatioTemporalModel(4, 16, c, cross_attention_dim=text_channels), randn
    )
    theirs, position = model.temporal_transformer_blocks[0], model.time_pos_embed
    ours = TemporalAttention(
        InsertionPoint("", "attention", c, text_channels=text_channels, heads=4)
    )
    copy_attention(ours, theirs, position)
    z, text = randn(b, c, t, h, w), randn(b, 7, text_channels) if text_channels else None
    with torch.no_grad():
        frames = position(model.time_proj(torch.arange(t)))  # t c
        x = rearrange(z, "b c t h w -> (b t) (h w) c") + frames.repeat(b, 1)[:, None]
        insertion_points = None if text is None else text.repeat_interleave(h * w, 0)  # (b h w) l d
        want = rearrange(theirs(x, t, insertion_points), "(b t) (h w) c -> b c t h w", t=t, h=h)
        ours = ours(z, Clip(t, text=text))
    assert (ours - want).abs().max() <= 5e-6
