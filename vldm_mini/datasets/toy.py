"""Worlds whose every answer is known: Gaussian mixtures, and the exact video world (paper: sections 2 and 3.1).

A mixture of Gaussians stays one when it is noised, restricted to some coordinates or conditioned on others. So its
density, score, best denoiser, conditional and in-between distributions and Frechet distances are closed forms, and
what a network learns can be held against the truth. Chapters 01 and 02 walk this module.

All mathematics runs in float64; answers come back in the dtype of what was asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ..blocks import sinusoidal_embedding, zero_init
from ..diffusion import Schedule, add_noise, target, to_eps

# ---------------------------------------------------------------------------------------------------------------------
# A mixture of Gaussians, and everything it knows.


@dataclass(frozen=True)
class GaussianMixture:
    """p(x) = sum_k weights_k N(x; means_k, covs_k), x of d coordinates.

    weights (k,) positive, made to sum to 1; means (k, d); covs (k, d, d) symmetric, positive semi-definite (zero is
    allowed: a data set of k points; its density exists only once it is `noised`). Stored as float64.
    Raises ValueError where the shapes do not agree or a covariance is none.
    """

    weights: Tensor
    means: Tensor
    covs: Tensor

    def __post_init__(self) -> None:
        weights, means, covs = (torch.as_tensor(v).detach().double() for v in (self.weights, self.means, self.covs))
        k, d = means.shape if means.ndim == 2 else (-1, -1)
        if weights.shape != (k,) or covs.shape != (k, d, d):
            raise ValueError(f"give weights (k,), means (k, d), covs (k, d, d), not {tuple(weights.shape)}, "
                             f"{tuple(means.shape)}, {tuple(covs.shape)}")
        if not (weights >= 0).all() or weights.sum() <= 0:
            raise ValueError("weights must not be negative, and not all zero")
        if not torch.allclose(covs, covs.mT) or torch.linalg.eigvalsh(covs).min() < -1e-6 * covs.abs().max():
            raise ValueError("each of covs must be a covariance: symmetric, with no negative eigenvalue")
        for name, value in (("weights", weights / weights.sum()), ("means", means), ("covs", covs)):
            object.__setattr__(self, name, value)

    @property
    def d(self) -> int:
        """Number of coordinates."""
        return self.means.shape[1]

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """n exact samples, (n, d): first a mode, then a Gaussian around it."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.d, generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(self.covs)
        root = vectors * values.clamp(min=0).sqrt()[:, None, :]  # k d d, root root^T = cov (also where cov is singular)
        return (self.means[mode] + torch.einsum("nij,nj->ni", root[mode], noise)).to(dtype)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of the whole: the mean of covariances plus the covariance of means."""
        mean = self.weights @ self.means
        away = self.means - mean
        return mean, torch.einsum("k,kij->ij", self.weights, self.covs + away[:, :, None] * away[:, None, :])

    # -- noise ---------------------------------------------------------------------------------------------------------

    def noised(self, alpha_tau: float, sigma_tau: float) -> GaussianMixture:
        """p_tau, the distribution of alpha_tau x + sigma_tau eps: same weights, alpha m_k, alpha^2 C_k + sigma^2 I."""
        alpha_tau, sigma_tau = float(alpha_tau), float(sigma_tau)
        eye = torch.eye(self.d, dtype=torch.float64)
        return GaussianMixture(self.weights, alpha_tau * self.means, alpha_tau**2 * self.covs + sigma_tau**2 * eye)

    def _component_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log(weight_k N_k(x)) as (n, k), and C_k^-1 (x - m_k) as (n, k, d)."""
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(f"this mixture has {self.d} coordinates: give x as (n, {self.d}), not {tuple(x.shape)}")
        chol, bad = torch.linalg.cholesky_ex(self.covs)
        if bad.any():
            raise ValueError("a covariance is singular: no density. Ask .noised(alpha_tau, sigma_tau) instead")
        away = rearrange(x.double()[:, None] - self.means, "n k d -> k d n")
        white = torch.linalg.solve_triangular(chol, away, upper=False)  # L^-1 (x - m)
        solved = torch.linalg.solve_triangular(chol.mT, white, upper=True)  # C^-1 (x - m)
        log_det = chol.diagonal(dim1=1, dim2=2).log().sum(1)  # half the log determinant of C
        log_normal = -0.5 * white.square().sum(1) - (log_det + 0.5 * self.d * math.log(2 * math.pi))[:, None]
        return (self.weights.log()[:, None] + log_normal).mT, rearrange(solved, "k d n -> n k d")

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
        """E[x | z] for z = alpha_tau x + sigma_tau eps, the best denoiser there is: z (n, d) -> (n, d).

        E[x | z] = sum_k p(k|z) (m_k + alpha C_k S_k^-1 (z - alpha m_k)),  S_k = alpha^2 C_k + sigma^2 I
        """
        log_terms, solved = self.noised(alpha_tau, sigma_tau)._component_terms(z)
        per_mode = self.means + float(alpha_tau) * torch.einsum("kij,nkj->nki", self.covs, solved)  # n k d
        return torch.einsum("nk,nkd->nd", log_terms.softmax(1), per_mode).to(z.dtype)

    def predict(self, z: Tensor, alpha_tau: float, sigma_tau: float, prediction: str = "v") -> Tensor:
        """What a perfect network would answer, E[x0 | z], E[eps | z] or E[v | z]: z (n, d) -> (n, d).

        v = alpha_tau eps - sigma_tau x0 (section 2 of the paper); eps from z = alpha_tau x0 + sigma_tau eps.
        """
        alpha_tau, sigma_tau = float(alpha_tau), float(sigma_tau)
        x0 = self.posterior_mean(z.double(), alpha_tau, sigma_tau)
        eps = (z.double() - alpha_tau * x0) / sigma_tau
        answers = {"x0": x0, "eps": eps, "v": alpha_tau * eps - sigma_tau * x0}
        if prediction not in answers:
            raise ValueError(f"prediction is 'eps', 'v' or 'x0', not {prediction!r}")
        return answers[prediction].to(z.dtype)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def marginal(self, index: Sequence[int]) -> GaussianMixture:
        """The distribution of the coordinates in `index`, whatever the others are."""
        keep = torch.as_tensor(list(index))
        return GaussianMixture(self.weights, self.means[:, keep], self.covs[:, keep][:, :, keep])

    def condition(self, index: Sequence[int], values: Tensor) -> GaussianMixture:
        """The distribution of the other coordinates, in their order, once those in `index` are seen to be `values`.

        Per mode m_r + C_rg C_gg^-1 (values - m_g) and C_rr - C_rg C_gg^-1 C_gr; weights times how well the mode
        explains the values.
        """
        given = list(index)
        rest = [i for i in range(self.d) if i not in given]
        if not given or not rest:
            raise ValueError(f"condition on some of the {self.d} coordinates, and leave some")
        seen = self.marginal(given)
        values = torch.as_tensor(values).double().reshape(1, -1)
        log_terms, solved = seen._component_terms(values)  # 1 k and 1 k g
        cross = self.covs[:, rest][:, :, given]  # C_rg: k r g
        means = self.means[:, rest] + torch.einsum("krg,kg->kr", cross, solved[0])
        covs = self.covs[:, rest][:, :, rest] - cross @ torch.linalg.solve(seen.covs, cross.mT)
        return GaussianMixture(log_terms[0].softmax(0), means, 0.5 * (covs + covs.mT))

    def gaussian(self) -> GaussianMixture:
        """The single Gaussian of the same mean and covariance: the trivial baseline."""
        mean, cov = self.moments()
        return GaussianMixture(torch.ones(1), mean[None], cov[None])

    def standardised(self) -> GaussianMixture:
        """The same mixture moved and stretched to mean 0 and covariance I, as latents are scaled before diffusion."""
        mean, cov = self.moments()
        inverse = torch.linalg.inv(_root(cov))
        return GaussianMixture(self.weights, (self.means - mean) @ inverse, inverse @ self.covs @ inverse)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a covariance (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def frechet(a: GaussianMixture, b: GaussianMixture) -> float:
    """Frechet distance of two worlds from their first two moments, exactly: |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2)."""
    (mean_a, cov_a), (mean_b, cov_b) = a.moments(), b.moments()
    root = _root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()  # tr (A B)^1/2
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def denoiser(world: GaussianMixture, schedule: Schedule, prediction: str = "v") -> Callable[[Tensor, Tensor], Tensor]:
    """The perfect network of a world, denoise(z (b, ...), tau (b,)) -> like z, to be sampled with `diffusion.ddim`.

    z may have any shape whose b entries are the world's d coordinates, as (b, t, c, 1, 1) for a clip.
    """

    def denoise(z: Tensor, tau: Tensor) -> Tensor:
        flat, out = z.reshape(len(z), -1), torch.empty_like(z).reshape(len(z), -1)
        for step in tau.unique().tolist():  # in sampling there is one
            rows = tau == step
            out[rows] = world.predict(flat[rows], schedule.alpha_tau[step], schedule.sigma_tau[step], prediction)
        return out.reshape(z.shape)

    return denoise


# ---------------------------------------------------------------------------------------------------------------------
# Worlds in one and two dimensions.


def two_modes(distance: float = 2.0, std: float = 0.25, weight: float = 0.5) -> GaussianMixture:
    """A 1-D world of two modes at -distance/2 and +distance/2; `weight` is the share of the upper one."""
    means = torch.tensor([[-distance / 2], [distance / 2]])
    return GaussianMixture(torch.tensor([1 - weight, weight]), means, torch.full((2, 1, 1), std**2))


def pinwheel(arms: int = 3, long: float = 0.65, wide: float = 0.4) -> GaussianMixture:
    """The 2-D toy: `arms` slanted, unequally heavy ellipses on a circle, mean 0 and covariance I."""
    angle = torch.arange(arms, dtype=torch.float64) * 2 * math.pi / arms
    out = torch.stack([angle.cos(), angle.sin()], 1)  # arms 2, outwards
    slant = torch.stack([(angle + 0.9).cos(), (angle + 0.9).sin()], 1)
    across = torch.stack([-slant[:, 1], slant[:, 0]], 1)
    covs = long**2 * slant[:, :, None] * slant[:, None, :] + wide**2 * across[:, :, None] * across[:, None, :]
    weights = 1 + torch.arange(arms, dtype=torch.float64) / arms
    return GaussianMixture(weights, 1.3 * out, covs).standardised()


# ---------------------------------------------------------------------------------------------------------------------
# The exact video world: a clip is one mode of a mixture, plus a Gaussian process in time.


def video_world(modes: GaussianMixture, frames: int | Sequence[float] = 8, length: float = 3.0,
                jump: float = 0.0) -> GaussianMixture:
    """The joint distribution of a clip's frames, exact: x_t = m_k + g_t, k drawn once per clip, g a Gaussian process.

    modes    single-frame world (k modes, c coordinates): every frame alone is distributed like it, at any t
    frames   number of frames, or their times (a finer grid gives the frames in between: `condition` on the key frames)
    length   how many frames the process remembers: correlation exp(-(s - t)^2 / (2 length^2))
    jump     chance that a frame leaves its mode (weights must then be equal); 0: the clip keeps the mode it has
    Returns a mixture over t * c coordinates, frame after frame: coordinate t * c + i is channel i of frame t.
    """
    times = torch.arange(frames, dtype=torch.float64) if isinstance(frames, int) else torch.as_tensor(frames).double()
    correlation = torch.exp(-0.5 * ((times[:, None] - times) / length).square())  # t t
    # MINI: a millionth of white noise per frame, or a smooth process is numerically singular.
    correlation = (1 - 1e-6) * correlation + 1e-6 * torch.eye(len(times), dtype=torch.float64)
    paths, weights = _mode_paths(modes, len(times), jump)  # p t, p
    means = rearrange(modes.means[paths], "p t c -> p (t c)")
    root = torch.linalg.cholesky(modes.covs)  # k c c; g_t = root_k(t) n_t, with n one smooth process per channel
    mixed = torch.einsum("ptij,psmj,ts->ptism", root[paths], root[paths], correlation)
    return GaussianMixture(weights, means, rearrange(mixed, "p t i s m -> p (t i) (s m)"))


def _mode_paths(modes: GaussianMixture, frames: int, jump: float) -> tuple[Tensor, Tensor]:
    """Which mode each frame is in, for every possible clip (p, t), and how likely that clip is (p,)."""
    k = len(modes.weights)
    if jump == 0:
        return torch.arange(k)[:, None].expand(k, frames), modes.weights
    if k < 2 or not torch.allclose(modes.weights, modes.weights[0]):
        raise ValueError("jump > 0 needs two or more modes of equal weight: else frames would not be distributed alike")
    if k**frames > 4096:
        raise ValueError(f"{k} modes in {frames} frames make {k**frames} paths: at most 4096, take fewer frames")
    paths = torch.tensor(list(itertools.product(range(k), repeat=frames)))
    jumps = (paths[:, 1:] != paths[:, :-1]).sum(1)
    return paths, (jump / (k - 1)) ** jumps * (1 - jump) ** (frames - 1 - jumps)


def coordinates(frames: Sequence[int], channels: int = 1) -> list[int]:
    """Where the given frames stand among a video world's coordinates."""
    return [t * channels + i for t in frames for i in range(channels)]


def as_clips(x: Tensor, channels: int = 1) -> Tensor:
    """Samples of a video world as the package's videos, one pixel large: (b, t * c) -> (b, t, c, 1, 1)."""
    return rearrange(x, "b (t c) -> b t c 1 1", c=channels)


class OnePixelConv(nn.Linear):
    """A convolution as an image of one pixel meets it: the centre of its kernel. (b c 1 1) -> (b d 1 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(x[:, :, 0, 0]), "b c -> b c 1 1")


def one_pixel(net: nn.Module) -> nn.Module:
    """Swap every convolution of an image backbone for its centre, in place: the same function on images of one pixel.

    The names of its weights stay. What it saves is time: at one pixel eight ninths of a 3x3 kernel see only padding.
    """
    for parent in list(net.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, nn.Conv2d):
                swapped, (h, w) = OnePixelConv(conv.in_channels, conv.out_channels), conv.kernel_size
                swapped.weight.data, swapped.bias.data = conv.weight.data[:, :, h // 2, w // 2], conv.bias.data
                setattr(parent, name, swapped)
    return net


# ---------------------------------------------------------------------------------------------------------------------
# A network small enough to learn a toy's score in a minute.


class ScoreMLP(nn.Module):
    """A residual perceptron, forward(z (b, d), tau (b,)) -> (b, d): predicts v, and starts at 0.

    v = sigma_tau F(z, lambda_tau): under little noise v shrinks like sigma_tau, so that F need not. On data of mean 0
    and covariance I, v = 0 is already the best answer of a single Gaussian; left to learn is what makes it a mixture.
    """

    def __init__(self, schedule: Schedule, d: int = 2, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.schedule = schedule
        self.embed = nn.Linear(width, width)
        self.enter = nn.Linear(d, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.leave = zero_init(nn.Linear(width, d))

    def forward(self, z: Tensor, tau: Tensor) -> Tensor:
        emb = self.embed(sinusoidal_embedding(self.schedule.log_snr[tau].float(), self.embed.in_features))
        x = self.enter(z)
        for layer in self.hidden:
            x = x + nn.functional.silu(layer(x + emb))
        return self.schedule.at(tau, z)[1] * self.leave(x)


def fit_score(world: GaussianMixture, schedule: Schedule, generator: torch.Generator, steps: int = 3000,
              batch: int = 512, data: int = 8192, lr: float = 1e-2, **shape: int) -> tuple[ScoreMLP, list[float]]:
    """A ScoreMLP trained on exact samples of the world by eq. (1) with v as target, and its loss at each step.

    Every step draws `data` new points and noises `batch` of them. `generator` also seeds the weights; `shape`: width
    and depth of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        net = ScoreMLP(schedule, world.d, **shape)
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
    warm_then_fall = lambda i: min(1.0, (i + 1) / 50) * (1 - i / max(1, steps)) ** 2                     # noqa: E731
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_then_fall)
    losses = []
    for _ in range(steps):
        x = world.sample(data, generator)
        # MINI: little noise is drawn more often than by the paper's uniform tau: there the score is sharp.
        tau = (schedule.num_steps * torch.rand(batch, generator=generator) ** 2).long().sort().values
        z = add_noise(schedule, x[:batch], torch.randn(batch, world.d, generator=generator), tau)
        y = _mean_target(schedule, x, z, tau)
        loss = (net(z, tau) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item())
    return net.eval().requires_grad_(False), losses


