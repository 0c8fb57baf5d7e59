"""The demo: videos from the shipped weights, beside single frames from the same noise.

    python -m vldm_mini demo      # writes index.html, videos.webp, videos.mp4, strip.png

They are written to demo_out. The demo needs no data set and no connection. The same noise goes
through the image model (alpha = 1: every frame is sampled independently) and through the video
model. Each video is shown beside its x-t slice, in which independent frames look like static and
motion gives slanted lines. Chapter 00 explains both.
"""

import html
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.video import HELD_OUT_PAIRS
from ..pipeline import VideoLDM
from . import pictures

# MINI: for each of these two, one action was held out of training together with this person
PERSONS = (0, 3)
HELD_OUT_PERSON = 8  # this person was held out of training altogether
LONG = 16  # frames of the long video: twice what the temporal layers were trained on
LARGE, SMALL = 224, 128  # CSS pixels of a video on top of the page and in a card


@dataclass
class Log:
    """What the table shows: (what, frames, seconds) a row, and when the demo began."""

    rows: list[tuple[str, int, float]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timing(self, what: str, frames: int = 0) -> Iterator[None]:
        """Print what is being done, and record how many seconds it took."""
        print(f"{what} ...", flush=True)
        start = time.perf_counter()
        yield
        self.rows.append((what, frames, time.perf_counter() - start))

    def table(self) -> str:
        """The rows, their total and the peak memory as text."""
        frames = sum(n for _, n, _ in self.rows)
        total = ("all of it", frames, time.perf_counter() - self.began)
        lines = [f"{'':<44}{'frames':>8}{'seconds':>10}"]
        for what, n, seconds in [*self.rows, total]:
            lines.append(f"{what:<44}{n or '':>8}{seconds:>10.1f}")
        peak = peak_memory_mb()
        memory = f"{peak:,.0f} MB" if peak else "unknown here"
        return "\n".join([*lines, f"{'peak memory':<44}{memory:>18}"])


def peak_memory_mb() -> float | None:
    """The most memory that this process has held, in MB, with the GPU's; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + gpu) / 1e6


def run(
    out: Path | str = "demo_out",
    seed: int = 0,
    persons: Sequence[int] = PERSONS,
    steps: int | None = None,
    model: Any = None,
) -> dict[str, Any]:
    """Generate the videos and the page, and print a short table.

    model: a VideoLDM (None: the shipped `actions` weights). steps: DDIM steps (None: what the
    weights say). Returns {"page": Path, "seconds": float, "peak_memory_mb": float or None}.
    Raises ValueError if `out` is a file, FileNotFoundError if there are no weights.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder for the page and the videos")
    log = Log()
    with log.timing("loading the weights"):
        model = VideoLDM.from_pretrained("actions") if model is None else model
    actions = list(dict(model.config.label_names)["action"])
    requests = [(person, action) for action in range(len(actions)) for person in persons]
    labels = torch.cat([model.labels(action=action, person=person) for person, action in requests])
    t, n = model.config.frames, len(requests) * model.config.frames
    with log.timing(f"image model: {len(requests)} times {t} frames", n):
        image = model.generate(labels, frames=t, alpha=1, seed=seed, steps=steps).cpu()
    with log.timing(f"video model: {len(requests)} videos of {t} frames", n):
        video = model.generate(labels, frames=t, seed=seed, steps=steps).cpu()
    with log.timing(f"video model: one video of {LONG} frames", LONG):
        pick = min(len(persons), len(requests) - 1)  # the second action by the first person
        one = labels[pick : pick + 1]
        long = model.generate(one, frames=LONG, seed=seed, steps=steps).cpu()[0]
    with log.timing("writing the page"):
        facts = _facts(model, actions, requests, pick, seed, steps)
        path = write(out, image, video, long, facts, log, model.config.fps)
    print("\n" + log.table())
    print(f"\nopen {path} in a browser")
    seconds = time.perf_counter() - log.began
    return {"page": path, "seconds": seconds, "peak_memory_mb": peak_memory_mb()}


def _facts(
    model: Any, actions: list, requests: list, pick: int, seed: int, steps: int | None
) -> dict[str, Any]:
    """What the text of the page says about the requests."""
    names = [f"person {person}, {actions[action]}" for person, action in requests]
    new = [pair in HELD_OUT_PAIRS or pair[0] == HELD_OUT_PERSON for pair in requests]
    return {
        "names": names,
        "new": new,
        "long": names[pick],
        "seed": seed,
        "steps": steps or model.config.steps,
    }


def write(
    out: Path,
    image: torch.Tensor,
    video: torch.Tensor,
    long: torch.Tensor,
    facts: dict[str, Any],
    log: Log,
    fps: float,
) -> Path:
    """Write the page, a movie and a filmstrip; returns the path of the page.

    image, video: `n t 3 h w`; long: `t 3 h w`; all in [-1, 1].
    """
    chosen = list(range(0, len(video), max(1, len(video) // 4)))[:4]
    pairs = torch.stack([torch.stack([image[i], video[i]]) for i in chosen])  # n 2 t 3 h w
    rows = pairs.flatten(0, 1)  # (n 2) t 3 h w
    strip = pictures.strip(rows, alt="image model and video model in turn, one video a row")
    strip.save(out / "strip.png")
    gap = torch.zeros(*pairs.shape[2:4], pictures.GAP, pairs.shape[5])  # t 3 gap w
    columns = [torch.cat([above, gap, below], dim=-2) for above, below in pairs]
    movie = pictures.movie(
        torch.stack(columns), fps=fps, alt="four videos: image model above, video model below"
    )
    movie.save(out / "videos.webp")
    try:
        movie.save(out / "videos.mp4")
    except ImportError:
        print("videos.mp4 is left out: PyAV is not installed (pip install av)")
    text = page(image, video, long, facts, log, fps, strip)
    return pictures.write_beside(out / "index.html", text.encode())


# --------------------------------------------------------------------------------------------------
# The page


def _video(x: np.ndarray, alt: str, row: int, size: int) -> str:
    """A video `t h w 3` as one wide picture, of which a script shows one frame at a time.

    A dashed line marks the pixel row `row`.
    """
    wide = np.concatenate(list(x), axis=1)  # h (t w) 3
    sheet = pictures.uri(pictures.encode_image(wide, "webp", quality=92, method=4), "webp")
    style = (
        f"width:{size}px;height:{size}px;background-size:{len(x) * 100}% 100%;"
        f"background-image:url({sheet})"
    )
    line = f'<i class="row" style="top:{100 * (row + 0.5) / x.shape[1]:.1f}%"></i>'
    name = f'role="img" aria-label="{html.escape(alt)}" data-frames="{len(x)}"'
    return f'<div class="video" {name} style="{style}">{line}</div>'


def _slice(x: np.ndarray, alt: str, row: int, size: int) -> str:
    """The x-t slice of a video `t h w 3`, with a mark at the moment that is shown."""
    image = pictures.encode_image(x[:, row])  # t w 3: a moment is one pixel high here
    square = f"width:{size}px;height:{size}px"
    img = f'<img src="{pictures.uri(image, "png")}" alt="{html.escape(alt)}" style="{square}">'
    mark = f'<i class="now" style="height:{100 / len(x):.2f}%"></i>'
    return f'<div class="xt" data-frames="{len(x)}" style="{square}">{img}{mark}</div>'


def _pair(image: torch.Tensor, video: torch.Tensor, name: str, size: int) -> str:
    """Image model above video model, each video beside its x-t slice of the same pixel row."""
    row = pictures.moving_row(video)
    lines = []
    for frames, source in ((image, "image model"), (video, "video model")):
        x, alt = pictures.pixels(frames)[0], f"{source}: {name}"
        change = float(np.abs(np.diff(x.astype(float), axis=0)).mean() / 127.5)
        lines.append(
            f'<div class="line"><span class="tag">{source}<small>change {change:.2f}</small></span>'
            f"{_video(x, alt, row, size)}{_slice(x, f'x-t slice, {alt}', row, size)}</div>"
        )
    return "".join(lines)


def _cards(image: torch.Tensor, video: torch.Tensor, facts: dict[str, Any]) -> str:
    """One card per request, with a mark on combinations that were held out of training."""
    cards = []
    for i, (name, new) in enumerate(zip(facts["names"], facts["new"])):
        badge = '<span class="new">held out</span>' if new else ""
        pair = _pair(image[i], video[i], name, SMALL)
        cards.append(f'<article class="card"><h3>{html.escape(name)}{badge}</h3>{pair}</article>')
    return "".join(cards)


def _rows(log: Log) -> str:
    """The table of times, as HTML."""
    cells = "<tr><td>{}</td><td>{}</td><td>{:.1f}</td></tr>"
    rows = [cells.format(html.escape(what), n or "", seconds) for what, n, seconds in log.rows]
    peak = peak_memory_mb()
    if peak:
        rows.append(f"<tr><td>peak memory</td><td></td><td>{peak:,.0f} MB</td></tr>")
    return "".join(rows)


def page(
    image: torch.Tensor,
    video: torch.Tensor,
    long: torch.Tensor,
    facts: dict[str, Any],
    log: Log,
    fps: float,
    strip: pictures.Picture,
) -> str:
    """One self-contained HTML page: no script, font or picture comes from elsewhere.

    image, video: `n t 3 h w`; long: `t 3 h w`; all in [-1, 1]. strip: shown in "Frame by frame".
    """
    x, row = pictures.pixels(long)[0], pictures.moving_row(long)
    top = min(3, len(video) - 1)  # the second action by the second person
    name = facts["names"][top]
    long_alt = f"video model: {facts['long']}, {len(x)} frames"
    long_strip = pictures.strip(long, scale=1, alt=f"the {len(x)} frames of the video above")
    values = {
        "hero": _pair(image[top], video[top], name, LARGE),
        "hero_name": html.escape(name),
        "cards": _cards(image, video, facts),
        "frames": video.shape[1],
        "long_name": html.escape(facts["long"]),
        "long": _video(x, long_alt, row, LARGE)
        + _slice(x, "x-t slice of the long video", row, LARGE),
        "long_frames": len(x),
        "long_strip": long_strip.html(),
        "strip": strip.html(),
        "seed": facts["seed"],
        "steps": facts["steps"],
        "table": _rows(log),
        "data": json.dumps({"ms": round(1000 / fps), "frames": len(x), "rounds": 2}),
    }
    text = (Path(__file__).parent / "demo.html").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"[[{key}]]", str(value))
    return text
