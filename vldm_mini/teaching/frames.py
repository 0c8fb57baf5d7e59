"""Frames in every accepted form -> uint8 pixels, and pixels -> the bytes of a file.

What `stills`, `movies` and `widgets` are built from. Frames are `t c h w` (one video) or
`b t c h w` (several, shown side by side): float in [-1, 1] (values beyond are clamped) or uint8;
uint8 frames may be `t h w 3` as well, the way video files are read.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..weights import replacing

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAP = 2  # pixels between two frames or two videos
GREY = 128  # colour of the gap: visible on a light page and on a dark page

Frames = torch.Tensor | np.ndarray | Sequence


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Any accepted layout -> `... h w c` with c = 1 or 3. Only uint8 may be `h w c` already."""
    first, last = x.shape[-3] in (1, 3), x.shape[-1] in (1, 3)
    if first and not (last and x.dtype == np.uint8 and x.shape[-3] != 3):
        return np.moveaxis(x, -3, -1)  # ... c h w -> ... h w c
    if last and x.dtype == np.uint8:
        return x
    raise ValueError(
        f"frames need 1 or 3 channels, as `t c h w` or `b t c h w`; got shape {tuple(x.shape)}"
    )


def _to_uint8(x: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clamped) -> uint8 in 0..255; uint8 is returned as it is.

    Raises ValueError for NaN, for infinity and for floats that seem to run from 0 to 255.
    """
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"frames are {x.dtype}; give floats in [-1, 1] or uint8 in 0..255")
    if not np.isfinite(x).all():
        raise ValueError("frames hold NaN or infinity: the model or the sampler diverged")
    # MINI: far out of range and never negative means 0..255; clamping would hide the mistake
    if x.size and x.min() >= 0 and x.max() > 32:
        raise ValueError(
            f"float frames run from {x.min():.3g} to {x.max():.3g}; "
            "use [-1, 1], or uint8 for 0..255"
        )
    return np.round((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def pixels(frames: Frames) -> np.ndarray:
    """Frames in any accepted form, or a list of videos of one shape -> uint8 `b t h w 3`.

    Raises ValueError, saying what is wrong, for other shapes, types and values.
    """
    if isinstance(frames, (list, tuple)):
        videos = [torch.as_tensor(video) for video in frames]
        shapes = [tuple(video.shape) for video in videos]
        if len(set(shapes)) != 1:
            raise ValueError(f"videos of one picture need one shape; got {shapes}")
        frames = torch.stack(videos)
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        if frames.is_floating_point():
            frames = frames.float()  # numpy has no bfloat16
        frames = frames.numpy()
    frames = np.asarray(frames)
    if frames.ndim not in (4, 5) or 0 in frames.shape:
        raise ValueError(
            "expected frames as `t c h w` or `b t c h w`, none of them empty; "
            f"got shape {frames.shape}"
        )
    x = _to_uint8(_channels_last(frames))
    if x.shape[-1] == 1:
        x = np.repeat(x, 3, axis=-1)
    return x if x.ndim == 5 else x[None]  # b t h w 3


def join(images: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Pictures uint8 `h w 3`, from left to right (axis 1) or downwards (axis 0), grey between."""
    parts = [images[0]]
    for image in images[1:]:
        shape = list(image.shape)
        shape[axis] = GAP
        parts += [np.full(shape, GREY, np.uint8), image]
    return np.concatenate(parts, axis=axis)


def strip_pixels(x: np.ndarray) -> np.ndarray:
    """uint8 `b t h w 3` -> one picture `h w 3`: frames to the right, one row per video."""
    return join([join(list(video), axis=1) for video in x], axis=0)


def side_by_side(x: np.ndarray) -> np.ndarray:
    """uint8 `b t h w 3` -> `t h w 3`: the videos next to one another in every frame."""
    return np.stack([join(list(x[:, t]), axis=1) for t in range(x.shape[1])])


# --------------------------------------------------------------------------------------------------
# Bytes out


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """`h w 3` -> `(h scale) (w scale) 3`: every pixel becomes a square of pixels."""
    return image.repeat(scale, 0).repeat(scale, 1)


def encode_image(
    image: np.ndarray, form: str = "png", colours: int | None = None, **options: Any
) -> bytes:
    """uint8 `h w 3` -> the bytes of a PNG or WebP file.

    colours: size of the palette of a small PNG (None: all colours). options: Pillow's, for WebP.
    """
    from PIL import Image

    picture = Image.fromarray(image)
    if colours and form == "png":
        picture = picture.quantize(colours, method=Image.Quantize.MEDIANCUT)
    if form == "png":
        options = {"optimize": True}
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def fallback_png(image: np.ndarray) -> bytes:
    """The PNG shown where HTML is removed: 256 colours, large pictures at half their size."""
    if image.shape[0] * image.shape[1] > 80_000:
        image = image[::2, ::2]
    return encode_image(image, colours=256)


def uri(data: bytes, form: str) -> str:
    """Bytes of a picture in format `form` -> a data URI that HTML and CSS can hold."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def img_tag(data: bytes, form: str, size: tuple, alt: str, pixelated: bool = True) -> str:
    """An HTML <img> of `size` = (width, height) CSS pixels that holds its picture itself."""
    edges = "image-rendering:pixelated" if pixelated else "height:auto"
    return (
        f'<img src="{uri(data, form)}" width="{size[0]}" height="{size[1]}" '
        f'alt="{html.escape(alt, quote=True)}" style="max-width:100%;{edges}">'
    )


def write_beside(path: Path | str, data: bytes) -> Path:
    """Write bytes whole or not at all (a full disk leaves no partial file); returns the path."""
    with replacing(path) as partial:
        partial.write_bytes(data)
    return Path(path)