def _mean_target(schedule: Schedule, x: Tensor, z: Tensor, tau: Tensor) -> Tensor:
    """Mean v over all points x (n, d) that z (b, d) may have come from, by how likely; tau (b,) rising -> (b, d).

    MINI: which point z was made from is chance. The mean over that chance leaves eq. (1) its minimum and takes most
    of the noise out of its gradient (Xu et al. 2023, "Stable target field"). Where there is little noise few points
    are likely, so that quarter of z asks all of them, the others as many as there are z.
    """
    quarter, mean = len(z) // 4, []
    for rows, points in ((slice(quarter), x), (slice(quarter, None), x[: len(z)])):
        alpha_tau, sigma_tau = schedule.at(tau[rows], z)
        # log N(z; alpha_tau x, sigma_tau^2 I) up to what is the same for all x, as one product of matrices: b n
        left = torch.cat([alpha_tau * z[rows], -0.5 * alpha_tau**2], 1) / sigma_tau**2
        share = (left @ torch.cat([points, points.square().sum(1, keepdim=True)], 1).T).softmax(1)
        mean.append(share @ points)
    mean = torch.cat(mean)
    return target(schedule, mean, to_eps(schedule, z, mean, tau, "x0"), tau, "v")


def learned_score(net: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, z: Tensor, tau: int) -> Tensor:
    """The score that a v-predicting network holds at step tau, s(z) = -eps / sigma_tau: z (n, d) -> (n, d)."""
    times = torch.full((len(z),), tau)
    return -to_eps(schedule, z, net(z, times), times, "v") / float(schedule.sigma_tau[tau])


def relative_error(guess: Tensor, truth: Tensor) -> float:
    """sqrt(E|guess - truth|^2 / E|truth|^2) over samples (n, d)."""
    return float(((guess - truth).double().square().sum() / truth.double().square().sum()).sqrt())
