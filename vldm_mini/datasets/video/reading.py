"""Reading video files, folders of pictures, and strips, as uint8 frames (t h w 3).

Frame rates come from time stamps, and with a target rate frames are chosen by them. Damage is
reported. Paper: section 4 and appendix F (its data sets). Chapter 14 walks through it.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .decoding import DEFAULT_FPS, Reading, decode
from .fetching import need
from .frames import Size, as_size, check_rate, choose, fit, stack

IMAGES = (".png", ".jpg", ".jpeg")


def read_video(
    path: str | Path,
    size: int | Size = None,
    fps: float | None = None,
    stride: int = 1,
    max_frames: int | None = None,
) -> tuple[Tensor, float]:
    """One video file -> frames uint8 (t h w 3), and their number per second.

    size: an int or (h, w) to scale and centre-crop to; None keeps the frames as they are.
    fps: a target rate; frames are chosen by their time stamps, and repeat where the file has fewer.
    stride: every stride-th of these frames is kept. max_frames: reading stops after so many.
    Sound is ignored; the rotation and mirroring that the file states are applied.
    Warns of damage, and of uneven spacing without a target rate.
    Raises FileNotFoundError, and ValueError where nothing can be decoded.
    """
    check_rate(fps, stride)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}: take 1 or more, or None for all")
    reading = decode(Path(path), as_size(size), fps, stride, max_frames)
    for remark in remarks([(str(path), reading)], fps):
        warnings.warn(remark, stacklevel=2)
    return reading.frames, reading.fps


def read_frames(
    path: str | Path,
    size: int | Size = None,
    fps: float | None = None,
    stride: int = 1,
    source_fps: float = DEFAULT_FPS,
) -> tuple[Tensor, float]:
    """A folder of png or jpg pictures of one size -> frames uint8 (t h w 3), and their rate.

    The order is that of the numbers in their names. source_fps: the rate at which they were taken.
    Raises ValueError for a folder without pictures, of several sizes, or with a damaged one.
    """
    check_rate(fps, stride)
    reading = _read_folder(Path(path), as_size(size), fps, stride, source_fps)
    return reading.frames, reading.fps


def read_strip(path: str | Path) -> Tensor:
    """A picture whose square frames lie side by side, h x (t h) -> uint8 (t h h 3).

    Transparency is dropped. Raises ValueError where the width is no multiple of the height.
    """
    pixels = torch.from_numpy(_image(path))
    h, w, _ = pixels.shape
    if w % h:
        raise ValueError(f"{path} is {h}x{w}: a strip of square frames has a width that is a "
                         "multiple of its height")
    return rearrange(pixels, "h (t w) c -> t h w c", w=h).contiguous()


def read(path: Path, size: Size, fps: float | None, stride: int) -> Reading:
    """A video file or a folder of pictures -> Reading. Raises as read_video and read_frames."""
    if path.is_dir():
        return _read_folder(path, size, fps, stride, DEFAULT_FPS)
    return decode(path, size, fps, stride)


def remarks(named: Sequence[tuple[str, Reading]], fps: float | None) -> list[str]:
    """What the user has to know of files that were read: at most one sentence of each kind.

    named: (name, Reading) of each file. fps: the target rate that they were read with.
    """
    found = []
    damaged = [f"{name} ({one.damage})" for name, one in named if one.damage]
    if damaged:
        found.append(f"damaged, and used as far as it can be decoded: {', '.join(damaged)}")
    if fps is None:
        found += _uneven_times(named)
    else:
        slower = [name for name, one in named
                  if one.source_fps < 0.95 * fps and not one.uneven]
        if slower:
            found.append(f"frames repeat, because fps={fps:g} is more than the frame rate of "
                         f"{', '.join(slower)}")
    return found


def _uneven_times(named: Sequence[tuple[str, Reading]]) -> list[str]:
    """Remarks on windows that do not span the same time although they have as many frames."""
    found = []
    uneven = [name for name, one in named if one.uneven]
    if uneven:
        found.append(f"frames are not evenly spaced in time in {', '.join(uneven)}: "
                     "give fps= to choose frames by their times")
    slow_name, slow = min(named, key=_source_fps)
    fast_name, fast = max(named, key=_source_fps)
    if fast.source_fps > 1.05 * slow.source_fps:
        found.append(f"frame rates differ, from {slow.source_fps:.4g} in {slow_name} to "
                     f"{fast.source_fps:.4g} in {fast_name}: the same number of frames spans "
                     "different times; give fps= to bring all to one rate")
    return found


def _source_fps(pair: tuple[str, Reading]) -> float:
    return pair[1].source_fps


def _read_folder(
    path: Path, size: Size, fps: float | None, stride: int, source_fps: float
) -> Reading:
    paths = [item for item in path.iterdir()
             if item.suffix.lower() in IMAGES and not item.name.startswith(".")]
    if not paths:
        raise ValueError(f"no frames in {path}: it should hold {', '.join(IMAGES)} files")
    frames, shapes = [], {}
    for picture in sorted(paths, key=_numbers):
        pixels = _image(picture)
        shapes[picture.name] = pixels.shape[:2]
        frames.append(fit(pixels, size))
    h, w = Counter(shapes.values()).most_common(1)[0][0]
    for name, shape in shapes.items():
        if shape != (h, w):
            raise ValueError(f"the frames in {path} differ in size, {name} is not {h}x{w} as most "
                             "are: make them one size")
    chosen = choose(frames, source_fps, fps, stride)
    return Reading(stack(chosen), (fps or source_fps) / stride, source_fps)


def _numbers(path: Path) -> list[str | int]:
    """A key that sorts frame2 before frame10: text and numbers take turns in it."""
    parts = re.split("([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _image(path: str | Path) -> np.ndarray:
    """A picture -> uint8 (h w 3), upright as its EXIF data say. Raises as read_frames."""
    Image = need("PIL.Image", "reading pictures")
    from PIL import ImageOps

    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no picture {path}: check the path") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: you lack the permission; change the file's "
                         "permissions") from error
    except (OSError, SyntaxError) as error:                  # Pillow raises either
        raise ValueError(f"{path} cannot be read as a picture: it is damaged or none; replace or "
                         "delete it") from error
