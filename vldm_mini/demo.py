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

from . import show
from .datasets.video import HELD_OUT_PAIRS
from .pipeline import VideoLDM

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
    actions = list(dict(model.config.words)["action"])
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
    strip = show.strip(pairs.flatten(0, 1), alt="image model, video model, and so on, one film a row")
    strip.save(out / "strip.png")
    gap = torch.zeros(*pairs.shape[2:4], show.GAP, pairs.shape[5])  # t 3 gap w
    columns = torch.stack([torch.cat([pair[0], gap, pair[1]], dim=-2) for pair in pairs])  # image above video
    movie = show.movie(columns, fps=fps, alt="four films: the image model above, the video model below")
    movie.save(out / "films.webp")
    try:
        movie.save(out / "films.mp4")
    except ImportError:
        print("films.mp4 is left out: PyAV is not installed (pip install av)")
    text = page(image, video, long, facts, log, fps, strip)
    return show.write_beside(out / "index.html", text.encode())


# ---------------------------------------------------------------------------------------------------------------------
# The page


def _film(x: np.ndarray, alt: str, row: int, size: int) -> str:
    """A film as one wide picture (`t h w 3`) of which a script shows one frame at a time; a line marks `row`."""
    sheet = show.uri(show.encode_image(np.concatenate(list(x), axis=1), "webp", quality=92, method=4), "webp")
    style = f"width:{size}px;height:{size}px;background-size:{len(x) * 100}% 100%;background-image:url({sheet})"
    line = f'<i class="row" style="top:{100 * (row + 0.5) / x.shape[1]:.1f}%"></i>'
    name = f'role="img" aria-label="{html.escape(alt)}" data-frames="{len(x)}"'
    return f'<div class="film" {name} style="{style}">{line}</div>'


def _slice(x: np.ndarray, alt: str, row: int, size: int) -> str:
    """The x-t slice of a film, with a mark at the moment that is shown."""
    image = show.encode_image(x[:, row])  # t w 3: each moment one pixel high, enlarged by the page
    img = f'<img src="{show.uri(image, "png")}" alt="{html.escape(alt)}" style="width:{size}px;height:{size}px">'
    mark = f'<i class="now" style="height:{100 / len(x):.2f}%"></i>'
    return f'<div class="xt" data-frames="{len(x)}" style="width:{size}px;height:{size}px">{img}{mark}</div>'


def _pair(image, video, name: str, size: int) -> str:
    """Image model over video model, each film beside its x-t slice of one and the same pixel row."""
    row = show.moving_row(video)
    rows = ""
    for frames, word in ((image, "image model"), (video, "video model")):
        x, alt = show.pixels(frames)[0], f"{word}: {name}"
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
    x, row = show.pixels(long)[0], show.moving_row(long)
    hero = min(3, len(video) - 1)  # the second action by the second person
    values = dict(
        hero=_pair(image[hero], video[hero], facts["names"][hero], 224), hero_name=html.escape(facts["names"][hero]),
        cards=_cards(image, video, facts), long_name=html.escape(facts["long"]), frames=video.shape[1],
        long=_film(x, f"video model: {facts['long']}, {len(x)} frames", row, 224)
        + _slice(x, "x-t slice of the long film", row, 224),
        long_frames=len(x), long_strip=show.strip(long, scale=1, alt=f"the {len(x)} frames of the film above").html(),
        strip=strip.html(), seed=facts["seed"], steps=facts["steps"], table=_rows(log),
        data=json.dumps(dict(ms=round(1000 / fps), frames=len(x), rounds=2)),
    )  # fmt: skip
    text = PAGE
    for name, value in values.items():
        text = text.replace(f"[[{name}]]", str(value))
    return text


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>One noise, two films</title>
<style>
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #23211c; --soft: #6b675d; --line: #e2ded3; --card: #fff;
  --mark: #d55e00; --cool: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #e8e6e1; --soft: #a09d95; --line: #303236;
  --card: #1e2023; --mark: #f0a35e; --cool: #6db9e8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6;
  font: 18px/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, serif; }
main { max-width: 1060px; margin: 0 auto; padding: 56px 24px 120px; }
h1 { font-size: 46px; line-height: 1.1; font-weight: 500; letter-spacing: -0.01em; margin: 0 0 12px; }
h2 { font-size: 26px; font-weight: 500; margin: 72px 0 8px; }
h3 { font: 600 15px/1.4 system-ui, sans-serif; margin: 0 0 12px; }
p { max-width: 40em; margin: 0 0 16px; }
.lead { font-size: 21px; color: var(--soft); }
.hero, .wide { display: flex; flex-wrap: wrap; gap: 12px 48px; margin: 32px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(410px, 100%), 1fr)); gap: 20px;
  margin-top: 28px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px 10px; }
.line { display: flex; align-items: center; gap: 12px; margin-bottom: 12px; }
.hero .line { flex-wrap: wrap; width: 460px; max-width: 100%; }
.hero .tag { width: 100%; }
.tag { width: 92px; font: 13px/1.35 system-ui, sans-serif; }
.tag small { display: block; color: var(--soft); font-variant-numeric: tabular-nums; }
.hero .tag small { display: inline; margin-left: 10px; }
.film, .xt { position: relative; border-radius: 4px; overflow: hidden; image-rendering: pixelated; flex: none;
  background-repeat: no-repeat; }
