"""Diffusion: noise schedule, prediction types, DDIM, guidance. Knows no network.

Paper: section 2, eq. (1); DDIM from Song et al. 2021; guidance from Ho & Salimans 2022.
Chapter 02 walks through this module.

Symbols: `tau` is diffusion time, an integer from 0 (almost clean) to num_steps - 1 (almost pure
noise); `alpha_tau` and `sigma_tau` belong to the schedule; `z` is whatever is diffused (latents,
pixels, numbers), with the batch as its first axis. A denoiser is any callable
`denoise(z, tau) -> y` whose prediction y has the shape of z and is of type "eps", "v" or "x0".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .schedule import Schedule, ScheduleConfig

__all__ = [
    "Denoiser", "PREDICTIONS", "Schedule", "ScheduleConfig", "add_noise", "chained_guidance",
    "check_prediction", "ddim", "ddim_step", "ddim_times", "denoising_error", "denoising_loss",
    "guided", "rng", "target", "to_eps", "to_x0",
]
PREDICTIONS = ("eps", "v", "x0")

Denoiser = Callable[[Tensor, Tensor], Tensor]


def add_noise(schedule: Schedule, x: Tensor, eps: Tensor, tau: int | Tensor) -> Tensor:
    """Forward process: x, eps (b, ...), tau (b,) -> z_tau (b, ...). A clip's frames share tau."""
    alpha_tau, sigma_tau = schedule.at(tau, x)
    # z_tau = alpha_tau x + sigma_tau eps                                      paper, section 2
    return alpha_tau * x + sigma_tau * eps


# --------------------------------------------------------------------------------------------------
# Three views of one prediction. Given z_tau, each of eps, v and x0 determines the other two.


