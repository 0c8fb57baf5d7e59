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
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ..blocks import sinusoidal_embedding, zero_init
from ..diffusion import Denoiser, Schedule, add_noise, target, to_eps

# --------------------------------------------------------------------------------------------------
# A mixture of Gaussians and its closed forms.


@dataclass(frozen=True)
class GaussianMixture:
    """p(x) = sum_k weights_k N(x; means_k, covs_k), x of d coordinates.

    weights (k,): not negative, normalised to sum to 1. means (k, d). covs (k, d, d): symmetric,
    positive semi-definite; zero covariances are a data set of k points, which has a density only
    after `noised`. Stored as float64. Raises ValueError where the shapes do not agree, the weights
    are negative or a matrix is not a covariance.
    """

    weights: Tensor
    means: Tensor
    covs: Tensor

    def __post_init__(self) -> None:
        weights = torch.as_tensor(self.weights).detach().double()
        means = torch.as_tensor(self.means).detach().double()
        covs = torch.as_tensor(self.covs).detach().double()
        k, d = means.shape if means.ndim == 2 else (-1, -1)
        if weights.shape != (k,) or covs.shape != (k, d, d):
            raise ValueError(
                f"give weights (k,), means (k, d), covs (k, d, d), not {tuple(weights.shape)}, "
                f"{tuple(means.shape)}, {tuple(covs.shape)}"
            )
        if not (weights >= 0).all() or weights.sum() <= 0:
            raise ValueError("weights must not be negative, and not all zero")
        lowest = torch.linalg.eigvalsh(covs).min()
        if not torch.allclose(covs, covs.mT) or lowest < -1e-6 * covs.abs().max():
            raise ValueError(
                "each of covs must be a covariance: symmetric, with no negative eigenvalue"
            )
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "covs", covs)

    @property
    def d(self) -> int:
        """Number of coordinates."""
        return self.means.shape[1]

    def sample(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """n exact samples (n, d): first a mode, then a Gaussian around it."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.d, generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.covs)
        # x = m_k + R_k n with R_k R_k^T = C_k, which exists for a singular C_k as well
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]  # k d d
        return (self.means[mode] + torch.einsum("nij,nj->ni", root[mode], noise)).to(dtype)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of the whole mixture."""
        mean = self.weights @ self.means
        away = self.means - mean
        # sum_k w_k (C_k + (m_k - m) (m_k - m)^T)
        second = self.covs + away[:, :, None] * away[:, None, :]
        return mean, torch.einsum("k,kij->ij", self.weights, second)

    # -- noise ---------------------------------------------

    def noised(self, alpha_tau: float, sigma_tau: float) -> GaussianMixture:
        """p_tau, the distribution of alpha_tau x + sigma_tau eps."""
        alpha_tau, sigma_tau = float(alpha_tau), float(sigma_tau)
        eye = torch.eye(self.d, dtype=torch.float64)
        # the same weights, means alpha_tau m_k, covariances alpha_tau^2 C_k + sigma_tau^2 I
        covs = alpha_tau**2 * self.covs + sigma_tau**2 * eye
        return GaussianMixture(self.weights, alpha_tau * self.means, covs)

    def _component_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log(weight_k N_k(x)) as (n, k), and C_k^-1 (x - m_k) as (n, k, d)."""
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(
                f"this mixture has {self.d} coordinates: give x as (n, {self.d}), "
                f"not {tuple(x.shape)}"
            )
        chol, bad = torch.linalg.cholesky_ex(self.covs)
        if bad.any():
            raise ValueError(
                "a covariance is singular: no density. Use .noised(alpha_tau, sigma_tau) instead"
            )
        away = rearrange(x.double()[:, None] - self.means, "n k d -> k d n")
        white = torch.linalg.solve_triangular(chol, away, upper=False)  # L^-1 (x - m)
        solved = torch.linalg.solve_triangular(chol.mT, white, upper=True)  # C^-1 (x - m)
        log_det = chol.diagonal(dim1=1, dim2=2).log().sum(1)  # half the log determinant of C
        # log N(x; m, C) = -|L^-1 (x - m)|^2 / 2 - log det(C) / 2 - d log(2 pi) / 2
        constant = log_det + 0.5 * self.d * math.log(2 * math.pi)
        log_normal = -0.5 * white.square().sum(1) - constant[:, None]
        log_terms = (self.weights.log()[:, None] + log_normal).mT
        return log_terms, rearrange(solved, "k d n -> n k d")

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x): x (n, d) -> (n,)."""
        return self._component_terms(x)[0].logsumexp(1).to(x.dtype)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(mode k | x): x (n, d) -> (n, k), rows sum to 1."""
        return self._component_terms(x)[0].softmax(1).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """grad_x log p(x) = -sum_k p(k|x) C_k^-1 (x - m_k): x (n, d) -> (n, d)."""
        log_terms, solved = self._component_terms(x)
        return -torch.einsum("nk,nkd->nd", log_terms.softmax(1), solved).to(x.dtype)

    def posterior_mean(self, z: Tensor, alpha_tau: float, sigma_tau: float) -> Tensor:
        """E[x | z] for z = alpha_tau x + sigma_tau eps, the best denoiser: z (n, d) -> (n, d)."""
        log_terms, solved = self.noised(alpha_tau, sigma_tau)._component_terms(z)
        # E[x | z] = sum_k p(k|z) (m_k + alpha_tau C_k S_k^-1 (z - alpha_tau m_k)),
        # S_k = alpha_tau^2 C_k + sigma_tau^2 I
        gain = float(alpha_tau) * torch.einsum("kij,nkj->nki", self.covs, solved)
        per_mode = self.means + gain  # n k d
        return torch.einsum("nk,nkd->nd", log_terms.softmax(1), per_mode).to(z.dtype)

    def predict(
        self, z: Tensor, alpha_tau: float, sigma_tau: float, prediction: str = "v"
    ) -> Tensor:
        """The output of a perfect network, E[x0 | z], E[eps | z] or E[v | z]: z (n, d) -> (n, d).

        Raises ValueError for an unknown prediction type.
        """
        alpha_tau, sigma_tau = float(alpha_tau), float(sigma_tau)
        x0 = self.posterior_mean(z.double(), alpha_tau, sigma_tau)
        # z = alpha_tau x0 + sigma_tau eps, v = alpha_tau eps - sigma_tau x0       paper, section 2
        eps = (z.double() - alpha_tau * x0) / sigma_tau
        outputs = {"x0": x0, "eps": eps, "v": alpha_tau * eps - sigma_tau * x0}
        if prediction not in outputs:
            raise ValueError(f"prediction is 'eps', 'v' or 'x0', not {prediction!r}")
        return outputs[prediction].to(z.dtype)

    # -- parts ---------------------------------------------

    def marginal(self, index: Sequence[int]) -> GaussianMixture:
        """The distribution of the coordinates in `index`, whatever the others are."""
        keep = torch.as_tensor(list(index))
        return GaussianMixture(self.weights, self.means[:, keep], self.covs[:, keep][:, :, keep])

    def condition(self, index: Sequence[int], values: Tensor) -> GaussianMixture:
        """The distribution of the other coordinates, in their order, given those in `index`.

        values: one number for each entry of `index`. Raises ValueError unless some coordinates are
        given and some are left.
        """
        given = list(index)
        rest = [i for i in range(self.d) if i not in given]
        if not given or not rest:
            raise ValueError(f"condition on some of the {self.d} coordinates, and leave some")
        seen = self.marginal(given)
        values = torch.as_tensor(values).double().reshape(1, -1)
        log_terms, solved = seen._component_terms(values)  # 1 k and 1 k g
        cross = self.covs[:, rest][:, :, given]  # C_rg: k r g
        # per mode m_r + C_rg C_gg^-1 (values - m_g) and C_rr - C_rg C_gg^-1 C_gr; its weight is
        # multiplied by the likelihood of the values
        means = self.means[:, rest] + torch.einsum("krg,kg->kr", cross, solved[0])
        covs = self.covs[:, rest][:, :, rest] - cross @ torch.linalg.solve(seen.covs, cross.mT)
        return GaussianMixture(log_terms[0].softmax(0), means, 0.5 * (covs + covs.mT))

    def gaussian(self) -> GaussianMixture:
        """The single Gaussian with the same mean and covariance: the trivial baseline."""
        mean, cov = self.moments()
        return GaussianMixture(torch.ones(1), mean[None], cov[None])

    def standardised(self) -> GaussianMixture:
        """This mixture shifted and scaled to mean 0 and covariance I, as latents are scaled."""
        mean, cov = self.moments()
        inverse = torch.linalg.inv(_root(cov))
        means = (self.means - mean) @ inverse
        return GaussianMixture(self.weights, means, inverse @ self.covs @ inverse)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a covariance (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def frechet(a: GaussianMixture, b: GaussianMixture) -> float:
    """Frechet distance of two worlds, exactly, from their means and covariances."""
    (mean_a, cov_a), (mean_b, cov_b) = a.moments(), b.moments()
    # |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2), where tr (A B)^1/2 = tr (A^1/2 B A^1/2)^1/2
    root = _root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def denoiser(world: GaussianMixture, schedule: Schedule, prediction: str = "v") -> Denoiser:
    """The perfect network of a world: denoise(z (b, ...), tau (b,)) -> like z.

    To be sampled with `diffusion.ddim`. Each of the b samples of z may have any shape with the
    world's d coordinates, for example (t, c, 1, 1) for a clip.
    """

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        flat, out = z.reshape(len(z), -1), torch.empty_like(z).reshape(len(z), -1)
        for step in tau.unique().tolist():  # in sampling there is one
            rows = tau == step
            alpha_tau, sigma_tau = schedule.alpha_tau[step], schedule.sigma_tau[step]
            out[rows] = world.predict(flat[rows], alpha_tau, sigma_tau, prediction)
        return out.reshape(z.shape)

    return denoise


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
