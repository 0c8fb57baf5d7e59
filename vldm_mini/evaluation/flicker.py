"""What changes in a video from frame to frame and should not: flicker where the scene stands still,
and change along the motion where it moves. For the benchmarks `decoder` and `upsampler`.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

# values in [-1, 1]: a pixel whose neighbourhood changes by less stands still
CHANGED = 0.01
# a shift at which the mean change is smaller is the motion
FOLLOWED = 0.02


def still_flicker(videos: Tensor, true: Tensor) -> float:
    """Mean square of the error's change where the true videos stand still. Both (n t c h w)."""
    change = true.diff(dim=1).abs().amax((1, 2))                                # n h w
    moved = F.max_pool2d(change[:, None], 9, stride=1, padding=4)[:, 0]
    error = (videos - true).diff(dim=1).square().mean((1, 2))                   # n h w
    return float(error[moved < CHANGED].mean())


def follow_motion(true: Tensor, reach: tuple[int, int] = (4, 8)) -> tuple[Tensor, Tensor]:
    """Where each pixel of true videos (n t 3 h w) goes in the next frame, by block matching.

    -> (index (n t-1 h w) into h*w, bool (n t-1 h w): where that is known). Of all whole shifts up
    to `reach` (rows, columns) the one at which a block of 9x9 pixels changes least; known: the
    block changes by less than FOLLOWED on average, and moves.
    """
    now, after = true[:, :-1].flatten(0, 1), true[:, 1:].flatten(0, 1)          # n*(t-1) 3 h w
    h, w = true.shape[-2:]
    row = torch.arange(h, device=true.device)[:, None].expand(h, w)
    column = torch.arange(w, device=true.device).expand(h, w)
    least = torch.full((len(now), h, w), FOLLOWED, device=true.device)
    index = torch.full((len(now), h, w), -1, device=true.device)
    for y, x in _shifts(reach):
        inside = (row + y >= 0) & (row + y < h) & (column + x >= 0) & (column + x < w)
        change = (now - after.roll((-y, -x), (-2, -1))).abs().mean(1, keepdim=True)
        cost = F.avg_pool2d(change, 9, stride=1, padding=4, count_include_pad=False)[:, 0]
        better = (cost < least) & inside
        least = torch.where(better, cost, least)
        index = torch.where(better, (row + y) * w + column + x, index)
    known = (index >= 0) & (index != row * w + column)
    shape = (len(true), true.shape[1] - 1)
    return index.clamp(min=0).unflatten(0, shape), known.unflatten(0, shape)


def _shifts(reach: tuple[int, int]) -> list[tuple[int, int]]:
    """All (rows, columns) up to reach, shortest first, so that ties go to the shortest."""
    rows, columns = reach
    shifts = [(y, x) for y in range(-rows, rows + 1) for x in range(-columns, columns + 1)]
    return sorted(shifts, key=lambda shift: shift[0] ** 2 + shift[1] ** 2)


def along_motion(videos: Tensor, index: Tensor, known: Tensor) -> float:
    """Mean square of the change of videos (n t 3 h w) along the motion that `follow_motion`
    gives."""
    flat = videos[:, 1:].flatten(-2)                                            # n t-1 3 h*w
    at = index.flatten(-2)[:, :, None].expand(-1, -1, flat.shape[2], -1)
    moved = flat.gather(-1, at).view_as(videos[:, 1:])
    change = (moved - videos[:, :-1]).square().mean(2)                          # n t-1 h w
    return float(change[known].mean())


def gradient_energy(videos: Tensor) -> Tensor:
    """Mean square of the differences between neighbouring pixels: (n t c h w) -> (n,)."""
    horizontal = videos.diff(dim=-1).square().flatten(1).mean(1)
    vertical = videos.diff(dim=-2).square().flatten(1).mean(1)
    return horizontal + vertical
