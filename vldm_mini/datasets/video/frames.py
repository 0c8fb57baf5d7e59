"""Operations on single frames and on sequences of them: orientation, size, choice by time.

A frame is uint8 (h w 3), a sequence (t h w 3), values 0 to 255. Nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int] | None
Item = TypeVar("Item")


def at_rate(timed: Iterable[tuple[float, Item]], fps: float, tick: float = 0.0) -> Iterator[Item]:
    """The items that are on display at 0, 1 / fps, 2 / fps ... seconds after the first one.

    timed: (time in seconds, item), in the order of time. tick: the resolution of the time stamps,
    whose rounding must not choose the frame before. The last item is on display for as long
    as the items are on average.
    """
    tolerance = min(tick + 1e-6, 0.25 / fps)
    start = previous = 0.0
    on_display, seen, given = None, 0, 0
    for time, item in timed:
        if seen == 0:
            start = time
        while seen > 0 and start + given / fps < time - tolerance:
            yield on_display
            given += 1
        on_display, previous, seen = item, time, seen + 1
    end = previous + (previous - start) / max(seen - 1, 1)
    while seen > 0 and (given == 0 or start + given / fps < end - tolerance):
        yield on_display
        given += 1


def choose(frames: Sequence[Item], source_fps: float, fps: float | None, stride: int) -> list[Item]:
    """Of evenly spaced frames those of the target rate `fps` (None: all), then every stride-th."""
    if fps is not None:
        timed = ((i / source_fps, frame) for i, frame in enumerate(frames))
        frames = list(at_rate(timed, fps))
    return list(frames[::stride])


def upright(pixels: np.ndarray, matrix: Sequence[int] | None) -> np.ndarray:
    """A frame (h w 3) as stored -> as it is to be shown.

    matrix: the nine numbers (a b u, c d v, x y w) of the file's display matrix, by which a pixel at
    (x, y) is shown at (a x + c y, b x + d y): a quarter turn, mirrored or not. None: no change.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = matrix[:5]
    # MINI: an angle in between is rounded to the nearest quarter turn
    if abs(b) > abs(a):
        pixels = pixels.swapaxes(0, 1)                   # rows become columns
        x_sign, y_sign = c, b
    else:
        x_sign, y_sign = a, d
    if x_sign < 0:
        pixels = pixels[:, ::-1]
    if y_sign < 0:
        pixels = pixels[::-1]
    return pixels


def fit(pixels: np.ndarray, size: Size) -> Tensor:
    """uint8 (h w 3) -> uint8 tensor of `size`: scaled (bicubic) to cover it, centre-cropped.

    None keeps the frame as it is.
    """
    if size is not None and size != pixels.shape[:2]:
        from PIL import Image

        h, w = pixels.shape[:2]
        scale = max(size[0] / h, size[1] / w)
        top = max(h - size[0] / scale, 0.0) / 2
        left = max(w - size[1] / scale, 0.0) / 2
        # Where the scale is 1/6 or less, Pillow averages blocks of pixels before it filters:
        # ten times as fast, and within 3 of 255 of filtering alone
        resized = Image.fromarray(pixels).resize(
            size[::-1], Image.Resampling.BICUBIC, box=(left, top, w - left, h - top),
            reducing_gap=3.0)
        pixels = np.array(resized)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def stack(frames: list[Tensor]) -> Tensor:
    """Frames of one shape -> (t ...). The list is emptied on the way: memory is held once."""
    whole = torch.empty(len(frames), *frames[0].shape, dtype=frames[0].dtype)
    frames.reverse()
    for i in range(len(frames)):
        whole[i] = frames.pop()
    return whole


def as_size(size: int | Sequence[int] | None) -> Size:
    """An int, (h, w) or None -> (h, w) or None. Raises ValueError for anything else."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"size is {size}: give one number, (height, width), or None to keep the "
                         "frames as they are")
    return pair


def check_rate(fps: float | None, stride: int) -> None:
    """Raises ValueError for a target rate or a stride that makes no sense."""
    if stride < 1:
        raise ValueError(f"stride is {stride}: take 1 (every frame) or more")
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}: give frames per second, or None to keep every frame")
