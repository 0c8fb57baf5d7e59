"""Run one benchmark, print and keep its figures as JSON.

    python -m tests.benchmarks NAME [--threads N]       # a benchmark; --list names them
    python -m tests.benchmarks house | stale | results | notebooks       # about the repository
    python -m tests.benchmarks claims --list | exercises 04 | browser 04     # see their --help
"""
import argparse
import ast
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# modules with a main(argv) of their own, about the repository
COMMANDS = ("house", "stale", "results", "notebooks")
# benchmarks with a main(argv) too: with options of their own they print, and keep nothing
WITH_OPTIONS = ("claims", "exercises", "browser")


def names() -> dict[str, str]:
    """{name: first line of its docstring} of every benchmark, without importing any."""
    found = {}
    for file in sorted(HERE.glob("[!_]*.py")):
        if file.stem not in COMMANDS:
            doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[file.stem.replace("_", "-")] = doc.partition("\n")[0]
    return found


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"{__package__}.{argv[0]}").main(argv[1:])
    if argv[1:] and argv[0] in WITH_OPTIONS and argv[1] != "--threads":
        return importlib.import_module(f"{__package__}.{argv[0]}").main(argv[1:])
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a benchmark; see --list")
    parser.add_argument("--list", action="store_true", help="all benchmarks and what they measure")
    parser.add_argument("--threads", type=int,
                        help="CPU threads (default: as many as the container may use)")
    args = parser.parse_args(argv)
    known = names()
    if args.list:
        print("\n".join(f"{name:<22}{what}" for name, what in known.items()))
        return 0
    problem = None
    if args.name not in known:
        problem = f"unknown benchmark {args.name!r}; choose one of {', '.join(known)}"
    elif args.threads is not None and args.threads < 1:
        problem = f"--threads {args.threads} makes no sense; 1 or more"
    else:
        try:
            print(json.dumps(keep(args.name, measure(args.name, args.threads))))
        except (ValueError, OSError) as error:  # no data, no weights: one line is enough
            problem = str(error)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def measure(name: str, threads: int | None = None) -> dict:
    """The figures of one benchmark and where they come from.

    Beside the figures: minutes, date, commit, hardware, versions, and "weights", the checksums of
    the shipped weights that were loaded.
    """
    import torch

    from tests import loaded_weights
    from vldm_mini import machine
    torch.set_num_threads(threads or machine.threads())
    start = time.perf_counter()
    module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
    with loaded_weights.recorded() as used:
        figures = module.run()
    minutes, date = (time.perf_counter() - start) / 60, datetime.datetime.now(datetime.UTC)
    return {"name": name, **figures, "minutes": round(minutes, 2),
            "date": f"{date:%Y-%m-%d %H:%M} UTC", **commit(), **hardware(),
            "weights": used.checksums}


def commit() -> dict:
    """{"commit", "dirty"}: the state of the code that was measured; results and their pictures do
    not count."""
    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/",
                      ":(exclude,top)tests/benchmarks/results", ":(exclude,top)data/media")
        return {"commit": git("rev-parse", "HEAD"),
                "dirty": None if changed is None else bool(changed)}
    except OSError:
        return {"commit": None, "dirty": None}


def hardware() -> dict:
    """What it ran on: processor or GPU, threads, torch."""
    import torch

    from vldm_mini import machine
    here = machine.device()
    name = torch.cuda.get_device_name() if here.type == "cuda" else _processor()
    return {"hardware": f"{name}, {os.cpu_count()} cores", "device": here.type,
            "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def keep(name: str, figures: dict) -> dict:
    """Write results/NAME.json, whole or not at all, and the pages that show it; -> the figures."""
    from tests.benchmarks import results
    from vldm_mini.weights import write_text
    write_text(RESULTS / f"{name}.json", json.dumps(figures, indent=1) + "\n")
    results.write()
    return figures


if __name__ == "__main__":
    sys.exit(main())
