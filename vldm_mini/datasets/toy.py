"""Worlds with closed-form answers: Gaussian mixtures, and the exact video world.

Paper: sections 2 and 3.1. A mixture of Gaussians stays one when noise is added to it, when it is
restricted to some coordinates and when it is conditioned on others. So its density, score, best
denoiser, conditional distributions and Frechet distances have closed forms, and what a network
learns can be compared with the truth. Chapters 01 and 02 walk through this module.

All mathematics runs in float64; results have the dtype of the input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ..blocks import sinusoidal_embedding, zero_init
from ..diffusion import Denoiser, Schedule, add_noise, target, to_eps
from .mixtures import GaussianMixture, denoiser, frechet

__all__ = [
    "GaussianMixture", "ScoreMLP", "as_clips", "coordinates", "denoiser", "fit_score", "frechet",
    "learned_score", "one_pixel", "pinwheel", "relative_error", "two_modes", "video_world",
]

# --------------------------------------------------------------------------------------------------
# Worlds in one and two dimensions.


def two_modes(distance: float = 2.0, std: float = 0.25, weight: float = 0.5) -> GaussianMixture:
    """A 1-D world: modes at -distance/2 and +distance/2; `weight` is the share of the upper one."""
    weights = torch.tensor([1 - weight, weight])
    means = torch.tensor([[-distance / 2], [distance / 2]])
    return GaussianMixture(weights, means, torch.full((2, 1, 1), std**2))


def pinwheel(arms: int = 3, long: float = 0.65, wide: float = 0.4) -> GaussianMixture:
    """The 2-D toy: `arms` slanted ellipses of unequal weight on a circle, mean 0, covariance I."""
    angle = torch.arange(arms, dtype=torch.float64) * 2 * math.pi / arms
    out = torch.stack([angle.cos(), angle.sin()], 1)  # arms 2, outwards
    slant = torch.stack([(angle + 0.9).cos(), (angle + 0.9).sin()], 1)
    across = torch.stack([-slant[:, 1], slant[:, 0]], 1)
    covs = long**2 * slant[:, :, None] * slant[:, None, :]
    covs = covs + wide**2 * across[:, :, None] * across[:, None, :]
    weights = 1 + torch.arange(arms, dtype=torch.float64) / arms
    return GaussianMixture(weights, 1.3 * out, covs).standardised()


# --------------------------------------------------------------------------------------------------
# The exact video world: a clip is one mode of a mixture, plus a Gaussian process in time.


def video_world(
    modes: GaussianMixture,
    frames: int | Sequence[float] = 8,
    length: float = 3.0,
    jump: float = 0.0,
) -> GaussianMixture:
    """The exact joint distribution of a clip's frames: a mode plus a Gaussian process in time.

    x_t = m_k + g_t, with one mode k for the clip and a Gaussian process g.

    modes    single-frame world (k modes, c coordinates): each frame alone has this distribution
    frames   number of frames, or their times (a finer grid contains the frames in between:
             `condition` on the key frames)
    length   correlation length in frames: correlation exp(-(s - t)^2 / (2 length^2))
    jump     probability that a frame changes its mode (all weights must then be equal); 0: never
    Returns a mixture over t * c coordinates: coordinate t * c + i is channel i of frame t.
    Raises ValueError for a jump with unequal weights, or with more than 4096 paths of modes.
    """
    if isinstance(frames, int):
        times = torch.arange(frames, dtype=torch.float64)
    else:
        times = torch.as_tensor(frames).double()
    correlation = torch.exp(-0.5 * ((times[:, None] - times) / length).square())  # t t
    # MINI: a millionth of white noise per frame: a smooth process is numerically singular
    correlation = (1 - 1e-6) * correlation + 1e-6 * torch.eye(len(times), dtype=torch.float64)
    paths, weights = _mode_paths(modes, len(times), jump)  # p t, p
    means = rearrange(modes.means[paths], "p t c -> p (t c)")
    # g_t = R_k(t) n_t with R_k R_k^T = C_k and one smooth process n per channel
    root = torch.linalg.cholesky(modes.covs)  # k c c
    mixed = torch.einsum("ptij,psmj,ts->ptism", root[paths], root[paths], correlation)
    return GaussianMixture(weights, means, rearrange(mixed, "p t i s m -> p (t i) (s m)"))


def _mode_paths(modes: GaussianMixture, frames: int, jump: float) -> tuple[Tensor, Tensor]:
    """The mode of each frame for every possible path of modes (p, t), and its probability (p,)."""
    k = len(modes.weights)
    if jump == 0:
        return torch.arange(k)[:, None].expand(k, frames), modes.weights
    if k < 2 or not torch.allclose(modes.weights, modes.weights[0]):
        raise ValueError(
            "jump > 0 needs two or more modes of equal weight: otherwise a frame's distribution "
            "depends on its time"
        )
    if k**frames > 4096:
        raise ValueError(
            f"{k} modes in {frames} frames make {k**frames} paths: at most 4096, take fewer frames"
        )
    paths = torch.tensor(list(itertools.product(range(k), repeat=frames)))
    jumps = (paths[:, 1:] != paths[:, :-1]).sum(1)
    # p(path) ~ (jump / (k - 1))^jumps (1 - jump)^(frames - 1 - jumps)
    return paths, (jump / (k - 1)) ** jumps * (1 - jump) ** (frames - 1 - jumps)


def coordinates(frames: Sequence[int], channels: int = 1) -> list[int]:
    """The coordinates of the given frames in a video world."""
    return [t * channels + i for t in frames for i in range(channels)]


def as_clips(x: Tensor, channels: int = 1) -> Tensor:
    """Samples of a video world as videos of one pixel: (b, t * c) -> (b, t, c, 1, 1)."""
    return rearrange(x, "b (t c) -> b t c 1 1", c=channels)


class OnePixelConv(nn.Linear):
    """The centre of a convolution's kernel, all that one pixel uses: (b c 1 1) -> (b d 1 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(x[:, :, 0, 0]), "b c -> b c 1 1")


