"""Pictures of video: film strips, movies, x-t slices, sliders that need no kernel, and two plots.

Every function is pure: frames in, a small object out. The object knows how to draw itself in a notebook (HTML with
an alt text), has a PNG fall-back where HTML is dropped and a text form that never changes from run to run.
Frames are `t c h w` (one film) or `b t c h w` (several, side by side): float in [-1, 1] (clamped) or uint8; uint8
frames may be `t h w 3` as well, the way that video files are read.

One picture runs through all chapters, the *x-t slice*: one row of pixels, followed over time (time runs downwards).
Independent frames are static, motion is slanted lines, flicker is stripes, drift is a gradient. Chapter 00 walks it.

    pictures.movie(frames)                     # plays three times and stops; .save("film.mp4")
    pictures.strip(frames)                     # frames from left to right, one row a clip
    pictures.slice(frames, row=20)             # the x-t slice of pixel row 20
    pictures.beside(pictures.movie(frames), pictures.slice(frames), labels=["film", "x-t"])
    pictures.scrubber([film_a, film_b], ["alpha = 0", "alpha = 1"])
"""

import base64
import hashlib
import html
import io
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vldm_mini.weights import replacing

# Okabe and Ito: safe for colour-blind eyes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAP = 2  # pixels between two frames or two films
GREY = 128  # colour of the gap: visible on a light and on a dark page


