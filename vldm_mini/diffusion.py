"""Diffusion: noise schedule, what the network predicts, DDIM, guidance. Knows no network.

Paper: section 2, eq. (1); DDIM from Song et al. 2021; guidance from Ho & Salimans 2022. Chapter 02 walks through it.

Symbols: `tau` is diffusion time, an integer from 0 (nearly clean) to num_steps - 1 (nearly noise); `alpha_tau` and
`sigma_tau` are the schedule's; `z` is whatever is diffused (latents, pixels, numbers), first axis the batch.
A network is anything called as `denoise(z, tau) -> y`, with y the prediction: "eps", "v" or "x0".
"""
from dataclasses import dataclass

import torch

PREDICTIONS = ("eps", "v", "x0")


# ---------------------------------------------------------------------------------------------------------------------
# The schedule: z_tau = alpha_tau x + sigma_tau eps, with alpha_tau^2 + sigma_tau^2 = 1 (variance preserving).

@dataclass(frozen=True)
class Schedule:
    """A variance-preserving noise schedule. `alpha_tau`, `sigma_tau`: float64 tensors of shape (num_steps,)."""
    alpha_tau: torch.Tensor
    sigma_tau: torch.Tensor

    @classmethod
    def from_betas(cls, betas):
        # alpha_tau^2 = prod_{s <= tau} (1 - beta_s)                                         Ho et al. 2020, eq. (4)
        alpha_squared = torch.cumprod(1 - betas.double(), dim=0)
        return cls(alpha_squared.sqrt(), (1 - alpha_squared).sqrt())

    @classmethod
    def linear(cls, num_steps=1000, beta_start=1e-4, beta_end=2e-2):
        """Betas extend linearly: the paper's schedule ("following Ho et al.", appendix F)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, num_steps=1000, beta_start=8.5e-4, beta_end=1.2e-2):
        """Square roots of the betas extend linearly: Stable Diffusion's schedule."""
        roots = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, num_steps, dtype=torch.float64)
        return cls.from_betas(roots ** 2)

    @property
    def num_steps(self):
        return len(self.alpha_tau)

    @property
    def log_snr(self):
        """lambda_tau = log(alpha_tau^2 / sigma_tau^2), falling in tau (paper, section 2)."""
        return 2 * (self.alpha_tau.log() - self.sigma_tau.log())

    def at(self, tau, like):
        """alpha_tau and sigma_tau for tau (b,), shaped (b, 1, ..., 1) to multiply `like` (b, ...)."""
        tau = torch.as_tensor(tau, device=self.alpha_tau.device).reshape(-1)
        if tau.min() < 0 or tau.max() >= self.num_steps:
            raise ValueError(f"tau must lie in 0..{self.num_steps - 1}, got {int(tau.min())}..{int(tau.max())}")
        shape = (-1,) + (1,) * (like.ndim - 1)
        pick = lambda table: table[tau].to(like.dtype).to(like.device).reshape(shape)  # noqa: E731
        return pick(self.alpha_tau), pick(self.sigma_tau)


def add_noise(schedule, x, eps, tau):
    """Forward process. x, eps (b, ...), tau (b,) -> z_tau (b, ...). One tau a sample: a clip's frames share it."""
    alpha_tau, sigma_tau = schedule.at(tau, x)
    # z_tau = alpha_tau x + sigma_tau eps                                                          paper, section 2
    return alpha_tau * x + sigma_tau * eps


# ---------------------------------------------------------------------------------------------------------------------
# Three views of one prediction. Knowing z_tau, each of eps, v, x0 gives the other two.

def _check(prediction):
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {prediction!r}")


def target(schedule, x, eps, tau, prediction="v"):
    """What the network should answer: y of eq. (1). x, eps (b, ...), tau (b,) -> (b, ...)."""
    _check(prediction)
    alpha_tau, sigma_tau = schedule.at(tau, x)
    # v = alpha_tau eps - sigma_tau x                                                             paper, eq. (1)
    return {"eps": eps, "x0": x, "v": alpha_tau * eps - sigma_tau * x}[prediction]


