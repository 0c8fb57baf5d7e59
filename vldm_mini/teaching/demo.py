"""The demo: from the shipped weights, one noise and two films, on one HTML page. Needs no data and no network.

    python -m vldm_mini demo                    # writes demo_out/index.html, films.webp, films.mp4, strip.png

The same noise goes through the image model (alpha = 1: each frame for itself) and through the video model. Each film
stands beside its x-t slice: independent frames are static there, motion is slanted lines. Chapter 00 walks it.
"""

import html
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vldm_mini.datasets.video import HELD_OUT_PAIRS
from vldm_mini.pipeline import VideoLDM
from vldm_mini.teaching import pictures

PERSONS = (0, 3)  # MINI: each of these two has one action that the generators never saw together with this person
LONG = 16  # frames of the long film: twice what the temporal layers were trained on


@dataclass
class Log:
    """What the table shows: (what, frames, seconds) a row, and when it all began."""

    rows: list = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @contextmanager
    def timing(self, what: str, frames: int = 0):
        """Say what is being done, and keep how long it took."""
        print(f"{what} ...", flush=True)
        start = time.perf_counter()
        yield
        self.rows.append((what, frames, time.perf_counter() - start))

    def table(self) -> str:
        rows = [*self.rows, ("all of it", sum(n for _, n, _ in self.rows), time.perf_counter() - self.began)]
        lines = [f"{'':<44}{'frames':>8}{'seconds':>10}"]
        lines += [f"{what:<44}{n or '':>8}{seconds:>10.1f}" for what, n, seconds in rows]
        peak = peak_memory_mb()
        return "\n".join(lines + [f"{'peak memory':<44}{f'{peak:,.0f} MB' if peak else 'unknown here':>18}"])


def peak_memory_mb() -> float | None:
    """The most memory this process has held, in MB (plus the GPU's, where there is one); None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + gpu) / 1e6


def run(out="demo_out", seed: int = 0, persons=PERSONS, steps: int | None = None, model=None) -> dict:
    """Make the films and the page; prints a short table. -> {"page": Path, "seconds": ..., "peak_memory_mb": ...}.

    model: a VideoLDM (the shipped `actions` weights if None). steps: DDIM steps (what the weights say if None).
    ValueError if `out` is a file; FileNotFoundError if there are no weights.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give the name of a folder for the page and the films")
    log = Log()
    with log.timing("loading the weights"):
        model = VideoLDM.from_pretrained("actions") if model is None else model
    actions = list(dict(model.config.label_names)["action"])
    asked = [(person, action) for action in range(len(actions)) for person in persons]
    labels = torch.cat([model.labels(action=action, person=person) for person, action in asked])
    t, n = model.config.frames, len(asked) * model.config.frames
    with log.timing(f"image model: {len(asked)} times {t} frames", n):
        image = model.generate(labels, frames=t, alpha=1, seed=seed, steps=steps).cpu()
    with log.timing(f"video model: {len(asked)} films of {t} frames", n):
        video = model.generate(labels, frames=t, seed=seed, steps=steps).cpu()
    with log.timing(f"video model: one film of {LONG} frames", LONG):
        pick = min(1 * len(persons), len(asked) - 1)  # the second action by the first person
        long = model.generate(labels[pick : pick + 1], frames=LONG, seed=seed, steps=steps).cpu()[0]
    with log.timing("writing the page"):
        facts = _facts(model, actions, asked, pick, seed, steps)
        page = write(out, image, video, long, facts, log, model.config.fps)
    print("\n" + log.table())
    print(f"\nopen {page} in a browser")
    return dict(page=page, seconds=time.perf_counter() - log.began, peak_memory_mb=peak_memory_mb())


def _facts(model, actions, asked, pick, seed, steps) -> dict:
    """What the page says in words about what was asked for."""
    names = [f"person {person}, {actions[action]}" for person, action in asked]
    new = [pair in HELD_OUT_PAIRS or pair[0] == 8 for pair in asked]
    return dict(names=names, new=new, long=names[pick], seed=seed, steps=steps or model.config.steps)


