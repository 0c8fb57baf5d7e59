"""python -m tests.benchmarks NAME [--threads N] | --list: run one benchmark, print and keep its figures as JSON."""
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
COMMANDS = ("house",)  # modules with a main(argv) of their own, which measure the repository


def names():
    """{name: first line of its docstring} of every benchmark, without importing any."""
    found = {}
    for file in sorted(HERE.glob("[!_]*.py")):
        if file.stem in COMMANDS:
            continue
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[file.stem.replace("_", "-")] = doc.partition("\n")[0]
    return found


def main(argv=None):
    """Run what the command line asks for; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"{__package__}.{argv[0]}").main(argv[1:])
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="a benchmark; see --list")
    parser.add_argument("--list", action="store_true", help="names of all benchmarks and what they measure")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as the container may use)")
    args = parser.parse_args(argv)
    known = names()
    if args.list:
        print("\n".join(f"{name:<22}{what}" for name, what in known.items()))
        return 0
    if args.name not in known:
        print(f"error: unknown benchmark {args.name!r}; choose one of {', '.join(known)}", file=sys.stderr)
        return 2
    if args.threads is not None and args.threads < 1:
        print(f"error: --threads {args.threads} makes no sense; 1 or more", file=sys.stderr)
        return 2
    try:
        figures = measure(args.name, args.threads)
    except (ValueError, OSError) as error:                                 # no data, no weights: say so in one line
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(keep(args.name, figures)))
    return 0


def measure(name, threads=None):
    """The figures of one benchmark beside where they come from: commit, hardware, versions, minutes, date."""
    import torch

    from vldm_mini import machine
    torch.set_num_threads(threads or machine.threads())
    start = time.perf_counter()
    figures = importlib.import_module(f"{__package__}.{name.replace('-', '_')}").run()
    minutes, date = (time.perf_counter() - start) / 60, datetime.datetime.now(datetime.UTC)
    return {"name": name, **figures, "minutes": round(minutes, 2), "date": f"{date:%Y-%m-%d %H:%M} UTC",
            **commit(), **hardware()}


def commit():
    """{"commit", "dirty"}: the state of the code that was measured; results and their pictures do not count."""
    def git(*words):
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(exclude,top)tests/benchmarks/results",
                      ":(exclude,top)data/media")
        return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}
    except OSError:
        return {"commit": None, "dirty": None}


def hardware():
    """What it ran on: processor or GPU, threads, torch."""
    import torch

    from vldm_mini import machine
    here = machine.device()
    name = torch.cuda.get_device_name() if here.type == "cuda" else _processor()
    return {"hardware": f"{name}, {os.cpu_count()} cores", "device": here.type, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "python": platform.python_version()}


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def keep(name, figures):
    """Write results/NAME.json whole or not at all; returns the figures."""
    from vldm_mini.weights import write_text
    write_text(RESULTS / f"{name}.json", json.dumps(figures, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    sys.exit(main())
