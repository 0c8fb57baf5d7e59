"""Measures of single videos: motion, jerk, PSNR, flicker; rank correlation and overlap of boxes.

Paper: section 4 reports FVD and human preference. MINI: with a handful of clips neither says much,
so that simple quantities with known answers come first. A figure stands beside its baselines
(`baselines`): a measure that one of them passes is no measure. Videos are `n t c h w`; no function
changes its arguments; sums run in float64. Chapter 12 takes the measures apart.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

COARSE = 6 / 64
"""MINI: motion and jerk are measured on frames blurred by 6 pixels in 64. Unblurred, noise and
thin arms that jump over their own width make random frames of a clip change about as much as real
ones at stride 3 (1.04 to 1.7 times, by action) and jerk 1.1 to 2.1 times as much. Blurred, random
frames jerk 1.8 to 13 times and change 1.2 to 3.2 times as much as real ones."""


# --------------------------------------------------------------------------------------------------
# Motion and jerk: differences over frames of low-passed videos.

def blur_matrix(n: int, sigma: float) -> Tensor:
    """Gaussian blur of n pixels in a row, edges repeated, as a matrix (n, n), float64.

    sigma: standard deviation in pixels, above 0. Each row sums to 1.
    """
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-offsets.double() ** 2 / (2 * sigma ** 2))
    kernel = kernel / kernel.sum()
    source = (torch.arange(n)[:, None] + offsets).clamp(0, n - 1)               # n 2reach+1
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, source, kernel.expand(n, -1))


def low_pass(videos: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every frame, edges repeated. (n t c h w) -> the same shape, float64.

    sigma: standard deviation in pixels; 0 leaves the frames as they are.
    """
    if sigma <= 0:
        return videos.double()
    h, w = videos.shape[-2:]
    rows = blur_matrix(h, sigma).to(videos.device)
    columns = blur_matrix(w, sigma).to(videos.device)
    return rows @ videos.double() @ columns.T


def _difference(videos: Tensor, order: int, blur: float) -> Tensor:
    """RMS of the order-th difference over frames of low-passed videos: (n t c h w) -> (n,)."""
    if videos.ndim != 5 or videos.shape[1] <= order:
        raise ValueError(f"this measure takes videos (n t c h w) of more than {order} frames, "
                         f"got {tuple(videos.shape)}")
    x = low_pass(videos, blur * videos.shape[-2]).diff(n=order, dim=1)
    return x.square().flatten(1).mean(1).sqrt()


def motion(videos: Tensor, blur: float = COARSE) -> Tensor:
    """Frame-to-frame change, root mean square: (n t c h w), t >= 2 -> (n,) float64.

    In the units of the videos. blur: standard deviation of the low-pass as a share of the height;
    with blur=0 flicker counts as motion, see COARSE. Raises ValueError for another shape.
    """
    return _difference(videos, 1, blur)


def jerk(videos: Tensor, blur: float = COARSE) -> Tensor:
    """RMS of the third difference over frames: (n t c h w), t >= 4 -> (n,) float64.

    0 for a video that moves evenly or accelerates evenly. Independent frames of standard
    deviation s give sqrt(20) s = 4.47 s, whatever they show. Raises ValueError for another shape.
    """
    return _difference(videos, 3, blur)


# --------------------------------------------------------------------------------------------------
# Distance to a known video.

def psnr(x: Tensor, y: Tensor, peak: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each video, dB: (n ...) twice -> (n,) float64.

    peak: 2 for values in [-1, 1], 1 for [0, 1]. Equal inputs give infinity. Raises ValueError for
    unequal shapes.
    """
    if x.shape != y.shape:
        raise ValueError("PSNR compares videos of one shape, "
                         f"got {tuple(x.shape)} and {tuple(y.shape)}")
    # PSNR = 10 log10(peak^2 / mean((x - y)^2))
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(peak ** 2 / error)


def flicker(videos: Tensor, source: Tensor) -> Tensor:
    """How much the error changes from frame to frame: mean square of diff(videos - source).

    Both (n t c h w), at 30 frames a second -> (n,) float64. An error that stays where it is does
    not flicker. Raises ValueError for unequal shapes.
    """
    if videos.shape != source.shape:
        raise ValueError("videos and their source must have one shape, "
                         f"got {tuple(videos.shape)}, {tuple(source.shape)}")
    error = videos.double() - source.double()
    return error.diff(dim=1).square().flatten(1).mean(1)


# --------------------------------------------------------------------------------------------------
# Agreement of two lists, and of two sets of boxes.

def _ranks(values: Tensor) -> Tensor:
    """How many values are smaller, plus half of those that are equal (itself included)."""
    smaller = (values[:, None] > values).double().sum(1)
    equal = (values[:, None] == values).double().sum(1)
    return smaller + 0.5 * equal


def spearman(x: Tensor | Sequence[float], y: Tensor | Sequence[float]) -> float:
    """Rank correlation of two lists of n numbers, in [-1, 1]; ties share their mean rank."""
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in (x, y))
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes x0 y0 x1 y1: (n, 4), (m, 4) -> (n, m), in [0, 1]."""
    low = torch.maximum(a[:, None, :2], b[:, :2])
    high = torch.minimum(a[:, None, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    union = _area(a)[:, None] + _area(b) - both
    return both / union.clamp(min=1e-12)
