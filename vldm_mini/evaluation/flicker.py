"""What changes in a film from frame to frame and should not: for `decoder` and `upsampler`."""
import torch
import torch.nn.functional as F


def blurred(x, share=0.25):
    """Each frame mixed with its neighbours: what flicker alone would reward."""
    before, after = torch.cat([x[:, :1], x[:, :-1]], 1), torch.cat([x[:, 1:], x[:, -1:]], 1)
    return (1 - 2 * share) * x + share * (before + after)


def still_flicker(y, true):
    """`measures.flicker` where the true film stands still, over all films."""
    moved = F.max_pool2d(true.diff(dim=1).abs().amax((1, 2))[:, None], 9, 1, 4)[:, 0]
    return float((y - true).diff(dim=1).square().mean((1, 2))[moved < 0.01].mean())


def followed(true, reach=(4, 8)):
    """Where each pixel of a true film (n t 3 h w) goes next: index (n t-1 h w) into h*w, and where that is sure.

    The shift of 9x9 pixels that changes least, found among all whole ones up to reach (rows, columns); sure: they
    change by less than 0.02 of 2 on average, and move.
    """
    a, b = true[:, :-1].flatten(0, 1), true[:, 1:].flatten(0, 1)
    h, w = true.shape[-2:]
    row, column = torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w)
    shifts = [(y, x) for y in range(-reach[0], reach[0] + 1) for x in range(-reach[1], reach[1] + 1)]
    least, to = torch.full((len(a), h, w), 0.02), torch.full((len(a), h, w), -1)
    for y, x in sorted(shifts, key=lambda shift: shift[0] ** 2 + shift[1] ** 2):
        inside = (row + y >= 0) & (row + y < h) & (column + x >= 0) & (column + x < w)
        off = (a - b.roll((-y, -x), (-2, -1))).abs().mean(1, keepdim=True)
        cost = F.avg_pool2d(off, 9, 1, 4, count_include_pad=False)[:, 0]
        better = (cost < least) & inside
        least, to = torch.where(better, cost, least), torch.where(better, (row + y) * w + column + x, to)
    sure = (to >= 0) & (to != row * w + column)
    return to.clamp(min=0).unflatten(0, (len(true), -1)), sure.unflatten(0, (len(true), -1))


def along_motion(y, to, sure):
    """Mean square of the change of films (n t 3 h w) along the motion that `followed` gives."""
    there = y[:, 1:].flatten(-2).gather(-1, to.flatten(-2)[:, :, None].expand(-1, -1, 3, -1)).view_as(y[:, 1:])
    return float((there - y[:, :-1]).square().mean(2)[sure].mean())


def edges(x):
    """Gradient energy of films (n t 3 h w) -> (n,)."""
    return x.diff(dim=-1).square().flatten(1).mean(1) + x.diff(dim=-2).square().flatten(1).mean(1)
