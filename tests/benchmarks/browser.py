"""Every chapter in JupyterLab, in a real browser: run all cells, move sliders, play videos.

    python -m tests.benchmarks browser                       # all chapters; kept as a result
    python -m tests.benchmarks browser 04 06 --shots FOLDER  # two of them, with screenshots

Needs `pip install playwright` and a Chromium or Chrome (VLDM_BROWSER: its path). Each chapter is
opened in a window of 1280 pixels, "Restart Kernel and Run All Cells" is chosen at size xs, and
every cell is looked at. Then the stored chapter is read as a static page without scripts, as GitHub
shows it. Counted for each: cells that ran, cells with an error, sliders and how many changed the
output when they were moved, pictures that move and those of which two moments differ, outputs wider
than their column, pictures that are broken.
"""
import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import notebooks

WIDTH, HEIGHT = 1280, 900
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-quic")
LONGEST = 600          # seconds for all cells of one chapter
OVERRIDES = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
             "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
# in the page: what each cell of the open notebook holds
CELLS = """() => {
    const book = window.jupyterapp.shell.currentWidget.content;
    return book.widgets.filter(cell => cell.model.type === 'code').map(cell => ({
        count: cell.model.executionCount,
        source: cell.model.sharedModel.source.trim().length > 0,
        error: cell.model.outputs.toJSON().some(output => output.output_type === 'error')}));
}"""
BUSY = """() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status"""
TOO_WIDE = """() => [...document.querySelectorAll('.jp-OutputArea-child')].filter(area => {
    const box = area.getBoundingClientRect();
    const inner = [...area.querySelectorAll('img, table, video, canvas, pre, svg')];
    return inner.some(one => one.getBoundingClientRect().right > box.right + 2)
        || box.right > window.innerWidth + 2;
}).length"""
BROKEN = """() => [...document.images].filter(one => one.complete && !one.naturalWidth).length"""


def browser_path() -> str:
    """A Chromium or Chrome. Raises ValueError where there is none."""
    for name in (os.environ.get("VLDM_BROWSER"), *BROWSERS):
        found = name and shutil.which(name)
        if found:
            return found
    raise ValueError("no Chromium or Chrome is here: install one, or name it in VLDM_BROWSER")


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """A JupyterLab over a folder -> its address. Stopped afterwards, with its kernels."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings = folder / "lab"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(OVERRIDES))
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
             "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
             "--LabApp.expose_app_in_browser=True", f"--LabApp.app_settings_dir={settings}"]
    environment = os.environ | {"VLDM_SIZE": "xs", "PYTHONPATH": str(notebooks.ROOT)}
    log = (folder / "jupyter.log").open("w")
    server = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    address = f"http://localhost:{port}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            time.sleep(0.5)
        else:
            raise ValueError("JupyterLab did not start: " + (folder / "jupyter.log").read_text())
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def run_all(page: Any, address: str, name: str) -> list[dict]:
    """Open a chapter, restart its kernel, run all cells -> what each code cell holds."""
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length"
                           " > 3", timeout=120_000)
    page.wait_for_function(f"() => ({BUSY})() === 'idle'", timeout=120_000)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:restart-run-all') }")
    page.locator(".jp-Dialog button.jp-mod-warn, .jp-Dialog button.jp-mod-accept").last.click()
    page.wait_for_timeout(3000)
    began = time.monotonic()
    while time.monotonic() - began < LONGEST:
        cells = page.evaluate(CELLS)
        done = all(cell["count"] for cell in cells if cell["source"])
        stopped = any(cell["error"] for cell in cells)
        if (done or stopped) and page.evaluate(BUSY) == "idle":
            return cells
        page.wait_for_timeout(1000)
    raise ValueError(f"{name} did not finish in {LONGEST} s")


def move_sliders(page: Any) -> tuple[int, int]:
    """Press an arrow key on every slider -> (sliders, those whose cell then looks different)."""
    sliders = page.locator(".jp-OutputArea .noUi-handle, .jp-OutputArea input[type=range]")
    count, moved = sliders.count(), 0
    for i in range(count):
        slider = sliders.nth(i)
        area = slider.locator("xpath=ancestor::*[contains(@class, 'jp-Cell-outputWrapper')][1]")
        slider.scroll_into_view_if_needed()
        before = area.inner_html()
        slider.focus()
        for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
            slider.press(key)
            page.wait_for_timeout(1500)
            if area.inner_html() != before:
                moved += 1
                break
    return count, moved


def play(page: Any) -> tuple[int, int]:
    """-> (moving pictures and videos, those of which two screenshots half a second apart differ).

    Of pictures of the same frame rate only the moving ones count: a WebP that plays a few times is
    started again by setting its address anew.
    """
    handles = page.locator("img[src^='data:image/webp'], img[src^='data:image/gif'], video").all()
    count = moving = 0
    for one in handles:
        if not animated(one.get_attribute("src") or ""):
            continue
        count += 1
        one.scroll_into_view_if_needed()
        one.evaluate("one => one.tagName === 'VIDEO' ? one.play()"
                     " : (() => { const src = one.src; one.src = ''; one.src = src; })()")
        page.wait_for_timeout(400)
        seen = {one.screenshot()}
        for _ in range(4):
            page.wait_for_timeout(300)
            seen.add(one.screenshot())
        moving += len(seen) > 1
    return count, moving


def animated(address: str) -> bool:
    """Whether the data: address of a picture holds more than one moment."""
    kind, comma, data = address.partition(",")
    if not kind.startswith("data:image"):
        return True                                                                     # a video
    return b"ANIM" in base64.b64decode(data[:200]) or kind.startswith("data:image/gif")


def static_page(browser: Any, path: Path, shots: Path | None) -> dict[str, int]:
    """The stored chapter as HTML without scripts, as GitHub shows it."""
    from nbconvert import HTMLExporter
    html, _ = HTMLExporter(template_name="classic").from_filename(str(path))
    context = browser.new_context(java_script_enabled=False,
                                  viewport={"width": WIDTH, "height": HEIGHT})
    page = context.new_page()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chapter.html"
        file.write_text(html, encoding="utf-8")
        page.goto(file.as_uri(), wait_until="load")
        found = dict(static_pictures=page.locator("img").count(),
                     static_broken=page.evaluate(BROKEN),
                     static_wider=int(page.evaluate("() => document.scrollingElement.scrollWidth")
                                      > WIDTH))
        if shots:
            page.screenshot(path=shots / f"{path.stem}_static.png", full_page=True)
    context.close()
    return found


def look(browser: Any, address: str, path: Path, shots: Path | None) -> dict[str, int]:
    """Everything that is counted of one chapter."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    cells = run_all(page, address, path.name)
    page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    page.wait_for_timeout(1000)
    found = dict(cells=sum(cell["source"] for cell in cells),
                 ran=sum(bool(cell["count"]) for cell in cells if cell["source"]),
                 errors=sum(cell["error"] for cell in cells))
    found["wider_than_page"] = page.evaluate(TOO_WIDE)
    found["broken_pictures"] = page.evaluate(BROKEN)
    found["videos"], found["videos_playing"] = play(page)
    found["sliders"], found["sliders_moved"] = move_sliders(page)
    found["errors_after_moving"] = sum(cell["error"] for cell in page.evaluate(CELLS))
    if shots:
        photograph(page, shots, path.stem)
    page.close()
    return found | static_page(browser, path, shots)