.xt img { image-rendering: pixelated; display: block; }
.row { position: absolute; left: 0; right: 0; height: 0; border-top: 1px dashed var(--mark); opacity: .75; }
.now { position: absolute; left: 0; right: 0; top: 0; border: 2px solid var(--mark); border-radius: 2px; }
.new { margin-left: 10px; padding: 2px 8px; border-radius: 99px; font-weight: 500; font-size: 12px;
  color: var(--cool); border: 1px solid var(--cool); }
.strip { margin: 20px 0; }
.strip img { max-width: 100%; height: auto; border-radius: 4px; }
table { border-collapse: collapse; font: 14px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
td, th { padding: 6px 24px 6px 0; border-bottom: 1px solid var(--line); text-align: right; font-weight: 400; }
td:first-child, th:first-child { text-align: left; } th { color: var(--soft); }
nav { position: fixed; left: 0; right: 0; bottom: 0; background: var(--paper); border-top: 1px solid var(--line);
  font: 14px system-ui, sans-serif; }
nav div { max-width: 1060px; margin: 0 auto; padding: 10px 24px; display: flex; gap: 16px; align-items: center; }
button { font: inherit; color: var(--paper); background: var(--ink); border: 0; border-radius: 99px; padding: 8px 20px;
  cursor: pointer; min-width: 88px; }
button:focus-visible, input:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
input { accent-color: var(--mark); flex: 1; max-width: 420px; }
output { font-variant-numeric: tabular-nums; color: var(--soft); min-width: 110px; }
@media (max-width: 520px) { h1 { font-size: 38px; } .line { flex-wrap: wrap; } .tag { width: 100%; } }
footer { margin-top: 80px; color: var(--soft); font-size: 15px; }
code { font-size: .85em; }
</style></head><body><main>
<h1>One noise, two films</h1>
<p class="lead">An image model draws single frames. Temporal layers, added to it without changing one of its weights,
make the same noise a film.</p>

<section class="hero" aria-label="[[hero_name]]">[[hero]]</section>
<p>Both films are <em>[[hero_name]]</em>, and both began as the same [[frames]] frames of noise. The
<b>image model</b> (alpha&nbsp;=&nbsp;1) draws each frame for itself: every one a plausible picture, and no film. The
<b>video model</b> lets the frames see one another: wall and body hold still, and the arms move on. These are small
models, trained for one to three hours each on a processor; look for an arm that still shakes.</p>
<p>The picture to the right of each film is its <b>x-t slice</b>: the row of pixels under the dashed line, followed over
time, which runs downwards. Frames that know nothing of one another make it static, with a jump at every step. What
stands still makes upright lines; what moves makes slanted ones. The number is how much a pixel changes, on average,
from one frame to the next (colours run from -1 to 1).</p>

<h2>Ask for a person and an action</h2>
<p>Four actions by two people. A pair marked <span class="new" style="margin:0">never filmed</span> was kept from the
models: they saw this person do other things, and others do this.</p>
<section class="cards">[[cards]]</section>

<h2>Longer than it ever saw</h2>
<p>The temporal layers were trained on [[frames]] frames. This film has [[long_frames]]: <em>[[long_name]]</em>.</p>
<section class="wide"><div class="line">[[long]]</div></section>
<div class="strip">[[long_strip]]</div>

<h2>Frame by frame</h2>
<p>Time runs to the right. Of each pair of rows the upper is the image model, the lower the video model.</p>
<div class="strip">[[strip]]</div>

<h2>What it cost</h2>
<table><tr><th></th><th>frames</th><th>seconds</th></tr>[[table]]</table>
<footer><p>Every frame on this page is generated: seed [[seed]], [[steps]] DDIM steps a film. The method is that of
Blattmann et al., <cite>Align your Latents: High-Resolution Video Synthesis with Latent Diffusion Models</cite>, CVPR
2023, arXiv&nbsp;2304.08818. Next: <code>notebooks/00_start_here.ipynb</code>.</p></footer>
</main>
<nav aria-label="player"><div><button id="play">Play</button>
<input id="seek" type="range" min="0" value="0" aria-label="frame"><output id="at"></output></div></nav>
<script>
const d = [[data]], films = [...document.querySelectorAll(".film")], slices = [...document.querySelectorAll(".xt")];
const [play, seek, at] = ["play", "seek", "at"].map((id) => document.getElementById(id));
let frame = 0, left = 0, timer = null;
seek.max = d.frames - 1;
function draw() {
  for (const f of films) {
    const n = +f.dataset.frames; f.style.backgroundPosition = 100 * (frame % n) / (n - 1) + "% 0"; }
  for (const s of slices) {
    const n = +s.dataset.frames; s.querySelector(".now").style.top = 100 * (frame % n) / n + "%"; }
  seek.value = frame; at.textContent = "frame " + (frame + 1) + " of " + d.frames;
}
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
function start() {
  left = d.rounds * d.frames; play.textContent = "Pause";
  timer = setInterval(() => { if (--left <= 0) return stop(); frame = (frame + 1) % d.frames; draw(); }, d.ms);
}
play.onclick = () => timer ? stop() : start();
seek.oninput = () => { stop(); frame = +seek.value; draw(); };
draw();
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
</script></body></html>
"""