def check_prediction(schedule: Schedule, prediction: str) -> None:
    """Raise ValueError for an unknown prediction type, or for one that the schedule rules out.

    Where alpha_tau = 0, z is the noise itself: an eps-prediction does not determine x0.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {prediction!r}")
    if prediction == "eps" and float(schedule.alpha_tau[-1]) == 0:
        raise ValueError(
            "prediction 'eps' cannot be used with a schedule that ends in pure noise "
            "(zero terminal SNR, alpha_tau = 0): use 'v' or 'x0'"
        )


def target(
    schedule: Schedule, x: Tensor, eps: Tensor, tau: int | Tensor, prediction: str = "v"
) -> Tensor:
    """The training target y of eq. (1): x, eps (b, ...), tau (b,) -> (b, ...)."""
    check_prediction(schedule, prediction)
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x
    alpha_tau, sigma_tau = schedule.at(tau, x)
    # v = alpha_tau eps - sigma_tau x                                           paper, eq. (1)
    return alpha_tau * eps - sigma_tau * x


def to_x0(
    schedule: Schedule, z: Tensor, y: Tensor, tau: int | Tensor, prediction: str = "v"
) -> Tensor:
    """The clean sample (b, ...) implied by the prediction y (b, ...) at z (b, ...), tau (b,)."""
    check_prediction(schedule, prediction)
    if prediction == "x0":
        return y
    alpha_tau, sigma_tau = schedule.at(tau, z)
    if prediction == "eps":
        # x0 = (z - sigma_tau eps) / alpha_tau
        return (z - sigma_tau * y) / alpha_tau
    # x0 = alpha_tau z - sigma_tau v
    return alpha_tau * z - sigma_tau * y


def to_eps(
    schedule: Schedule, z: Tensor, y: Tensor, tau: int | Tensor, prediction: str = "v"
) -> Tensor:
    """The noise (b, ...) implied by the prediction y (b, ...) at z (b, ...), tau (b,)."""
    check_prediction(schedule, prediction)
    if prediction == "eps":
        return y
    alpha_tau, sigma_tau = schedule.at(tau, z)
    if prediction == "x0":
        # eps = (z - alpha_tau x0) / sigma_tau
        return (z - alpha_tau * y) / sigma_tau
    # eps = sigma_tau z + alpha_tau v
    return sigma_tau * z + alpha_tau * y


def denoising_error(
    schedule: Schedule,
    denoise: Denoiser,
    x: Tensor,
    tau: Tensor,
    eps: Tensor,
    prediction: str = "v",
) -> Tensor:
    """y - f_theta(z_tau; c, tau), in float32 or better: x, eps (b, ...), tau (b,) -> (b, ...)."""
    wanted = target(schedule, x, eps, tau, prediction)
    y = denoise(add_noise(schedule, x, eps, tau), tau)
    return wanted - y.to(torch.promote_types(y.dtype, torch.float32))


def denoising_loss(
    schedule: Schedule,
    denoise: Denoiser,
    x: Tensor,
    tau: Tensor,
    eps: Tensor,
    prediction: str = "v",
) -> Tensor:
    """Eq. (1), the mean squared error of each sample: x, eps (b, ...), tau (b,) -> (b,)."""
    error = denoising_error(schedule, denoise, x, tau, eps, prediction)
    # || y - f_theta(z_tau; c, tau) ||^2                                        paper, eq. (1)
    return error.square().flatten(1).mean(1)


# --------------------------------------------------------------------------------------------------
# Sampling.


def ddim_times(steps: int, num_steps: int = 1000, power: float = 1.0) -> list[int]:
    """`steps` sampling times, decreasing from num_steps - 1; the clean sample follows the last.

    power 1 spaces them evenly; a larger power puts more of them at low noise.
    Raises ValueError unless 1 <= steps <= num_steps.
    """
    if not 1 <= steps <= num_steps:
        raise ValueError(f"steps must lie in 1..{num_steps}, got {steps}")
    times = []
    for remaining in range(steps, 0, -1):
        time = round(num_steps * (remaining / steps) ** power)
        times.append(max(time, remaining) - 1)  # no time twice, however large the power
    return times


def ddim_step(
    schedule: Schedule,
    z: Tensor,
    y: Tensor,
    tau: int,
    tau_next: int,
    prediction: str = "v",
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """One DDIM step from time tau to time tau_next < tau. Song et al. 2021, eq. (12) and (16).

    z, y (b, ...): state and prediction at tau -> state (b, ...) at tau_next, where -1 stands for
    the clean end. eta = 0 follows the ODE, eta = 1 adds as much noise as DDPM. generator: one for
    the whole batch, or a list with one for each sample, so that a sample does not depend on the
    size of its batch; noise is sampled on the generator's own device.
    """
    x0 = to_x0(schedule, z, y, tau, prediction)
    if tau_next < 0:
        return x0
    eps = to_eps(schedule, z, y, tau, prediction)
    alpha_tau, sigma_tau = schedule.at(tau, z)
    alpha_next, sigma_next = schedule.at(tau_next, z)
    # sigma_ddim = eta (sigma_s / sigma_tau) sqrt(1 - alpha_tau^2 / alpha_s^2)
    sigma_ddim = eta * sigma_next / sigma_tau * (1 - alpha_tau**2 / alpha_next**2).sqrt()
    # z_s = alpha_s x0 + sqrt(sigma_s^2 - sigma_ddim^2) eps + sigma_ddim n
    z = alpha_next * x0 + (sigma_next**2 - sigma_ddim**2).clamp(min=0).sqrt() * eps
    if eta > 0:
        z = z + sigma_ddim * _noise_like(z, generator)
    return z


def _noise_like(z: Tensor, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
    """Standard normal noise of the shape of z (b, ...), from one generator or from one a sample."""
    if isinstance(generator, list):
        return torch.stack([_noise_like(sample, g) for sample, g in zip(z, generator, strict=True)])
    device = z.device if generator is None else generator.device
    return torch.randn(z.shape, generator=generator, dtype=z.dtype, device=device).to(z.device)


def ddim(
    schedule: Schedule,
    denoise: Denoiser,
    z: Tensor,
    times: Sequence[int],
    prediction: str = "v",
    eta: float = 0.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: Callable[[list[int]], Iterable[int]] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    order: int = 1,
) -> Tensor:
    """Sample: z (b, ...) standard normal noise, times strictly falling tau -> x0 (b, ...).

    order 2 extrapolates each x0 from the previous one and needs fewer steps (DPM-Solver++ 2M, Lu
    et al. 2022, arXiv 2211.01095; for eta = 0 only). `progress` wraps the list of times (tqdm, for
    example); `callback(tau, z)` receives every state before its step. eta, generator: see
    `ddim_step`. Raises ValueError if the times do not fall, for another order, and for order 2 with
    eta above 0.
    """
    check_prediction(schedule, prediction)
    times = [int(tau) for tau in times]
    if not times or any(a <= b for a, b in zip(times, times[1:])):
        raise ValueError("times must be a strictly falling list of tau, as ddim_times(steps) gives")
    if order not in (1, 2) or (order == 2 and eta):
        raise ValueError(
            f"order is 1, or 2 without new noise (eta = 0); got order {order} and eta {eta}"
        )
    tau_before = x0_before = None
    for tau, tau_next in zip(progress(times) if progress else times, times[1:] + [-1]):
        if callback:
            callback(tau, z)
        y = denoise(z, torch.full((len(z),), tau, device=z.device))
        if order == 1:
            z = ddim_step(schedule, z, y, tau, tau_next, prediction, eta, generator)
            continue
        x0 = y = to_x0(schedule, z, y, tau, prediction)
        if tau_before is not None and tau_next >= 0:
            # D = x0 + h / (2 h_before) (x0 - x0_before)                 Lu et al. 2022, alg. 2
            y = x0 + _step_ratio(schedule, tau_before, tau, tau_next) / 2 * (x0 - x0_before)
        tau_before, x0_before = tau, x0
        z = ddim_step(schedule, z, y, tau, tau_next, "x0")
    return z


def _step_ratio(schedule: Schedule, tau_before: int, tau: int, tau_next: int) -> float:
    """h / h_before, the lengths in log(alpha_tau / sigma_tau) of this step and of the one before.

    It is 0 after a first step from alpha_tau = 0, whose length is infinite.
    """
    before, here, following = schedule.log_snr[[tau_before, tau, tau_next]].tolist()
    return (following - here) / (here - before)


# --------------------------------------------------------------------------------------------------
# Guidance.


def guided(denoise_cond: Denoiser, denoise_null: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, eq. (6)).

    scale 0 ignores the condition, 1 is the conditional model, above 1 exaggerates the condition.
    """
    return chained_guidance([denoise_null, denoise_cond], [scale])