def one_pixel(net: nn.Module) -> nn.Module:
    """Replace every convolution of an image backbone by its centre, in place, to save time.

    On images of one pixel the network computes the same function, since eight ninths of a 3x3
    kernel are multiplied by padding. The names of its weights stay.
    """
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if not isinstance(conv, nn.Conv2d):
                continue
            h, w = conv.kernel_size
            centre = OnePixelConv(conv.in_channels, conv.out_channels)
            centre.weight.data = conv.weight.data[:, :, h // 2, w // 2]
            centre.bias.data = conv.bias.data
            setattr(parent, name, centre)
    return net


# --------------------------------------------------------------------------------------------------
# A network small enough to learn a toy's score in a minute.


class ScoreMLP(nn.Module):
    """A residual perceptron that predicts v, at first 0: forward(z (b, d), tau (b,)) -> (b, d).

    v = sigma_tau F(z, lambda_tau): at low noise v shrinks like sigma_tau, so that F need not. For
    data of mean 0 and covariance I, v = 0 is the best prediction of a single Gaussian; F learns
    what makes the data a mixture.
    """

    def __init__(self, schedule: Schedule, d: int = 2, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.schedule = schedule
        self.embed = nn.Linear(width, width)
        self.enter = nn.Linear(d, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = zero_init(nn.Linear(width, d))

    def forward(self, z: Tensor, tau: Tensor) -> Tensor:
        log_snr = self.schedule.log_snr[tau].float()
        emb = self.embed(sinusoidal_embedding(log_snr, self.embed.in_features))
        x = self.enter(z)
        for layer in self.hidden:
            x = x + nn.functional.silu(layer(x + emb))
        _, sigma_tau = self.schedule.at(tau, z)
        return sigma_tau * self.leave(x)


def fit_score(
    world: GaussianMixture,
    schedule: Schedule,
    generator: torch.Generator,
    steps: int = 3000,
    batch: int = 512,
    data: int = 8192,
    lr: float = 1e-2,
    **shape: int,
) -> tuple[ScoreMLP, list[float]]:
    """A ScoreMLP trained by eq. (1) on exact samples of the world, and its loss at each step.

    Every step samples `data` new points and adds noise to `batch` of them. `generator` also seeds
    the weights; `shape`: width and depth of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        net = ScoreMLP(schedule, world.d, **shape)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))

    def warm_up_then_decay(step: int) -> float:
        return min(1.0, (step + 1) / 50) * (1 - step / max(1, steps)) ** 2

    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_up_then_decay)
    losses = []
    for _ in range(steps):
        x = world.sample(data, generator)
        # MINI: low noise is sampled more often than by the paper's uniform tau: there the score has
        # most detail
        share = torch.rand(batch, generator=generator) ** 2
        tau = (schedule.num_steps * share).long().sort().values
        eps = torch.randn(batch, world.d, generator=generator)
        z = add_noise(schedule, x[:batch], eps, tau)
        y = _mean_target(schedule, x, z, tau)
        loss = (net(z, tau) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item())
    return net.eval().requires_grad_(False), losses


def _mean_target(schedule: Schedule, x: Tensor, z: Tensor, tau: Tensor) -> Tensor:
    """E[v | z] over the points x (n, d) as data set: z (b, d), tau (b,) increasing -> (b, d)."""
    # MINI: the point from which z was generated is random. Averaging over it leaves the minimum of
    # eq. (1) where it is and removes most of the variance of its gradient (Xu et al. 2023, "Stable
    # target field"). At low noise few points are likely, so that the quarter of z with the lowest
    # noise is compared with all points, the others with as many as there are z
    quarter = len(z) // 4
    lowest = _mean_point(schedule, x, z[:quarter], tau[:quarter])
    others = _mean_point(schedule, x[: len(z)], z[quarter:], tau[quarter:])
    mean = torch.cat([lowest, others])
    return target(schedule, mean, to_eps(schedule, z, mean, tau, "x0"), tau, "v")


def _mean_point(schedule: Schedule, points: Tensor, z: Tensor, tau: Tensor) -> Tensor:
    """E[x | z] over the points (n, d) as data set: z (b, d), tau (b,) -> (b, d)."""
    if len(z) == 0:
        return z
    alpha_tau, sigma_tau = schedule.at(tau, z)
    # log N(z; alpha_tau x, sigma_tau^2 I) = (alpha_tau z . x - alpha_tau^2 |x|^2 / 2) / sigma_tau^2
    # up to a constant, as one product of matrices: (b d+1) (d+1 n)
    left = torch.cat([alpha_tau * z, -0.5 * alpha_tau**2], 1) / sigma_tau**2
    right = torch.cat([points, points.square().sum(1, keepdim=True)], 1)
    return (left @ right.T).softmax(1) @ points


def learned_score(net: Denoiser, schedule: Schedule, z: Tensor, tau: int) -> Tensor:
    """The score of a v-predicting network at step tau: z (n, d) -> (n, d)."""
    times = torch.full((len(z),), tau)
    eps = to_eps(schedule, z, net(z, times), times, "v")
    # s(z) = -eps / sigma_tau
    return -eps / float(schedule.sigma_tau[tau])


def relative_error(guess: Tensor, truth: Tensor) -> float:
    """sqrt(E|guess - truth|^2 / E|truth|^2) over samples (n, d)."""
    return float(((guess - truth).double().square().sum() / truth.double().square().sum()).sqrt())
