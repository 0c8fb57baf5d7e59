"""Videos that play: an animated WebP in an <img>, and files as .webp, .gif and .mp4."""

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .frames import (
    Frames,
    encode_image,
    enlarge,
    fallback_png,
    img_tag,
    pixels,
    side_by_side,
    strip_pixels,
    write_beside,
)


@dataclass(frozen=True, eq=False)
class Movie:
    """A video that plays `loop` times (0: for ever) and stops. `frames`: uint8 `t h w 3`."""

    frames: np.ndarray = field(repr=False)
    fps: float = 8
    scale: int = 4
    loop: int = 3
    alt: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) on the page, in CSS pixels."""
        return self.frames.shape[2] * self.scale, self.frames.shape[1] * self.scale

    def html(self) -> str:
        """An <img> that holds the video, as an animated WebP, and its alt text."""
        return img_tag(self.encode("webp"), "webp", self.size, self.alt)

    _repr_html_ = html

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        image = strip_pixels(self.frames[None])
        return fallback_png(image), {"width": image.shape[1], "height": image.shape[0]}

    def __repr__(self) -> str:
        t, h, w = self.frames.shape[:3]
        return f"Movie({t} frames of {w}x{h}, {self.fps:g} fps: {self.alt})"

    def encode(self, form: str, scale: int = 1) -> bytes:
        """The bytes of an animated "webp" or "gif", with pixels enlarged `scale` times."""
        from PIL import Image

        pages = [Image.fromarray(enlarge(frame, scale)) for frame in self.frames]
        options = {"duration": round(1000 / self.fps)}  # of one frame, in milliseconds
        if form == "webp":
            options |= {"loop": self.loop, "quality": 90, "method": 4}
        else:
            options |= {"optimize": True}
            # GIF counts the repeats after the first showing; WebP counts the showings.
            if self.loop != 1:
                options["loop"] = max(0, self.loop - 1)
        buffer = io.BytesIO()
        pages[0].save(buffer, form, save_all=True, append_images=pages[1:], **options)
        return buffer.getvalue()

    def save(self, path: Path | str) -> Path:
        """Write .webp, .gif, .mp4 (with PyAV) or .png (the filmstrip), by suffix, enlarged.

        Returns the path. Raises ValueError for another suffix.
        """
        form = Path(path).suffix[1:].lower()
        if form in ("webp", "gif"):
            data = self.encode(form, self.scale)
        elif form == "mp4":
            buffer = io.BytesIO()
            encode_video(buffer, list(self.frames) * max(1, self.loop), self.fps, self.scale)
            data = buffer.getvalue()
        elif form == "png":
            data = encode_image(strip_pixels(self.frames[None]))
        else:
            raise ValueError(
                f"a movie is saved as .webp, .gif, .mp4 or .png (a strip), not {Path(path).name!r}"
            )
        return write_beside(path, data)


def movie(frames: Frames, fps: float = 8, scale: int = 4, loop: int = 3, alt: str = "") -> Movie:
    """A video (`t c h w`), or several side by side (`b t c h w`), that plays in a notebook.

    loop: how often it plays before it stops (0: for ever). scale: CSS pixels per pixel.
    Raises ValueError for frames or settings that cannot be shown.
    """
    if fps <= 0 or scale < 1 or loop < 0:
        raise ValueError(
            "a movie needs fps > 0, scale >= 1 and loop >= 0; "
            f"got fps={fps}, scale={scale}, loop={loop}"
        )
    x = pixels(frames)
    alt = alt or f"a video of {len(x)} frames"
    return Movie(side_by_side(x), fps, int(scale), int(loop), alt)


# --------------------------------------------------------------------------------------------------
# mp4


def encode_video(
    target: Any, frames: Iterable[np.ndarray], fps: float, scale: int, streaming: bool = False
) -> None:
    """Encode frames uint8 `h w 3`, one after the other, as H.264 into an mp4.

    target: a path or a buffer. streaming: write so that the file can be watched while it is
    being written. Raises ValueError where there are no frames.
    """
    import av

    codec = {"crf": "16", "preset": "veryfast"}
    container_options = {}
    if streaming:
        codec["tune"] = "zerolatency"  # the encoder waits for no later frame
        container_options = {"movflags": "frag_keyframe+empty_moov", "flush_packets": "1"}
    with av.open(target, "w", format="mp4", options=container_options) as container:
        stream = None
        for frame in frames:
            big = _even_size(enlarge(frame, scale))
            if stream is None:
                rate = Fraction(fps).limit_denominator(1000)
                stream = container.add_stream("libx264", rate=rate, options=codec)
                stream.height, stream.width = big.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.gop_size = max(1, round(2 * fps))  # a key frame every two seconds
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(big), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("a video has at least one frame")
        container.mux(stream.encode())


def _even_size(image: np.ndarray) -> np.ndarray:
    """Repeat the last row or column where a size is odd: yuv420p has even sizes only."""
    h, w = image.shape[:2]
    return np.pad(image, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")


def save_growing(path: Path | str, parts: Iterable[Frames], fps: float, scale: int = 2) -> Path:
    """Write a video while it is generated, to an .mp4 that can be watched meanwhile.

    parts: an iterator of `t c h w`. A part is not kept once it is written, so memory does not
    depend on the length of the video. A run that stops half-way leaves a video that plays up to
    that point. Returns the path. Raises ValueError for another suffix.
    """
    if Path(path).suffix != ".mp4":
        raise ValueError(f"a video written in parts is an .mp4, not {Path(path).name!r}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frames = (frame for part in parts for frame in pixels(part)[0])
    encode_video(str(path), frames, fps, scale, streaming=True)
    return Path(path)