# ---------------------------------------------------------------------------------------------------------------------
# Frames in


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Any accepted layout -> `... h w c` with c = 1 or 3. Only uint8 may come with its channels last already."""
    first, last = x.shape[-3] in (1, 3), x.shape[-1] in (1, 3)
    if first and not (last and x.dtype == np.uint8 and x.shape[-3] != 3):
        return np.moveaxis(x, -3, -1)  # ... c h w -> ... h w c
    if last and x.dtype == np.uint8:
        return x
    raise ValueError(f"frames need 1 or 3 channels, as `t c h w` or `b t c h w`; got shape {tuple(x.shape)}")


def _to_uint8(x: np.ndarray) -> np.ndarray:
    """Float in [-1, 1] (clamped) -> uint8 0..255; uint8 stays. ValueError for NaN and for floats that run to 255."""
    if x.dtype == np.uint8:
        return x
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"frames are {x.dtype}; give floats in [-1, 1] or uint8 in 0..255")
    if not np.isfinite(x).all():
        raise ValueError("frames hold NaN or infinity: the model or the sampler that made them broke down")
    if x.size and x.min() >= 0 and x.max() > 32:  # MINI: far out of range and never negative means 0..255
        raise ValueError(f"float frames run from {x.min():.3g} to {x.max():.3g}; use [-1, 1], or uint8 for 0..255")
    return np.round((x.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def pixels(frames, ndim: tuple = (4, 5)) -> np.ndarray:
    """Frames in any accepted form (a list of equal films too) -> uint8 `b t h w 3`. ValueError says what is wrong."""
    if isinstance(frames, (list, tuple)):
        frames = [torch.as_tensor(f) for f in frames]
        if len({tuple(f.shape) for f in frames}) != 1:
            raise ValueError(f"films of one picture need one shape; got {[tuple(f.shape) for f in frames]}")
        frames = torch.stack(frames)
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        frames = (frames.float() if frames.is_floating_point() else frames).numpy()
    frames = np.asarray(frames)
    if frames.ndim not in ndim or 0 in frames.shape:
        raise ValueError(f"expected frames as `t c h w` or `b t c h w`, none of them empty; got shape {frames.shape}")
    x = _to_uint8(_channels_last(frames))
    x = np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x
    return x.reshape(-1, *x.shape[-4:]) if x.ndim > 4 else x[None]  # b t h w 3


def _join(images, axis: int) -> np.ndarray:
    """Pictures `h w 3` put next to one another (axis 1) or below one another (axis 0) with a grey gap between."""
    out = [images[0]]
    for image in images[1:]:
        shape = list(image.shape)
        shape[axis] = GAP
        out += [np.full(shape, GREY, np.uint8), image]
    return np.concatenate(out, axis=axis)


def _strip_pixels(x: np.ndarray) -> np.ndarray:
    """`b t h w 3` -> one picture: frames to the right, clips downwards."""
    return _join([_join(list(clip), axis=1) for clip in x], axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes out


def encode_image(image: np.ndarray, form: str = "png", colours: int | None = None, **options) -> bytes:
    """uint8 `h w 3` -> the bytes of a PNG or WebP file; `colours` (a palette) makes a fall-back small."""
    from PIL import Image

    picture = Image.fromarray(image)
    if colours and form == "png":
        picture = picture.quantize(colours, method=Image.Quantize.MEDIANCUT)
    buffer = io.BytesIO()
    picture.save(buffer, form, **({"optimize": True} if form == "png" else options))
    return buffer.getvalue()


def _fallback_png(image: np.ndarray) -> bytes:
    """What is seen where HTML is dropped: 256 colours, large ones at half their size, so that notebooks stay small."""
    return encode_image(image[::2, ::2] if image.shape[0] * image.shape[1] > 80_000 else image, colours=256)


def uri(data: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def _img(data: bytes, form: str, width: int, height: int, alt: str, pixelated: bool = True) -> str:
    style = "max-width:100%;" + ("image-rendering:pixelated" if pixelated else "height:auto")
    return f'<img src="{uri(data, form)}" width="{width}" height="{height}" alt="{html.escape(alt, quote=True)}" ' \
           f'style="{style}">'


def write_beside(path, data: bytes) -> Path:
    """Write bytes whole or not at all (a full disk leaves nothing half-written); returns the path."""
    with replacing(path) as beside:
        beside.write_bytes(data)
    return Path(path)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and movies


@dataclass(frozen=True, eq=False)
class Picture:
    """A still picture. `image` uint8 `h w 3`; drawn at `scale` times its size with hard pixel edges."""

    image: np.ndarray = field(repr=False)
    scale: int = 2
    alt: str = ""
    pixelated: bool = True

    @property
    def size(self) -> tuple:
        """(width, height) on the page, in CSS pixels."""
        return self.image.shape[1] * self.scale, self.image.shape[0] * self.scale

    def html(self) -> str:
        exact, near = encode_image(self.image), encode_image(self.image, "webp", quality=92, method=4)
        data, form = (exact, "png") if len(exact) < 20_000 else (near, "webp")  # a strip of photographs: lossy will do
        return _img(data, form, *self.size, self.alt, self.pixelated)

    _repr_html_ = html

    def _repr_png_(self):
        return _fallback_png(self.image), {"width": self.size[0], "height": self.size[1]}

    def __repr__(self) -> str:
        return f"Picture({self.image.shape[1]}x{self.image.shape[0]}: {self.alt})"

    def save(self, path) -> Path:
        """Write a .png or .webp at the page's size; returns the path. ValueError for another suffix."""
        form = Path(path).suffix[1:].lower()
        if form not in ("png", "webp"):
            raise ValueError(f"a picture is saved as .png or .webp, not {Path(path).name!r}")
        big = self.image.repeat(self.scale, 0).repeat(self.scale, 1)
        return write_beside(path, encode_image(big, form, lossless=True))


@dataclass(frozen=True, eq=False)
class Movie:
    """A film that plays `loop` times and stops. `frames` uint8 `t h w 3`."""

    frames: np.ndarray = field(repr=False)
    fps: float = 8
    scale: int = 4
    loop: int = 3
    alt: str = ""

    @property
    def size(self) -> tuple:
        """(width, height) on the page, in CSS pixels."""
        return self.frames.shape[2] * self.scale, self.frames.shape[1] * self.scale

    def html(self) -> str:
        return _img(self.encode("webp"), "webp", *self.size, self.alt)

    _repr_html_ = html

    def _repr_png_(self):
        image = _strip_pixels(self.frames[None])
        return _fallback_png(image), {"width": image.shape[1], "height": image.shape[0]}

    def __repr__(self) -> str:
        t, h, w = self.frames.shape[:3]
        return f"Movie({t} frames of {w}x{h}, {self.fps:g} fps: {self.alt})"

    def encode(self, form: str, scale: int = 1) -> bytes:
        """The bytes of an animated "webp" or "gif", pixels enlarged `scale` times."""
        from PIL import Image

        pages = [Image.fromarray(f.repeat(scale, 0).repeat(scale, 1)) for f in self.frames]
        # GIF counts the repeats after the first showing, WebP the showings
        loop = {} if form == "gif" and self.loop == 1 else {"loop": max(0, self.loop - (form == "gif"))}
        buffer = io.BytesIO()
        options = loop | ({"quality": 90, "method": 4} if form == "webp" else {"optimize": True})
        # duration: of a frame, in milliseconds
        pages[0].save(buffer, form, save_all=True, append_images=pages[1:], duration=round(1000 / self.fps), **options)
        return buffer.getvalue()

    def save(self, path) -> Path:
        """Write .webp, .gif, .mp4 (PyAV) or .png (the film strip), by suffix, enlarged; returns the path."""
        form = Path(path).suffix[1:].lower()
        if form in ("webp", "gif"):
            return write_beside(path, self.encode(form, self.scale))
        if form == "mp4":
            _encode(buffer := io.BytesIO(), list(self.frames) * max(1, self.loop), self.fps, self.scale)
            return write_beside(path, buffer.getvalue())
        if form == "png":
            return write_beside(path, encode_image(_strip_pixels(self.frames[None])))
        raise ValueError(f"a movie is saved as .webp, .gif, .mp4 or .png (a strip), not {Path(path).name!r}")