def to_x0(schedule, z, y, tau, prediction="v"):
    """The clean sample that prediction y (b, ...) at z (b, ...), tau (b,) stands for."""
    _check(prediction)
    alpha_tau, sigma_tau = schedule.at(tau, z)
    # x0 = alpha_tau z - sigma_tau v      x0 = (z - sigma_tau eps) / alpha_tau
    if prediction == "v":
        return alpha_tau * z - sigma_tau * y
    return y if prediction == "x0" else (z - sigma_tau * y) / alpha_tau


def to_eps(schedule, z, y, tau, prediction="v"):
    """The noise that prediction y (b, ...) at z (b, ...), tau (b,) stands for."""
    _check(prediction)
    alpha_tau, sigma_tau = schedule.at(tau, z)
    # eps = sigma_tau z + alpha_tau v     eps = (z - alpha_tau x0) / sigma_tau
    if prediction == "v":
        return sigma_tau * z + alpha_tau * y
    return y if prediction == "eps" else (z - alpha_tau * y) / sigma_tau


def denoising_error(schedule, denoise, x, tau, eps, prediction="v"):
    """y - f_theta(z_tau; c, tau): by how much the prediction is off. x, eps (b, ...), tau (b,) -> (b, ...)."""
    y = denoise(add_noise(schedule, x, eps, tau), tau)
    return target(schedule, x, eps, tau, prediction) - y.float()


def denoising_loss(schedule, denoise, x, tau, eps, prediction="v"):
    """Eq. (1): mean squared error of the prediction, one value a sample. x, eps (b, ...), tau (b,) -> (b,)."""
    # || y - f_theta(z_tau; c, tau) ||^2                                                          paper, eq. (1)
    return denoising_error(schedule, denoise, x, tau, eps, prediction).square().flatten(1).mean(1)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling.

def ddim_times(steps, num_steps=1000, power=1.0):
    """`steps` times from num_steps - 1 down; after the last comes the clean sample. power 1: evenly spaced; above: more
    of them where little noise is left.
    """
    if not 1 <= steps <= num_steps:
        raise ValueError(f"steps must lie in 1..{num_steps}, got {steps}")
    return [max(round(num_steps * ((steps - k) / steps) ** power), steps - k) - 1 for k in range(steps)]


def ddim_step(schedule, z, y, tau, tau_next, prediction="v", eta=0.0, generator=None):
    """One DDIM step. z, y (b, ...) at time tau -> z (b, ...) at time tau_next < tau; tau_next = -1 is the clean end.

    eta = 0 follows the ODE, eta = 1 is as noisy as DDPM. Song et al. 2021, eq. (12) and (16). generator: one for all
    samples, or a list of one each, so that a sample does not depend on how many are made.
    """
    x0, eps = (f(schedule, z, y, tau, prediction) for f in (to_x0, to_eps))
    if tau_next < 0:
        return x0
    (alpha_tau, sigma_tau), (alpha_next, sigma_next) = schedule.at(tau, z), schedule.at(tau_next, z)
    # sigma_ddim = eta (sigma_s / sigma_tau) sqrt(1 - alpha_tau^2 / alpha_s^2)
    sigma_ddim = eta * sigma_next / sigma_tau * (1 - alpha_tau ** 2 / alpha_next ** 2).sqrt()
    # z_s = alpha_s x0 + sqrt(sigma_s^2 - sigma_ddim^2) eps + sigma_ddim n
    z = alpha_next * x0 + (sigma_next ** 2 - sigma_ddim ** 2).clamp(min=0).sqrt() * eps
    if eta > 0:
        draw = lambda shape, g: torch.randn(shape, generator=g, dtype=z.dtype)                          # noqa: E731
        n = torch.stack([draw(z.shape[1:], g) for g in generator]) if isinstance(generator, list) else \
            draw(z.shape, generator)
        z = z + sigma_ddim * n.to(z.device)
    return z


