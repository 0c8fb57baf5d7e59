"""Values computed by hand, for slips that no other test would notice (see tests/mutants)."""
import math

import pytest
import torch

from tests.tiny import normal, shaken, tiny_unet
from vldm_mini.context import prediction_windows, tiles
from vldm_mini.diffusion import Schedule, ddim_step, rng
from vldm_mini.temporal import VideoModel, band, insert

LINEAR = Schedule.linear()
TAU = torch.tensor([100, 700])


# -- diffusion -----------------------------------------------------------------------------------

@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
def test_a_ddim_step_is_the_formula_at_any_eta(eta):
    """Song et al. 2021, eq. (12) and (16), written out with Python's numbers."""
    tau, tau_next = 600, 400
    alpha, sigma = float(LINEAR.alpha_tau[tau]), float(LINEAR.sigma_tau[tau])
    alpha_s, sigma_s = float(LINEAR.alpha_tau[tau_next]), float(LINEAR.sigma_tau[tau_next])
    z, eps = normal(2, 3).double(), normal(2, 3, seed=1).double()
    x0 = (z - sigma * eps) / alpha
    new = eta * sigma_s / sigma * math.sqrt(1 - alpha ** 2 / alpha_s ** 2)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    wanted = alpha_s * x0 + math.sqrt(sigma_s ** 2 - new ** 2) * eps + new * noise
    generator = torch.Generator().manual_seed(7)
    found = ddim_step(LINEAR, z, eps, tau, tau_next, "eps", eta, generator)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_pure_noise():
    rescaled = LINEAR.zero_terminal_snr()
    assert float(rescaled.alpha_tau[0]) == pytest.approx(float(LINEAR.alpha_tau[0]), rel=1e-12)
    assert float(rescaled.alpha_tau[-1]) == 0 and float(rescaled.sigma_tau[-1]) == 1
    first, last = float(LINEAR.alpha_tau[0]), float(LINEAR.alpha_tau[-1])
    middle = (float(LINEAR.alpha_tau[500]) - last) * first / (first - last)
    assert float(rescaled.alpha_tau[500]) == pytest.approx(middle, rel=1e-12)


def test_seed_step_and_sample_each_give_other_noise():
    keys = [(seed, step, sample) for seed in range(3) for step in range(3) for sample in range(3)]
    noise = [torch.randn(8, generator=rng(*key)) for key in keys]
    assert len({tuple(one.tolist()) for one in noise}) == len(keys)
    assert torch.equal(noise[5], torch.randn(8, generator=rng(*keys[5])))


# -- windows -------------------------------------------------------------------------------------

def test_a_part_is_extended_on_both_sides_as_far_as_there_is_any():
    assert tiles(10, 4, 2) == [(slice(0, 6), slice(0, 4)), (slice(2, 10), slice(4, 8)),
                               (slice(6, 10), slice(8, 10))]


def test_windows_of_a_rollout_by_hand():
    assert prediction_windows(7, 4, context=2, done=1) == [
        ([0], [1, 2, 3]), ([2, 3], [4, 5]), ([4, 5], [6])]


# -- temporal layers -----------------------------------------------------------------------------

def test_a_band_of_reach_2_by_hand():
    wanted = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert band(5, 2).int().tolist() == wanted


def video_model(**options):
    """A tiny U-Net with random temporal layers."""
    backbone = tiny_unet()
    torch.manual_seed(0)
    return VideoModel(backbone, shaken(insert(backbone, **options))).eval()


@torch.no_grad()
def test_regime_context_and_the_alpha_of_a_call_each_change_the_output():
    model, z = video_model(regimes=2, context_channels=5), normal(2, 4, 4, 4, 4)
    regime = torch.tensor([0, 1])
    plain = model(z, TAU, regime=regime)
    other = model(z, TAU, regime=1 - regime)
    assert not torch.allclose(plain[0], other[0]) and not torch.allclose(plain[1], other[1])
    same_regime = model(z, TAU, regime=torch.tensor([0, 0]))
    assert torch.allclose(plain[0], same_regime[0], atol=1e-6), "a clip has a regime of its own"
    context = normal(2, 5, 4, 4, 4, seed=1)
    assert not torch.allclose(plain, model(z, TAU, regime=regime, context=context))
    zeros = torch.zeros_like(context)
    assert torch.allclose(plain, model(z, TAU, regime=regime, context=zeros), atol=1e-6)
    image = model(z, TAU, regime=regime, alpha=1.0)
    frames = model.backbone(z.flatten(0, 1), TAU.repeat_interleave(4)).view_as(z)
    assert torch.equal(image, frames) and not torch.allclose(image, plain)