def _encode(target, frames, fps: float, scale: int, **options) -> None:
    """Frames uint8 `h w 3`, as they come, into an H.264 file or buffer."""
    from fractions import Fraction

    import av

    with av.open(target, "w", format="mp4", options=options) as container:
        stream = None
        for frame in frames:
            big = frame.repeat(scale, 0).repeat(scale, 1)
            big = np.pad(big, ((0, big.shape[0] % 2), (0, big.shape[1] % 2), (0, 0)), mode="edge")  # even sizes only
            if stream is None:
                rate, how = Fraction(fps).limit_denominator(1000), {"crf": "16", "preset": "veryfast"}
                how |= {"tune": "zerolatency"} if options else {}  # a film that grows waits for no later frame
                stream = container.add_stream("libx264", rate=rate, options=how)
                stream.height, stream.width, stream.pix_fmt = *big.shape[:2], "yuv420p"
                stream.gop_size = max(1, round(2 * fps))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(big), format="rgb24")))
        if stream is None:
            raise ValueError("a film has at least one frame")
        container.mux(stream.encode())


def save_growing(path, parts, fps: float, scale: int = 2) -> Path:
    """Write a film while it is made: `parts`, an iterator of `t c h w`, to an .mp4 that can be watched as it grows.

    Nothing is kept of a part that is written: memory does not extend with the film. A run that stops half-way leaves a
    film that plays as far as it came.
    """
    if Path(path).suffix != ".mp4":
        raise ValueError(f"a growing film is an .mp4, not {Path(path).name!r}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    frames = (frame for part in parts for frame in pixels(part)[0])
    _encode(str(path), frames, fps, scale, movflags="frag_keyframe+empty_moov", flush_packets="1")
    return Path(path)


def movie(frames, fps: float = 8, scale: int = 4, loop: int = 3, alt: str = "") -> Movie:
    """A film (`t c h w`), or several side by side (`b t c h w`), that plays `loop` times (0: for ever) and stops."""
    if fps <= 0 or scale < 1 or loop < 0:
        raise ValueError(f"a movie needs fps > 0, scale >= 1 and loop >= 0; got fps={fps}, scale={scale}, loop={loop}")
    x = pixels(frames)
    x = np.stack([_join(list(x[:, t]), axis=1) for t in range(x.shape[1])])  # t h (b w) 3
    return Movie(x, fps, int(scale), int(loop), alt or f"a film of {len(x)} frames")


def strip(frames, scale: int = 2, alt: str = "") -> Picture:
    """A film strip: frames from left to right, one row a clip."""
    x = pixels(frames)
    return Picture(_strip_pixels(x), int(scale), alt or f"film strip, {x.shape[0]} by {x.shape[1]} frames")


def moving_row(frames) -> int:
    """The row of pixels that changes most from frame to frame, over all clips given: the telling one for `slice`."""
    x = pixels(frames).astype(np.float32)
    change = np.abs(np.diff(x, axis=1)).mean(axis=(0, 1, 3, 4))  # h
    return int(change.argmax()) if x.shape[1] > 1 else x.shape[2] // 2


def slice(frames, row: int | None = None, scale: int = 4, alt: str = "") -> Picture:  # noqa: A001 (its name in the field)
    """The x-t slice: pixel row `row` of every frame, time downwards; several clips side by side.

    `row=None` takes the row that changes most (`moving_row`); to compare two films give both the same row.
    Each moment is drawn several pixels thick, so that a slice is about as tall as a frame.
    """
    x = pixels(frames)
    b, t, h, w, _ = x.shape
    row = moving_row(x) if row is None else row
    if not -h <= row < h:
        raise ValueError(f"row {row} is outside of frames that are {h} pixels high")
    line = x[:, :, row].repeat(max(1, round(h / t)), axis=1)  # b t w 3 -> b (t thick) w 3
    return Picture(_join(list(line), axis=1), int(scale), alt or f"x-t slice of row {row % h}, time downwards")


@dataclass(frozen=True)
class Beside:
    """Pictures and movies next to one another, with a label over each."""

    things: tuple = field(repr=False)
    labels: tuple = ()

    def _repr_html_(self) -> str:
        cell = '<figure style="margin:0"><figcaption>{}</figcaption>{}</figure>'
        cells = [cell.format(html.escape(label), thing.html()) for thing, label in zip(self.things, self.labels)]
        return f'<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">{"".join(cells)}</div>'

    def __repr__(self) -> str:
        return "Beside(" + ", ".join(map(repr, self.things)) + ")"


def beside(*things, labels=None) -> Beside:
    """Put pictures and movies next to one another; `labels` one text each, or None."""
    labels = [""] * len(things) if labels is None else [str(label) for label in labels]
    if len(labels) != len(things):
        raise ValueError(f"{len(things)} pictures need {len(things)} labels; got {len(labels)}")
    return Beside(tuple(things), tuple(labels))


# ---------------------------------------------------------------------------------------------------------------------
# A slider that needs no kernel


# The script builds the slider inside of its <div>; where scripts are stripped the fall-back picture stays.
_SCRUBBER = """<div class="{key}" style="max-width:100%">{fallback}</div>
<script>(function () {{
  const d = {data}, roots = document.querySelectorAll(".{key}:not([data-done])");
  roots.forEach(function (root) {{
    root.dataset.done = 1; root.innerHTML = "";
    const make = (tag, css, up) => {{
      const e = document.createElement(tag); e.style.cssText = css; up.appendChild(e); return e; }};
    const row = make("div", "display:flex;flex-wrap:wrap;gap:16px", root);
    const film = make("div", `width:${{d.width}}px;height:${{d.height}}px;max-width:100%;background-repeat:no-repeat;`
      + `image-rendering:${{d.pixelated ? "pixelated" : "auto"}};background-size:${{d.t * 100}}% 100%`, row);
    film.setAttribute("role", "img");
    const xt = d.slices.length ? make("img", `width:${{d.width}}px;height:${{d.height}}px;max-width:100%;`
      + "image-rendering:pixelated", row) : null;
    const bar = make("label", "display:flex;gap:12px;align-items:center;margin-top:8px;font:14px sans-serif", root);
    const input = make("input", "width:256px", bar), text = make("output", "", bar);
    input.type = "range"; input.min = 0; input.max = d.items.length - 1; input.value = d.start;
    let timer = null, frame = 0, left = 0;
    const draw = () => {{
      film.style.backgroundPosition = `${{d.t > 1 ? 100 * (frame % d.t) / (d.t - 1) : 0}}% 0`; }};
    const tick = () => {{
      frame += 1; left -= 1; draw(); if (left <= 0) {{ clearInterval(timer); timer = null; }} }};
    const still = window.matchMedia && matchMedia("(prefers-reduced-motion: reduce)").matches;
    const set = () => {{
      const i = +input.value; film.style.backgroundImage = `url(${{d.items[i]}})`;
      if (xt) {{ xt.src = d.slices[i]; xt.alt = "x-t slice, " + d.labels[i]; }}
      text.textContent = d.labels[i]; input.setAttribute("aria-valuetext", d.labels[i]);
      film.setAttribute("aria-label", d.alt + ", " + d.labels[i]); draw();
      left = d.t * d.loop - frame % d.t - 1;
      if (d.t > 1 && !timer && !still) timer = setInterval(tick, d.ms); }};
    input.addEventListener("input", set); film.addEventListener("click", set); set();
  }});
}})();</script>"""


@dataclass(frozen=True, eq=False)
class Scrubber:
    """A slider over precomputed films or pictures, all one size. `items`: each uint8 `t h w 3`."""

    items: tuple = field(repr=False)
    labels: tuple
    fps: float = 8
    scale: int = 4
    loop: int = 3
    alt: str = ""
    slices: tuple = field(default=(), repr=False)
    start: int = 0
    pixelated: bool = True

    def _fallback(self) -> np.ndarray:
        """At most five of the items, as strips below one another."""
        some = sorted({round(i) for i in np.linspace(0, len(self.items) - 1, min(5, len(self.items)))})
        return _join([_strip_pixels(self.items[i][None]) for i in some], axis=0)

    def _repr_html_(self) -> str:
        t, h, w = self.items[0].shape[:3]
        code = {"quality": 88, "method": 4} if self.pixelated else {"lossless": True}
        data = {
            "items": [uri(encode_image(np.concatenate(list(x), axis=1), "webp", **code), "webp") for x in self.items],
            "slices": [uri(encode_image(x), "png") for x in self.slices],
            "labels": list(self.labels), "t": t, "width": w * self.scale, "height": h * self.scale, "loop": self.loop,
            "ms": round(1000 / self.fps), "start": self.start, "pixelated": self.pixelated, "alt": self.alt,
        }  # fmt: skip
        text = json.dumps(data).replace("</", "<\\/")
        image = self._fallback()
        alt = f"{self.alt}: {', '.join(self.labels)}"
        still, size = encode_image(image, "webp", quality=70), (image.shape[1], image.shape[0])
        fallback = _img(still, "webp", *size, alt, self.pixelated)
        key = "vldm-" + hashlib.sha256(text.encode()).hexdigest()[:12]
        return _SCRUBBER.format(key=key, fallback=fallback, data=text)

    html = _repr_html_

    def __repr__(self) -> str:
        return f"Scrubber({len(self.items)} settings: {self.labels[0]} ... {self.labels[-1]})"


def _item(thing) -> np.ndarray:
    """A film, a picture (`c h w`, Picture) or a matplotlib figure -> uint8 `t h w 3`."""
    if hasattr(thing, "savefig"):
        return _figure_pixels(thing)[None]
    if isinstance(thing, Picture):
        return thing.image[None]
    if isinstance(thing, Movie):
        return thing.frames
    x = pixels(torch.as_tensor(thing)[None] if np.ndim(thing) == 3 else thing)
    return np.stack([_join(list(x[:, t]), axis=1) for t in range(x.shape[1])])


def _figure_pixels(figure, dpi: int = 80) -> np.ndarray:
    """A matplotlib figure -> uint8 `h w 3`; closes it, so that a notebook does not draw it once more."""
    import matplotlib.pyplot as plt
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    plt.close(figure)
    return np.array(Image.open(buffer).convert("RGB"))


def scrubber(
    things, labels, fps: float = 8, scale: int | None = None, loop: int = 3, row: int | None = None,
    slices: bool = False, start: int = 0, alt: str = "",
) -> Scrubber:  # fmt: skip
    """A slider over films (`t c h w`), pictures (`c h w`) or matplotlib figures, all of one size: one setting each.

    Everything is computed beforehand and travels inside the page: no kernel needed. Where scripts are stripped the
    films stand below one another as strips. `slices=True` draws the x-t slice (pixel row `row`, by default the row
    that changes most over all films) beside the film. `start` is the setting shown first.
    """
    things, labels = list(things), [str(label) for label in labels]
    if not things or len(things) != len(labels):
        raise ValueError(f"a scrubber needs one label per setting; got {len(things)} settings, {len(labels)} labels")
    drawn = hasattr(things[0], "savefig")
    items = tuple(_item(thing) for thing in things)
    if len({x.shape for x in items}) != 1:
        raise ValueError(f"all settings of a scrubber need one shape; got {sorted({x.shape for x in items})}")
    if not 0 <= start < len(items):
        raise ValueError(f"start={start} is not one of the {len(items)} settings")
    scale = scale or (1 if drawn else 4)
    if slices:
        row = moving_row(np.stack(items)) if row is None else row
        slices = tuple(slice(x, row).image for x in items)
    return Scrubber(items, tuple(labels), fps, scale, loop, alt or "a slider", slices or (), start, not drawn)


# ---------------------------------------------------------------------------------------------------------------------
# Boxes, drawn by hand


_CANVAS = """<canvas id="{key}" width="{width}" height="{height}" style="max-width:100%;cursor:crosshair;
background:url({image});background-size:100% 100%;image-rendering:pixelated;touch-action:none"
role="img" aria-label="{alt}"></canvas><script>(() => {{
  const canvas = document.getElementById("{key}"), g = canvas.getContext("2d"), w = canvas.width, h = canvas.height;
  const area = () => document.querySelector(".{key} textarea"), lines = () => (area()?.value || "").split("\\n");
  const numbers = line => line.trim().split(/[\\s,]+/).map(Number);
  const rows = () => lines().map(numbers).filter(b => b.length == 4 && b.every(isFinite));
  let from = null;
  const draw = extra => {{
    g.clearRect(0, 0, w, h); g.lineWidth = 2; g.strokeStyle = "{colour}";
    for (const [a, b, c, d] of extra ? [...rows(), extra] : rows())
      g.strokeRect(a * w, b * h, (c - a) * w, (d - b) * h);
  }};
  const write = boxes => {{
    const text = area();
    if (!text) return;
    text.value = boxes.map(b => b.map(x => x.toFixed(3)).join(" ")).join("\\n");
    for (const name of ["input", "change"]) text.dispatchEvent(new Event(name, {{bubbles: true}}));
    draw();
  }};
  const at = e => {{
    const r = canvas.getBoundingClientRect(), cut = x => Math.min(1, Math.max(0, x));
    return [cut((e.clientX - r.left) / r.width), cut((e.clientY - r.top) / r.height)];
  }};
  const box = e => {{
    const [x, y] = at(e);
    return [Math.min(x, from[0]), Math.min(y, from[1]), Math.max(x, from[0]), Math.max(y, from[1])];
  }};
  canvas.addEventListener("pointerdown", e => {{ from = at(e); canvas.setPointerCapture(e.pointerId); }});
  canvas.addEventListener("pointermove", e => {{ if (from) draw(box(e)); }});
  canvas.addEventListener("pointerup", e => {{
    const b = box(e); from = null;
    if (b[2] - b[0] > 0.02 && b[3] - b[1] > 0.02) write([...rows(), b]); else draw(); }});
  canvas.addEventListener("dblclick", () => write(rows().slice(0, -1)));
  document.addEventListener("input", e => {{ if (e.target === area()) draw(); }});
  const wait = setInterval(() => {{ if (area()) {{ clearInterval(wait); draw(); }} }}, 200);
}})();</script>"""


def read_boxes(text: str) -> list:
    """Lines of four numbers, "x0 y0 x1 y1" in [0, 1] -> [(x0, y0, x1, y1)], far ones (whose foot is higher up) first.

    ValueError that names the line, if it is no box.
    """
    boxes = []
    for number, line in enumerate(text.strip().splitlines(), 1):
        try:
            x0, y0, x1, y1 = (float(word) for word in line.replace(",", " ").split())
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError
        except ValueError:
            raise ValueError(f"line {number}, {line.strip()!r}, is no box: give four numbers x0 y0 x1 y1 in [0, 1], "
                             "left of right and top above bottom, such as 0.5 0.4 0.6 0.6") from None
        boxes.append((x0, y0, x1, y1))
    return sorted(boxes, key=lambda box: box[3])


def draw_boxes(frame, boxes=(), scale: int = 4):
    """Draw boxes on a frame (`c h w`) with the mouse; a double click takes the last one away. Needs a kernel.

    Below the frame they stand as text, a line each, to be corrected or typed by those who cannot draw. -> that text
    field, an ipywidgets Textarea: `read_boxes(field.value)` gives them.
    """
    import ipywidgets
    from IPython.display import HTML, display

    image = pixels(torch.as_tensor(frame)[None])[0, 0]
    text = "\n".join(" ".join(f"{x:g}" for x in box) for box in boxes)
    key = "vldm-" + uuid.uuid4().hex[:12]  # the script finds its text field by this name
    field = ipywidgets.Textarea(text, description="boxes", placeholder="x0 y0 x1 y1, one box a line", rows=4)
    field.layout.width = f"{image.shape[1] * scale}px"
    field.add_class(key)
    page = _CANVAS.format(key=key, width=image.shape[1] * scale, height=image.shape[0] * scale, colour=COLOURS[1],
                          image=uri(encode_image(image), "png"), alt="a frame to draw boxes on")
    display(HTML(page), field)
    return field


# ---------------------------------------------------------------------------------------------------------------------
# Two plots


def _values(alphas) -> dict:
    """TemporalLayers, a dict, or a list of numbers or tensors -> {name: 1-D array}."""
    alphas = alphas.alphas() if hasattr(alphas, "alphas") else alphas
    named = alphas.items() if hasattr(alphas, "items") else enumerate(alphas)
    return {str(name): np.atleast_1d(torch.as_tensor(a).detach().float().cpu().numpy()).ravel() for name, a in named}


def alphas(layers, before=None, ax=None):
    """Plot alpha per temporal layer, input end on top: 1 = the spatial layer alone, 0 = the temporal layer alone.

    layers: what `temporal.insert` returned, or {name: alpha} (a number, or one per channel: mean and range).
    before: the same at the start of training, drawn as open circles. Returns the matplotlib axes.
    """
    import matplotlib.pyplot as plt

    now = _values(layers)
    ax = ax or plt.subplots(figsize=(6, 0.6 + 0.22 * len(now)), layout="constrained")[1]
    y = np.arange(len(now))
    ax.hlines(y, [a.min() for a in now.values()], [a.max() for a in now.values()], color=COLOURS[0], lw=2)
    ax.plot([a.mean() for a in now.values()], y, "o", color=COLOURS[0], label="now")
    if before is not None:
        ax.plot([a.mean() for a in _values(before).values()], y, "o", mfc="none", color=COLOURS[1], label="before")
        ax.legend(loc="best")
    ax.set(yticks=y, yticklabels=list(now), xlim=(-0.02, 1.02), xlabel="alpha")
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    return ax


def losses(record, levels: bool = False, ax=None, smooth: int = 1, label: str = ""):
    """Plot a run's losses over its steps; with `levels` the loss of each noise level, from low tau (dark) to high.

    record: a `training.Record`, or its rows [{"step": 10, "losses": {"image": 0.3}, "levels": [0.9, None, ...]}, ...];
    {"step": 10, "loss": 0.3} does as well. smooth: window of a running mean. Returns the matplotlib axes.
    """
    import matplotlib.pyplot as plt

    curves = _curves(getattr(record, "rows", record), levels)
    ax = ax or plt.subplots(figsize=(6, 3), layout="constrained")[1]
    for i, (name, points) in enumerate(curves.items()):
        step, y = np.array(points, dtype=float).T
        k = min(max(1, smooth), len(y))
        colour = plt.get_cmap("viridis")(i / max(1, len(curves))) if levels else COLOURS[i % len(COLOURS)]
        mean = np.convolve(y, np.ones(k) / k, mode="valid")
        ax.plot(step[k - 1 :], mean, color=colour, label=f"{label} {name}".strip())
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.grid(alpha=0.3)
    beside = dict(loc="center left", bbox_to_anchor=(1, 0.5)) if len(curves) > 5 else dict(loc="best")
    ax.legend(fontsize=7, **beside)
    return ax


def _curves(rows, levels: bool) -> dict:
    """Rows of a record -> {name of the line: [(step, loss), ...]}."""
    curves = {}
    for i, row in enumerate(rows):
        if levels:
            n = len(row.get("levels", ()))
            named = {f"tau {1000 * j // n} to {1000 * (j + 1) // n}": y for j, y in enumerate(row.get("levels", ()))}
        else:
            named = row.get("losses") or ({"loss": row["loss"]} if "loss" in row else {})
        for name, y in named.items():
            if y is not None:
                curves.setdefault(name, []).append((row.get("step", i), y))
    if not curves:
        raise ValueError("the record holds no losses of this kind yet: train for a few steps first")
    return curves