def write(out: Path, image, video, long, facts: dict, log: Log, fps: float) -> Path:
    """The page, a movie, a film strip. image, video (n t 3 h w), long (t 3 h w) in [-1, 1] -> path of the page."""
    some = list(range(0, len(video), max(1, len(video) // 4)))[:4]
    pairs = torch.stack([torch.stack([image[i], video[i]]) for i in some])  # n 2 t 3 h w
    strip = pictures.strip(pairs.flatten(0, 1), alt="image model, video model, and so on, one film a row")
    strip.save(out / "strip.png")
    gap = torch.zeros(*pairs.shape[2:4], pictures.GAP, pairs.shape[5])  # t 3 gap w
    columns = torch.stack([torch.cat([pair[0], gap, pair[1]], dim=-2) for pair in pairs])  # image above video
    movie = pictures.movie(columns, fps=fps, alt="four films: the image model above, the video model below")
    movie.save(out / "films.webp")
    try:
        movie.save(out / "films.mp4")
    except ImportError:
        print("films.mp4 is left out: PyAV is not installed (pip install av)")
    text = page(image, video, long, facts, log, fps, strip)
    return pictures.write_beside(out / "index.html", text.encode())


# ---------------------------------------------------------------------------------------------------------------------
# The page


def _film(x: np.ndarray, alt: str, row: int, size: int) -> str:
    """A film as one wide picture (`t h w 3`) of which a script shows one frame at a time; a line marks `row`."""
    sheet = pictures.uri(pictures.encode_image(np.concatenate(list(x), axis=1), "webp", quality=92, method=4), "webp")
    style = f"width:{size}px;height:{size}px;background-size:{len(x) * 100}% 100%;background-image:url({sheet})"
    line = f'<i class="row" style="top:{100 * (row + 0.5) / x.shape[1]:.1f}%"></i>'
    name = f'role="img" aria-label="{html.escape(alt)}" data-frames="{len(x)}"'
    return f'<div class="film" {name} style="{style}">{line}</div>'


def _slice(x: np.ndarray, alt: str, row: int, size: int) -> str:
    """The x-t slice of a film, with a mark at the moment that is shown."""
    image = pictures.encode_image(x[:, row])  # t w 3: each moment one pixel high, enlarged by the page
    img = f'<img src="{pictures.uri(image, "png")}" alt="{html.escape(alt)}" style="width:{size}px;height:{size}px">'
    mark = f'<i class="now" style="height:{100 / len(x):.2f}%"></i>'
    return f'<div class="xt" data-frames="{len(x)}" style="width:{size}px;height:{size}px">{img}{mark}</div>'


def _pair(image, video, name: str, size: int) -> str:
    """Image model over video model, each film beside its x-t slice of one and the same pixel row."""
    row = pictures.moving_row(video)
    rows = ""
    for frames, word in ((image, "image model"), (video, "video model")):
        x, alt = pictures.pixels(frames)[0], f"{word}: {name}"
        change = float(np.abs(np.diff(x.astype(float), axis=0)).mean() / 127.5)
        rows += (
            f'<div class="line"><span class="tag">{word}<small>change {change:.2f}</small></span>'
            f"{_film(x, alt, row, size)}{_slice(x, f'x-t slice, {alt}', row, size)}</div>"
        )
    return rows


def _cards(image, video, facts: dict) -> str:
    badge = '<span class="new">never filmed</span>'
    out = ""
    for i, (name, new) in enumerate(zip(facts["names"], facts["new"])):
        head = f"<h3>{html.escape(name)}{badge if new else ''}</h3>"
        out += f'<article class="card">{head}{_pair(image[i], video[i], name, 128)}</article>'
    return out


def _rows(log: Log) -> str:
    cells = "<tr><td>{}</td><td>{}</td><td>{:.1f}</td></tr>"
    peak = peak_memory_mb()
    rows = [cells.format(html.escape(what), n or "", seconds) for what, n, seconds in log.rows]
    rows += [f"<tr><td>peak memory</td><td></td><td>{peak:,.0f} MB</td></tr>"] if peak else []
    return "".join(rows)


def page(image, video, long, facts: dict, log: Log, fps: float, strip) -> str:
    """One self-contained HTML page: no script, font or picture comes from elsewhere."""
    x, row = pictures.pixels(long)[0], pictures.moving_row(long)
    hero = min(3, len(video) - 1)  # the second action by the second person
    values = dict(
        hero=_pair(image[hero], video[hero], facts["names"][hero], 224), hero_name=html.escape(facts["names"][hero]),
        cards=_cards(image, video, facts), long_name=html.escape(facts["long"]), frames=video.shape[1],
        long=_film(x, f"video model: {facts['long']}, {len(x)} frames", row, 224)
        + _slice(x, "x-t slice of the long film", row, 224),
        long_frames=len(x), long_strip=pictures.strip(long, scale=1, alt=f"the {len(x)} frames of the film above").html(),
        strip=strip.html(), seed=facts["seed"], steps=facts["steps"], table=_rows(log),
        data=json.dumps(dict(ms=round(1000 / fps), frames=len(x), rounds=2)),
    )  # fmt: skip
    text = (Path(__file__).parent / "demo.html").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"[[{name}]]", str(value))
    return text