def photograph(page: Any, shots: Path, name: str) -> None:
    """The window at every screenful of the chapter, as one tall picture each four of them."""
    from PIL import Image
    pane = page.locator(".jp-WindowedPanel-outer").first
    tall = pane.evaluate("one => one.scrollHeight")
    parts = []
    for top in range(0, tall, HEIGHT - 150):
        pane.evaluate("(one, top) => { one.scrollTop = top }", top)
        page.wait_for_timeout(150)
        parts.append(Image.open(io.BytesIO(page.screenshot())))
    for at in range(0, len(parts), 4):
        some = parts[at:at + 4]
        sheet = Image.new("RGB", (WIDTH, HEIGHT * len(some)))
        for row, part in enumerate(some):
            sheet.paste(part, (0, HEIGHT * row))
        sheet.save(shots / f"{name}_{at // 4:02d}.png")


def run(names: list[str] | None = None, shots: Path | None = None) -> dict:
    """{chapters: {name: counts}, totals}. Raises ValueError without a browser or playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ValueError("this benchmark needs playwright: pip install playwright") from error
    executable, rows = browser_path(), {}
    files = notebooks.find(names or [])
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as tools:
        # the chapters find data/ and the package beside their folder
        work = Path(folder) / "notebooks"
        work.mkdir()
        for path in files:
            shutil.copy(path, work / path.name)
        with jupyterlab(work) as address:
            browser = tools.chromium.launch(executable_path=executable, args=list(FLAGS))
            for path in files:
                rows[path.stem] = look(browser, address, path, shots)
                print(f"{path.stem}: {rows[path.stem]}", file=sys.stderr, flush=True)
            browser.close()
    totals = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()), {})}
    return {"chapters": rows, "totals": totals}


def main(argv: list[str] | None = None) -> int:
    """The command line with options; it keeps no result. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks browser", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="how file names begin; none: all chapters")
    parser.add_argument("--shots", type=Path, help="a folder for screenshots")
    args = parser.parse_args(argv)
    try:
        print(json.dumps(run(args.names, args.shots), indent=1))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
