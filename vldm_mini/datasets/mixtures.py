"""Gaussian mixtures and their closed forms: density, score, best denoiser, conditionals.

A mixture stays one when noise is added to it, when it is restricted to some coordinates and when it
is conditioned on others. `toy` builds its worlds of them and re-exports these names. Chapters 01
and 02 walk through this module. All mathematics runs in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..diffusion import Denoiser, Schedule

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