def ddim(schedule, denoise, z, times, prediction="v", eta=0.0, generator=None, progress=None, callback=None, order=1):
    """Noise to sample. z (b, ...) standard normal; times: list of tau, strictly falling -> x0 (b, ...).

    order 2: each step goes where x0 is heading, by the answer before, and fewer steps do (DPM-Solver++ 2M, Lu et al.
    2022, arXiv 2211.01095; for eta = 0). `progress` wraps the list of times (tqdm, say); `callback(tau, z)` sees every
    state before its step. Raises ValueError if the times do not fall, and for order 2 with eta above 0.
    """
    times = [int(tau) for tau in times]
    if not times or any(a <= b for a, b in zip(times, times[1:])):
        raise ValueError("times must be a strictly falling list of tau, as ddim_times(steps) gives")
    if order not in (1, 2) or order == 2 and eta:
        raise ValueError(f"order is 1, or 2 without new noise (eta = 0); got order {order} and eta {eta}")
    before, log_snr = None, schedule.log_snr
    for tau, tau_next in zip(progress(times) if progress else times, times[1:] + [-1]):
        if callback:
            callback(tau, z)
        y, kind = denoise(z, torch.full((len(z),), tau, device=z.device)), prediction
        if order == 2:
            x0, kind = to_x0(schedule, z, y, tau, prediction), "x0"
            # D = x0 + (x0 - x0 before) h / (2 h before), h: step in log(alpha_tau / sigma_tau)   Lu et al., alg. 2
            share = (log_snr[tau_next] - log_snr[tau]) / (log_snr[tau] - log_snr[before[0]]) if before else 0
            y = x0 + float(share) / 2 * (x0 - before[1]) if before and tau_next >= 0 else x0
            before = tau, x0
        z = ddim_step(schedule, z, y, tau, tau_next, kind, eta, generator)
    return z


def guided(denoise_cond, denoise_null, scale):
    """Classifier-free guidance: scale 0 ignores the condition, 1 obeys it, above 1 exaggerates it."""
    return chained_guidance([denoise_null, denoise_cond], [scale])


def chained_guidance(denoisers, scales):
    """Guidance along a chain: each denoiser is told more than the one before, and each step has its own scale.

    Told nothing, told labels, told labels and context: the paper's eq. (4) together with guidance by labels. A denoiser
    whose share in the sum is zero is never asked.
    """
    if len(denoisers) != len(scales) + 1:
        raise ValueError(f"{len(denoisers)} denoisers have {len(denoisers) - 1} steps, got {len(scales)} scales")
    denoisers, scales = list(denoisers), list(scales)
    while scales and scales[0] == 1:                                      # f_0 + (f_1 - f_0) is f_1
        denoisers, scales = denoisers[1:], scales[1:]
    for i in reversed(range(1, len(scales))):
        if scales[i] == scales[i - 1]:                                    # w (f_1 - f_0) + w (f_2 - f_1): no f_1 in it
            del denoisers[i], scales[i]
    if not scales:
        return denoisers[0]

    def denoise(z, tau):
        y = told = denoisers[0](z, tau)
        for more, scale in zip(denoisers[1:], scales):
            # y = f(null) + w (f(cond) - f(null))               Ho & Salimans 2022, eq. (6); paper, eq. (4)
            before, told = told, more(z, tau)
            y = y + scale * (told - before)
        return y
    return denoise


# ---------------------------------------------------------------------------------------------------------------------
# Randomness.

def rng(seed: int, step: int, sample: int) -> torch.Generator:
    """The random generator of one sample of one step: the same wherever and whenever it is called."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + sample * 0x94D049BB133111EB) % 2 ** 64
    mixed = ((mixed ^ mixed >> 31) * 0xD6E8FEB86659FD93) % 2 ** 64                 # spread neighbours apart
    return torch.Generator().manual_seed((mixed ^ mixed >> 32) % 2 ** 63)
