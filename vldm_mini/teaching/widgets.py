"""Widgets: a slider over precomputed results without a kernel, and boxes marked with the mouse."""

import hashlib
import io
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .frames import (
    COLOURS,
    encode_image,
    img_tag,
    join,
    pixels,
    side_by_side,
    strip_pixels,
    uri,
)
from .movies import Movie
from .stills import Picture, moving_row
from .stills import slice as xt_slice

if TYPE_CHECKING:
    from ipywidgets import Textarea

# The script builds the slider inside of its <div>; where scripts are removed the fall-back
# picture stays.
_SCRUBBER = """<div class="{key}" style="max-width:100%">{fallback}</div>
<script>(function () {{
  const d = {data}, roots = document.querySelectorAll(".{key}:not([data-done])");
  roots.forEach(function (root) {{
    root.dataset.done = 1; root.innerHTML = "";
    const make = (tag, css, up) => {{
      const e = document.createElement(tag); e.style.cssText = css; up.appendChild(e); return e; }};
    const row = make("div", "display:flex;flex-wrap:wrap;gap:16px", root);
    const size = `width:${{d.width}}px;height:${{d.height}}px;max-width:100%;`;
    const video = make("div", size + "background-repeat:no-repeat;"
      + `image-rendering:${{d.pixelated ? "pixelated" : "auto"}};`
      + `background-size:${{d.t * 100}}% 100%`, row);
    video.setAttribute("role", "img");
    const xt = d.slices.length ? make("img", size + "image-rendering:pixelated", row) : null;
    const bar = make("label", "display:flex;gap:12px;align-items:center;margin-top:8px;"
      + "font:14px sans-serif", root);
    const input = make("input", "width:256px", bar), text = make("output", "", bar);
    input.type = "range"; input.min = 0; input.max = d.items.length - 1; input.value = d.start;
    let timer = null, frame = 0, left = 0;
    const draw = () => {{
      video.style.backgroundPosition = `${{d.t > 1 ? 100 * (frame % d.t) / (d.t - 1) : 0}}% 0`; }};
    const tick = () => {{
      frame += 1; left -= 1; draw(); if (left <= 0) {{ clearInterval(timer); timer = null; }} }};
    const still = window.matchMedia && matchMedia("(prefers-reduced-motion: reduce)").matches;
    const set = () => {{
      const i = +input.value; video.style.backgroundImage = `url(${{d.items[i]}})`;
      if (xt) {{ xt.src = d.slices[i]; xt.alt = "x-t slice, " + d.labels[i]; }}
      text.textContent = d.labels[i]; input.setAttribute("aria-valuetext", d.labels[i]);
      video.setAttribute("aria-label", d.alt + ", " + d.labels[i]); draw();
      left = d.t * d.loop - frame % d.t - 1;
      if (d.t > 1 && !timer && !still) timer = setInterval(tick, d.ms); }};
    input.addEventListener("input", set); video.addEventListener("click", set); set();
  }});
}})();</script>"""


@dataclass(frozen=True, eq=False)
class Scrubber:
    """A slider over precomputed videos or pictures of one size. `items`: each uint8 `t h w 3`."""

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
        """At most five of the items, as strips below one another: uint8 `h w 3`."""
        count = min(5, len(self.items))
        chosen = sorted({round(i) for i in np.linspace(0, len(self.items) - 1, count)})
        return join([strip_pixels(self.items[i][None]) for i in chosen], axis=0)

    def html(self) -> str:
        """A <div> with the fall-back picture, and the script that puts the slider in its stead."""
        t, h, w = self.items[0].shape[:3]
        quality = {"quality": 88, "method": 4} if self.pixelated else {"lossless": True}
        sheets = [
            encode_image(np.concatenate(list(x), axis=1), "webp", **quality) for x in self.items
        ]
        data = {
            "items": [uri(sheet, "webp") for sheet in sheets],
            "slices": [uri(encode_image(x), "png") for x in self.slices],
            "labels": list(self.labels),
            "t": t,
            "width": w * self.scale,
            "height": h * self.scale,
            "loop": self.loop,
            "ms": round(1000 / self.fps),
            "start": self.start,
            "pixelated": self.pixelated,
            "alt": self.alt,
        }
        text = json.dumps(data).replace("</", "<\\/")  # a label cannot end the script
        image = self._fallback()
        size = image.shape[1], image.shape[0]
        alt = f"{self.alt}: {', '.join(self.labels)}"
        still = encode_image(image, "webp", quality=70)
        fallback = img_tag(still, "webp", size, alt, self.pixelated)
        key = "vldm-" + hashlib.sha256(text.encode()).hexdigest()[:12]
        return _SCRUBBER.format(key=key, fallback=fallback, data=text)

    _repr_html_ = html

    def __repr__(self) -> str:
        return f"Scrubber({len(self.items)} settings: {self.labels[0]} ... {self.labels[-1]})"


def _figure_pixels(figure: Any, dpi: int = 80) -> np.ndarray:
    """A matplotlib figure -> uint8 `h w 3`; closes it, or a notebook would show it twice."""
    import matplotlib.pyplot as plt
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    plt.close(figure)
    return np.array(Image.open(buffer).convert("RGB"))


def _is_figure(thing: Any) -> bool:
    return hasattr(thing, "savefig")


