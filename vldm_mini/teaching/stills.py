"""Still pictures of a video: the filmstrip, the x-t slice, and several things side by side."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .frames import (
    Frames,
    encode_image,
    enlarge,
    fallback_png,
    img_tag,
    join,
    pixels,
    strip_pixels,
    write_beside,
)

LARGE_PNG = 20_000  # bytes; a larger PNG is shown as lossy WebP, so that notebooks stay small


@dataclass(frozen=True, eq=False)
class Picture:
    """A still picture: uint8 `h w 3`, shown at `scale` times its size with hard pixel edges."""

    image: np.ndarray = field(repr=False)
    scale: int = 2
    alt: str = ""
    pixelated: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) on the page, in CSS pixels."""
        return self.image.shape[1] * self.scale, self.image.shape[0] * self.scale

    def html(self) -> str:
        """An <img> that holds the picture and its alt text."""
        data, form = encode_image(self.image), "png"
        if len(data) >= LARGE_PNG:
            data, form = encode_image(self.image, "webp", quality=92, method=4), "webp"
        return img_tag(data, form, self.size, self.alt, self.pixelated)

    _repr_html_ = html

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return fallback_png(self.image), {"width": self.size[0], "height": self.size[1]}

    def __repr__(self) -> str:
        return f"Picture({self.image.shape[1]}x{self.image.shape[0]}: {self.alt})"

    def save(self, path: Path | str) -> Path:
        """Write a .png or .webp at the page's size; returns the path.

        Raises ValueError for another suffix.
        """
        form = Path(path).suffix[1:].lower()
        if form not in ("png", "webp"):
            raise ValueError(f"a picture is saved as .png or .webp, not {Path(path).name!r}")
        return write_beside(
            path, encode_image(enlarge(self.image, self.scale), form, lossless=True)
        )


def strip(frames: Frames, scale: int = 2, alt: str = "") -> Picture:
    """A filmstrip of `t c h w` or `b t c h w`: frames from left to right, one row per video."""
    x = pixels(frames)
    alt = alt or f"filmstrip, {x.shape[0]} by {x.shape[1]} frames"
    return Picture(strip_pixels(x), int(scale), alt)


def moving_row(frames: Frames) -> int:
    """The row of pixels that changes most between frames, over all videos given.

    It is the most informative row for `slice`. A single frame gives its middle row.
    """
    x = pixels(frames).astype(np.float32)
    if x.shape[1] == 1:
        return x.shape[2] // 2
    change = np.abs(np.diff(x, axis=1)).mean(axis=(0, 1, 3, 4))  # h
    return int(change.argmax())


# The field calls it a slice; the built-in of that name is not used in these modules.
def slice(
    frames: Frames, row: int | None = None, scale: int = 4, alt: str = ""
) -> Picture:
    """The x-t slice: pixel row `row` of every frame, time downwards; several videos side by side.

    `row=None` takes the row that changes most (`moving_row`); to compare two videos give both the
    same row. Each moment is several pixels thick, so that a slice is about as tall as a frame.
    Raises ValueError for a row outside of the frames.
    """
    x = pixels(frames)
    t, h = x.shape[1:3]
    row = moving_row(x) if row is None else row
    if not -h <= row < h:
        raise ValueError(f"row {row} is outside of frames that are {h} pixels high")
    thick = max(1, round(h / t))
    lines = x[:, :, row].repeat(thick, axis=1)  # b t w 3 -> b (t thick) w 3
    alt = alt or f"x-t slice of row {row % h}, time downwards"
    return Picture(join(list(lines), axis=1), int(scale), alt)


@dataclass(frozen=True)
class Beside:
    """Pictures and movies next to one another, with a label over each."""

    things: tuple = field(repr=False)
    labels: tuple = ()

    def _repr_html_(self) -> str:
        cell = '<figure style="margin:0"><figcaption>{}</figcaption>{}</figure>'
        cells = [
            cell.format(html.escape(label), thing.html())
            for thing, label in zip(self.things, self.labels)
        ]
        style = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start"
        return f'<div style="{style}">{"".join(cells)}</div>'

    def __repr__(self) -> str:
        return "Beside(" + ", ".join(map(repr, self.things)) + ")"


def beside(*things: Any, labels: Sequence[Any] | None = None) -> Beside:
    """Put pictures and movies next to one another, with one label each (None: no labels).

    Raises ValueError where the numbers of things and labels differ.
    """
    names = [""] * len(things) if labels is None else [str(label) for label in labels]
    if len(names) != len(things):
        raise ValueError(f"{len(things)} pictures need {len(things)} labels; got {len(names)}")
    return Beside(tuple(things), tuple(names))
