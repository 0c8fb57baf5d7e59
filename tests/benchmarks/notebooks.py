"""Run notebooks from top to bottom and store their outputs and the checksums of their weights.

    python -m tests.benchmarks notebooks                        # all of them, at size s
    python -m tests.benchmarks notebooks 04 06 --size xs        # two of them, in seconds

A notebook is written only if every cell ran. Its metadata then holds, under "vldm", the size, the
minutes that it took and the checksums of the shipped weights that it loaded; `stale` compares them
with today's.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

from tests import loaded_weights

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
# fields of outputs that hold a path, an address in memory or a time would differ at every run
DROPPED_METADATA = ("widgets", "execution")


def find(names: list[str]) -> list[Path]:
    """The notebooks whose file name starts with one of the names; all for none.

    Raises ValueError for a name that fits no notebook.
    """
    files = sorted(FOLDER.glob("*.ipynb"))
    if not names:
        return files
    found = []
    for name in names:
        fitting = [file for file in files if file.name.startswith(name)]
        if not fitting:
            raise ValueError(f"no notebook starts with {name!r}; there are "
                             f"{', '.join(file.stem for file in files)}")
        found += fitting
    return found


def execute(path: Path, size: str, cell_timeout: int) -> float:
    """Run one notebook in a fresh kernel and write it back -> minutes.

    Raises nbclient's CellExecutionError for a cell that fails; the file is then unchanged.
    """
    import nbformat
    from nbclient import NotebookClient
    book = nbformat.read(path, as_version=4)
    stored = json.loads(path.read_text(encoding="utf-8"))
    in_lines = any(isinstance(cell["source"], list) for cell in stored["cells"])
    os.environ["VLDM_SIZE"] = size
    start = time.monotonic()
    with loaded_weights.recorded() as used:
        client = NotebookClient(book, timeout=cell_timeout, kernel_name="python3",
                                resources={"metadata": {"path": str(FOLDER)}})
        client.execute()
    minutes = (time.monotonic() - start) / 60
    clean(book)
    book.metadata.setdefault("vldm", {}).update(
        weights=used.checksums, size=size, minutes_measured=round(minutes, 1))
    if in_lines:                                            # as it was stored: a list of lines
        book = nbformat.v4.rwbase.split_lines(book)
    from vldm_mini.weights import write_text
    write_text(path, json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    return minutes


def clean(book: dict) -> None:
    """Leave out what differs from run to run and what GitHub does not show; number the cells."""
    for name in DROPPED_METADATA:
        book["metadata"].pop(name, None)
    book["metadata"].pop("language_info", None)
    number = 0
    for cell in book["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] != "code":
            continue
        if cell["source"].strip():
            number += 1
            cell["execution_count"] = number
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = number
        cell["outputs"] = [output for output in cell["outputs"]
                           if output.get("name") != "stderr"]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks notebooks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="how file names begin; none: all notebooks")
    parser.add_argument("--size", default="s", help="of training cells (default: s)")
    parser.add_argument("--cell-timeout", type=int, default=3600, help="seconds of one cell")
    args = parser.parse_args(argv)
    try:
        files = find(args.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = []
    for file in files:
        try:
            minutes = execute(file, args.size, args.cell_timeout)
            print(f"{file.stem}: {minutes:.1f} minutes", flush=True)
        except Exception as error:      # the others still run
            failed.append(file.stem)
            print(f"{file.stem}: {str(error)[-2000:]}", file=sys.stderr, flush=True)
    return 1 if failed else 0