def _item(thing: Any) -> np.ndarray:
    """A video, a picture (`c h w` or a Picture) or a matplotlib figure -> uint8 `t h w 3`."""
    if _is_figure(thing):
        return _figure_pixels(thing)[None]
    if isinstance(thing, Picture):
        return thing.image[None]
    if isinstance(thing, Movie):
        return thing.frames
    if np.ndim(thing) == 3:
        thing = torch.as_tensor(thing)[None]
    return side_by_side(pixels(thing))


def scrubber(
    things: Iterable,
    labels: Sequence[Any],
    fps: float = 8,
    scale: int | None = None,
    loop: int = 3,
    row: int | None = None,
    slices: bool = False,
    start: int = 0,
    alt: str = "",
) -> Scrubber:
    """A slider over videos (`t c h w`), pictures (`c h w`) or matplotlib figures of one size.

    Each thing is one setting of the slider. Everything is computed beforehand and is stored in
    the page, so no kernel is needed. Where scripts are removed the videos stand below one another
    as strips. `slices=True` shows the x-t slice (pixel row `row`, by default the row that changes
    most over all videos) beside the video. `start` is the setting that is shown first.
    Raises ValueError where labels are missing, sizes differ or `start` is no setting.
    """
    things, names = list(things), tuple(str(label) for label in labels)
    if not things or len(things) != len(names):
        raise ValueError(
            "a scrubber needs one label per setting; "
            f"got {len(things)} settings, {len(names)} labels"
        )
    figures = _is_figure(things[0])
    items = tuple(_item(thing) for thing in things)
    shapes = {x.shape for x in items}
    if len(shapes) != 1:
        raise ValueError(f"all settings of a scrubber need one shape; got {sorted(shapes)}")
    if not 0 <= start < len(items):
        raise ValueError(f"start={start} is not one of the {len(items)} settings")
    xt: tuple = ()
    if slices:
        row = moving_row(np.stack(items)) if row is None else row
        xt = tuple(xt_slice(x, row).image for x in items)
    scale = scale or (1 if figures else 4)
    return Scrubber(items, names, fps, scale, loop, alt or "a slider", xt, start, not figures)


# --------------------------------------------------------------------------------------------------
# Boxes, marked with the mouse


_CANVAS = """<canvas id="{key}" width="{width}" height="{height}"
style="max-width:100%;cursor:crosshair;
background:url({image});background-size:100% 100%;image-rendering:pixelated;touch-action:none"
role="img" aria-label="{alt}"></canvas><script>(() => {{
  const canvas = document.getElementById("{key}"), g = canvas.getContext("2d");
  const w = canvas.width, h = canvas.height;
  const area = () => document.querySelector(".{key} textarea");
  const lines = () => (area()?.value || "").split("\\n");
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
  canvas.addEventListener("pointerdown", e => {{
    from = at(e); canvas.setPointerCapture(e.pointerId); }});
  canvas.addEventListener("pointermove", e => {{ if (from) draw(box(e)); }});
  canvas.addEventListener("pointerup", e => {{
    const b = box(e); from = null;
    if (b[2] - b[0] > 0.02 && b[3] - b[1] > 0.02) write([...rows(), b]); else draw(); }});
  canvas.addEventListener("dblclick", () => write(rows().slice(0, -1)));
  document.addEventListener("input", e => {{ if (e.target === area()) draw(); }});
  const wait = setInterval(() => {{ if (area()) {{ clearInterval(wait); draw(); }} }}, 200);
}})();</script>"""


def read_boxes(text: str) -> list[tuple[float, float, float, float]]:
    """Lines of four numbers "x0 y0 x1 y1" in [0, 1] -> boxes, far ones first.

    A box is farther away the higher up its lower edge is. Raises ValueError, naming the line, for
    a line that is no box.
    """
    boxes = []
    for number, line in enumerate(text.strip().splitlines(), 1):
        try:
            x0, y0, x1, y1 = (float(word) for word in line.replace(",", " ").split())
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"line {number}, {line.strip()!r}, is no box: give four numbers x0 y0 x1 y1 in "
                "[0, 1], left of right and top above bottom, such as 0.5 0.4 0.6 0.6"
            ) from None
        boxes.append((x0, y0, x1, y1))
    return sorted(boxes, key=lambda box: box[3])


def draw_boxes(frame: Any, boxes: Iterable[Sequence[float]] = (), scale: int = 4) -> "Textarea":
    """Draw boxes on a frame (`c h w`) with the mouse; a double click removes the last one.

    Below the frame the boxes are listed as text, one per line, so that they can be corrected, or
    typed by those who cannot use a mouse. Needs a kernel. Returns that text field, an ipywidgets
    Textarea: `read_boxes(field.value)` gives the boxes.
    """
    import ipywidgets
    from IPython.display import HTML, display

    image = pixels(torch.as_tensor(frame)[None])[0, 0]
    height, width = image.shape[0] * scale, image.shape[1] * scale
    text = "\n".join(" ".join(f"{x:g}" for x in box) for box in boxes)
    key = "vldm-" + uuid.uuid4().hex[:12]  # the script finds its text field by this name
    area = ipywidgets.Textarea(
        text, description="boxes", placeholder="x0 y0 x1 y1, one box a line", rows=4
    )
    area.layout.width = f"{width}px"
    area.add_class(key)
    page = _CANVAS.format(
        key=key,
        width=width,
        height=height,
        colour=COLOURS[1],
        image=uri(encode_image(image), "png"),
        alt="a frame to draw boxes on",
    )
    display(HTML(page), area)
    return area
