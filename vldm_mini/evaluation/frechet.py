"""Distances between sets of videos: Fréchet distance, nearest training clip, and their uncertainty.

Paper: section 4 reports FVD, the Fréchet distance of I3D features. Here the features are handed
in, of `driving_classifiers` for one. A Fréchet distance has a bias that falls with the number of
samples, so that only distances with the same numbers on both sides may be compared. Chapter 12
shows this.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features a (n, d) and b (m, d), in float64.

    Heusel et al. 2017, eq. 6. Raises ValueError where n or m is not larger than d: the covariance
    of fewer samples is singular; and for features that are not finite.
    """
    a, b = a.double(), b.double()
    for name, some in (("first", a), ("second", b)):
        bad = int((~some.isfinite()).any(dim=1).sum())
        if bad:
            raise ValueError(f"{bad} of {len(some)} rows of the {name} features hold values that "
                             "are not finite: look at the videos that they come from")
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(f"a Fréchet distance of {a.shape[1]} features needs more samples than "
                         f"that on both sides, got {len(a)} and {len(b)}")
    # |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)
    cov_a, cov_b = a.T.cov(), b.T.cov()
    value, vector = torch.linalg.eigh(cov_a)
    root_a = (vector * value.clamp(min=0).sqrt()) @ vector.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)


def bootstrap(values: Tensor, statistic: Callable[[Tensor], Tensor | float],
              generator: torch.Generator, samples: int = 1000,
              level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of statistic(values) over independent values (n ...).

    statistic: (n ...) -> number. samples: how often n values are sampled with replacement. -> (low,
    high). Raises ValueError for no values.
    """
    n = len(values)
    if n < 1:
        raise ValueError("a bootstrap needs one value or more, got none")
    found = torch.empty(samples, dtype=torch.float64)
    for k in range(samples):
        found[k] = float(statistic(values[torch.randint(n, (n,), generator=generator)]))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(found, tails).tolist()
    return low, high


def frechet_report(generated: Tensor, real: Tensor, generator: torch.Generator,
                   samples: int = 100) -> dict:
    """Distance of features (n, d) from those of real videos (m, d), with interval and floor.

    -> {"distance", "interval" (95 %), "floor", "n", "m"}. floor: the distance between two halves
    of the real ones, which a perfect generator would get at half the m. The interval comes from
    sampling `generated` with replacement.
    """
    order = torch.randperm(len(real), generator=generator)
    half = len(real) // 2
    interval = bootstrap(generated, lambda some: frechet_distance(some, real), generator, samples)
    return {"distance": frechet_distance(generated, real), "interval": list(interval),
            "floor": frechet_distance(real[order[:half]], real[order[half:]]),
            "n": len(generated), "m": len(real)}


# --------------------------------------------------------------------------------------------------
# Memorisation: the nearest training clip.

@dataclass(frozen=True)
class Nearest:
    """The nearest window of n videos: RMS distance per element (n,) float64, the number of its clip
    in the bank (n,), its first frame (n,)."""
    distance: Tensor
    clip: Tensor
    start: Tensor


def nearest(videos: Tensor, bank: Sequence[Tensor], stride: int = 1) -> Nearest:
    """The window of a training clip nearest to each video, over all clips and all shifts in time.

    videos (n t ...); bank: clips (frames ...) with frames of one shape, pixels or latents. A
    window is t frames, `stride` apart. Mirrored clips count if the bank holds them. Raises
    ValueError if no clip is long enough.
    """
    n, t = videos.shape[:2]
    flat = videos.double().reshape(n * t, -1)
    best = Nearest(torch.full((n,), math.inf, dtype=torch.float64), torch.full((n,), -1),
                   torch.full((n,), -1))
    for number, clip in enumerate(bank):
        shifts = len(clip) - (t - 1) * stride
        if shifts > 0:
            found = _window_distances(flat, clip, n, t, stride, shifts).min(1)
            best = _nearer(best, found.values, found.indices, number)
    if (best.clip < 0).any():
        raise ValueError(f"no clip of the bank has {(t - 1) * stride + 1} frames: take fewer "
                         "frames or a lower stride")
    return best


def _window_distances(flat: Tensor, clip: Tensor, n: int, t: int, stride: int,
                      shifts: int) -> Tensor:
    """RMS distance of n videos, as (n*t, d), to every window of a clip -> (n, shifts)."""
    frames = clip.double().reshape(len(clip), -1)
    # |f - b|^2 = |f|^2 + |b|^2 - 2 f b, for every frame of every video and every frame of the clip
    square = flat.square().sum(1)[:, None] + frames.square().sum(1) - 2 * flat @ frames.T
    square = square.reshape(n, t, -1)                                           # n t frames
    total = torch.zeros(n, shifts, dtype=torch.float64)
    for i in range(t):
        total += square[:, i, i * stride:i * stride + shifts]
    return (total.clamp(min=0) / flat.shape[1] / t).sqrt()


def _nearer(best: Nearest, distance: Tensor, start: Tensor, number: int) -> Nearest:
    """For each video the nearer of `best` and (distance, start) in clip `number`."""
    closer = distance < best.distance
    return Nearest(torch.where(closer, distance, best.distance),
                   torch.where(closer, number, best.clip), torch.where(closer, start, best.start))
