"""Measures of videos: motion, jerk, PSNR, nearest neighbour, Fréchet distance, intervals. Chapter 12 takes them apart."""
import math
from dataclasses import dataclass

import torch

# ---------------------------------------------------------------------------------------------------------------------
# Measures of a film


def blur_matrix(n, sigma):
    """Gaussian blur of n pixels in a row, edges repeated, as a matrix (n n), float64; each row sums to 1."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double() ** 2 / (2 * sigma ** 2))
    seen = (torch.arange(n)[:, None] + offsets).clamp(0, n - 1)                                          # n 2reach+1
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, seen, (weights / weights.sum()).expand(n, -1))


def low_pass(films, sigma):
    """Gaussian blur of frames, edges repeated. (n t c h w) -> the same shape, float64. sigma in pixels, 0: none."""
    if sigma <= 0:
        return films.double()
    h, w = films.shape[-2:]
    return blur_matrix(h, sigma) @ films.double() @ blur_matrix(w, sigma).T


def _difference(films, order, blur):
    """RMS of the order-th difference over frames of low-passed films: (n t c h w) -> (n,) float64."""
    if films.ndim != 5 or films.shape[1] <= order:
        raise ValueError(f"this measure wants films (n t c h w) of more than {order} frames, got {tuple(films.shape)}")
    x = low_pass(films, blur * films.shape[-2]).diff(n=order, dim=1)
    return x.pow(2).flatten(1).mean(1).sqrt()


COARSE = 6 / 64
"""MINI: motion and jerk are measured on frames blurred by 6 pixels in 64. Unblurred, noise and thin arms that jump over
their own width make random frames of a clip change about as much as real at stride 3 (per action 1.04 to 1.7 times)
and jerk 1.1 to 2.1 times; blurred, they jerk 1.8 to 13 times as much, and change 1.2 to 3.2 times."""


def motion(films, blur=COARSE):
    """Frame-to-frame change, root mean square: (n t c h w), t >= 2 -> (n,) float64, in units of the films.

    blur: standard deviation of the low-pass over the height. With blur=0 flicker counts as motion; see COARSE.
    """
    return _difference(films, 1, blur)


def jerk(films, blur=COARSE):
    """RMS of the third difference over frames: 0 for a film that moves evenly or accelerates evenly.

    (n t c h w), t >= 4 -> (n,) float64. n independent frames of spread s give sqrt(20) s = 4.47 s, whatever they show.
    """
    return _difference(films, 3, blur)


def psnr(x, y, peak=2.0):
    """Peak signal-to-noise ratio of each film, dB: (n ...) twice -> (n,) float64. peak: 2 for [-1, 1], 1 for [0, 1].

    10 log10(peak^2 / mean((x - y)^2)). Equal inputs give infinity. Raises ValueError for unequal shapes.
    """
    if x.shape != y.shape:
        raise ValueError(f"PSNR compares like with like, got {tuple(x.shape)} and {tuple(y.shape)}")
    return 10 * torch.log10(peak ** 2 / (x.double() - y.double()).pow(2).flatten(1).mean(1))


@dataclass(frozen=True)
class Nearest:
    """For n films: RMS distance per element (n,) float64, number of the clip in the bank (n,), its first frame (n,)."""
    distance: torch.Tensor
    clip: torch.Tensor
    start: torch.Tensor


def nearest(films, bank, stride=1):
    """The window of a training clip that is nearest to each film, over all clips and all shifts in time.

    films (n t ...), bank: a list of clips (frames ...) of one frame shape, pixels or latents; a window is t frames,
    `stride` apart. Mirrors count if the bank holds them: hand in both. Raises ValueError if no clip is long enough.
    """
    n, t = films.shape[:2]
    flat = films.double().reshape(n * t, -1)
    best = Nearest(torch.full((n,), math.inf, dtype=torch.float64), torch.full((n,), -1), torch.full((n,), -1))
    for k, clip in enumerate(bank):
        frames = clip.double().reshape(len(clip), -1)
        shifts = len(clip) - (t - 1) * stride
        if shifts <= 0:
            continue
        # |f - b|^2 = |f|^2 + |b|^2 - 2 f b, for every frame of every film against every frame of the clip
        square = flat.pow(2).sum(1)[:, None] + frames.pow(2).sum(1) - 2 * flat @ frames.T                # (n t) frames
        square = square.reshape(n, t, -1)                                                                # n t frames
        total = sum(square[:, i, i * stride:i * stride + shifts] for i in range(t))                      # n shifts
        best = _nearer(best, (total.clamp(min=0) / flat[0].numel() / t).sqrt().min(1), k)
    if (best.clip < 0).any():
        raise ValueError(f"no clip of the bank has {(t - 1) * stride + 1} frames: take fewer frames or a lower stride")
    return best


def _nearer(best, found, k):
    """The nearer of `best` and `found` (values, starts; in clip k)."""
    closer = found.values < best.distance
    return Nearest(torch.where(closer, found.values, best.distance), torch.where(closer, k, best.clip),
                   torch.where(closer, found.indices, best.start))


# ---------------------------------------------------------------------------------------------------------------------
# How sure a figure is


def bootstrap(values, statistic, generator, draws=1000, level=0.95):
    """Percentile bootstrap over independent values (n ...), statistic: (n ...) -> number. -> (low, high)."""
    n = len(values)
    if n < 1:
        raise ValueError("there is nothing to draw from: give one value or more")
    found = torch.tensor([float(statistic(values[torch.randint(n, (n,), generator=generator)])) for _ in range(draws)],
                         dtype=torch.float64)
    low, high = torch.quantile(found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


# ---------------------------------------------------------------------------------------------------------------------
# Distances between sets, and other figures of `driving`


def frechet(a, b):
    """Fréchet distance between Gaussians fitted to features a (n, d) and b (m, d), in float64. Heusel et al. 2017.

    Raises ValueError where there are too few: n and m must be larger than d, or the covariances say nothing.
    """
    a, b = a.double(), b.double()
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(f"a Fréchet distance of {a.shape[1]} features needs more samples than that on both sides, got "
                         f"{len(a)} and {len(b)}")
    # |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), x.T.cov()) for x in (a, b))
    value, vector = torch.linalg.eigh(cov_a)
    root = (vector * value.clamp(min=0).sqrt()) @ vector.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def flicker(films, source):
    """Mean square of the change, frame to frame, of films minus source; both (n t c h w), at 30 fps -> (n,) float64.

    An error that stays where it is does not flicker.
    """
    if films.shape != source.shape:
        raise ValueError(f"films and their source must have one shape, got {tuple(films.shape)}, {tuple(source.shape)}")
    return (films.double() - source.double()).diff(dim=1).square().flatten(1).mean(1)


def spearman(x, y):
    """Rank correlation of two lists, ties sharing their mean rank -> float."""
    def ranks(v):
        v = torch.as_tensor(v, dtype=torch.float64)
        return (v[:, None] > v).double().sum(1) + 0.5 * (v[:, None] == v).double().sum(1)
    return float(torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1])


def iou(a, b):
    """Intersection over union of boxes x0 y0 x1 y1: (n, 4), (m, 4) -> (n, m)."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    area = lambda x: (x[:, 2:] - x[:, :2]).prod(-1)                                                     # noqa: E731
    return both / (area(a)[:, None] + area(b) - both).clamp(min=1e-12)