def chained_guidance(denoisers: Sequence[Denoiser], scales: Sequence[float]) -> Denoiser:
    """Guidance along a chain of denoisers f_0, f_1, ..., each with one more condition.

    scales: one for each step of the chain. With no condition, then labels, then labels and context
    frames, this is context guidance, eq. (4) of the paper, together with guidance by labels.
    A denoiser whose total weight is zero is not evaluated. Raises ValueError unless there is
    exactly one denoiser more than there are scales.
    """
    if len(denoisers) != len(scales) + 1:
        raise ValueError(
            f"{len(denoisers)} denoisers have {len(denoisers) - 1} steps, got {len(scales)} scales"
        )
    # y = f_0 + sum_i w_i (f_i - f_{i-1}) = sum_i (w_i - w_{i+1}) f_i, with w_0 = 1 and w_{n+1} = 0:
    # where w_i = w_{i+1}, the denoiser f_i cancels
    weights = [1, *scales, 0]
    active = [i for i in range(len(denoisers)) if weights[i] != weights[i + 1]]
    first, *rest = active
    if not rest:
        return denoisers[first]

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        y = previous = denoisers[first](z, tau)
        for i in rest:
            current = denoisers[i](z, tau)
            # y = f(null) + w (f(cond) - f(null))        Ho & Salimans 2022, eq. (6); paper, eq. (4)
            y = y + weights[i] * (current - previous)
            previous = current
        return y

    return denoise


# --------------------------------------------------------------------------------------------------
# Randomness.


def rng(seed: int, step: int, sample: int) -> torch.Generator:
    """The CPU generator of one sample of one step: the same wherever and whenever it is called."""
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + sample * 0x94D049BB133111EB
    mixed %= 2**64
    # xorshift and multiply, so that the seeds of neighbouring samples share no pattern
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) % 2**64
    return torch.Generator().manual_seed((mixed ^ (mixed >> 32)) % 2**63)
