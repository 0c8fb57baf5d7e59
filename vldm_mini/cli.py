"""The commands: python -m vldm_mini demo | test | lab | check | train | sample | data.

They are the same on Linux, macOS and Windows; `make demo`, `make test` and `make lab` install what
is needed first. A mistake at the interface (a file, a name, a number) is one line on stderr and
exit code 2, never a traceback.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from . import machine
from .arguments import Parser, mistake, number, positive, seed
from .sample import options as sample_options
from .sample import sample

ROOT = Path(__file__).resolve().parent.parent
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
MOST_TEST_WORKERS = 4              # each holds torch: half a gigabyte of memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit code: 0 fine, 1 a check or a test failed, 2 a mistake in the command line or in
    what it names, 130 stopped by Ctrl-C.
    """
    args, extra = parser().parse_known_args(argv)
    if extra and args.run not in (test, lab):
        return mistake(f"unknown option {extra[0]}; see python -m vldm_mini {args.command} -h")
    args.extra = extra
    try:
        return args.run(args) or 0
    except ImportError as error:
        if (error.name or "").startswith("vldm_mini"):
            raise                                                  # a fault of ours: show where
        return mistake(f"{error.name} is not installed: {_install(error.name)}" if error.name
                       else error)
    except (ValueError, OSError, FloatingPointError) as error:
        return mistake(error)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        return mistake("the device ran out of memory; choose a smaller --size or fewer --frames")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _install(module: str) -> str:
    """The command that installs a missing module, by the first extra that holds its package."""
    from .report import requirements
    package = {"PIL": "pillow", "xdist": "pytest-xdist"}.get(module, module)
    for name, _, extra in requirements():
        if name.lower() == package.lower():
            what = f".[{extra}]" if extra else "."
            return f'pip install -e "{what}" -c constraints.txt'
    return 'pip install -e ".[notebooks,test]" -c constraints.txt'


# --------------------------------------------------------------------------------------------------
# The commands.

def demo(args: argparse.Namespace) -> None:
    """Videos from the shipped weights, on one HTML page. Needs no data and no network."""
    from .teaching import demo
    from .weights import writable
    machine.set_threads()
    demo.run(writable(args.out))


def test(args: argparse.Namespace) -> int:
    """Every test, and every notebook as a test, a file at a time on each core.

    All further arguments go to pytest: `test -k temporal`, `test tests/test_unet.py -x`. With a
    path, or with `-n 0`, one process runs everything.
    """
    if not (ROOT / "tests").is_dir():
        raise FileNotFoundError("there is no tests folder beside the package; "
                                "clone the repository and run it there")
    import pytest
    for module in ("nbval", "xdist"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(name=module)

    os.chdir(ROOT)
    os.environ.setdefault("VLDM_SIZE", "xs")    # also for a single notebook, without tests/conftest
    options = [*NBVAL, "--nbval-sanitize-with=tests/nbval_sanitize.cfg", *args.extra]
    if not any(_is_test_path(word) for word in args.extra):
        options.append("tests")
        if any(Path("notebooks").glob("*.ipynb")):
            options.append("notebooks")
        if not any(word.startswith(("-n", "--numprocesses", "--pdb")) for word in args.extra):
            workers = min(machine.threads(), MOST_TEST_WORKERS)
            options += ["-n", str(workers if workers > 1 else 0), "--dist", "loadfile"]
    return int(pytest.main(options))


def _is_test_path(word: str) -> bool:
    """True for an argument of pytest that selects files: a path, or path::test."""
    return not word.startswith("-") and Path(word.partition("::")[0]).exists()


def lab(args: argparse.Namespace) -> int:
    """JupyterLab in the folder of the chapters. All further arguments go to JupyterLab."""
    import jupyterlab  # noqa: F401  a clear message when it is missing
    folder = ROOT / "notebooks"
    return subprocess.call([sys.executable, "-m", "jupyterlab", *args.extra],
                           cwd=folder if folder.is_dir() else ROOT)


def check(args: argparse.Namespace) -> int:
    """A report on this machine; exit code 1 if something needs a remedy."""
    from . import report
    if args.mini:
        for file, line, text in report.mini_marks():
            print(f"{file}:{line}: {text}")
        return 0
    facts = report.collect()
    print(json.dumps(facts, indent=1) if args.json else report.describe(facts))
    return 1 if facts["problems"] else 0


def train(args: argparse.Namespace) -> None:
    """Train one stage, or all of them from random weights; a run that was stopped is resumed."""
    from .training.stages import Request, train_stage
    machine.set_threads()
    size, mini_sd = args.size or machine.pick_size(), args.stage.startswith("mini-sd")
    data = "mini-sd" if mini_sd else args.data
    out = Path(args.out) if args.out else run_folder(data, size)
    request = Request(
        data=data, size=size, out=out, seed=args.seed, steps=args.steps, minutes=args.minutes,
        lr=args.lr, batch=args.batch, frames=args.frames, accumulate=args.accumulate,
        precision=args.precision or "", start=Path(args.start) if args.start else None,
        resume=args.resume)
    if mini_sd:
        from .stable_diffusion.training import train as train_mini_sd
        train_mini_sd(args.stage, request)
    else:
        train_stage(args.stage, request)
    print(f"done: {out if mini_sd or args.stage == 'all' else out / args.stage}")


def run_folder(data: str, size: str) -> Path:
    """Where the stages of a data set lie by default: runs/NAME-SIZE.

    data: the name of a set, or a path. Two folders with the same name get two runs, since a short
    hash of the whole path is part of theirs.
    """
    from .datasets import video
    if data in ("driving", "mini-sd") or data in video.catalogue() or not Path(data).exists():
        return Path("runs") / f"{data}-{size}"
    path = Path(data).resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:6]
    return Path("runs") / f"{path.name.partition('.')[0] or 'root'}-{digest}-{size}"


def data(args: argparse.Namespace) -> None:
    """Fetch a set (or read a folder of videos), check it, and say what is in it.

    `data pack NAME` writes its frames as one file for a machine that cannot read videos.
    """
    from .datasets import driving, video
    if args.name[0] == "pack" and len(args.name) == 2:
        return _pack(args)
    if len(args.name) != 1:
        raise ValueError(f"data takes NAME or pack NAME, got {' '.join(args.name)!r}")
    print(driving.summary() if args.name[0] == "driving" else video.summary(args.name[0]))


def _pack(args: argparse.Namespace) -> None:
    from .training.data import PACKED, pack
    from .training.sizes import size_of
    name, size = args.name[1], args.size or machine.pick_size()
    path = Path(args.out or Path("runs") / f"{run_folder(name, size).name}{PACKED}")
    written = pack(name, size_of(size, name), path)
    print(f"done: {path}, {written / 2 ** 20:.1f} MiB")


# --------------------------------------------------------------------------------------------------
# The options.

def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser("python -m vldm_mini", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Callable) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0],
                                  description=function.__doc__)
        sub.set_defaults(run=function)
        return sub

    sub = command(demo)
    sub.add_argument("--out", default="demo_out", help="folder of the page (demo_out)")
    command(test)
    command(lab)
    sub = command(check)
    sub.add_argument("--mini", action="store_true",
                     help="list every choice of ours and every difference from the paper instead")
    sub.add_argument("--json", action="store_true", help="the report as JSON")
    _train_options(command(train))
    sample_options(command(sample))
    _data_options(command(data))
    return top


def _train_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("stage", help="autoencoder, image, temporal, decoder, prediction, "
                     "interpolation, boxes, upsampler, latent_upsampler, classifiers, all: "
                     "every stage of Fig. 5 from random weights, or mini-sd: a small Stable "
                     "Diffusion (also mini-sd-autoencoder, mini-sd-image, mini-sd-temporal)")
    sub.add_argument("--data", default="actions", help="driving, actions, signs, road, a folder of "
                     "videos, or a file that `data pack` wrote (actions)")
    sub.add_argument("--size", choices=("xs", "s", "m"),
                     help="default: VLDM_SIZE, or what suits the machine")
    sub.add_argument("--steps", type=positive, help="training steps (default: the size's)")
    sub.add_argument("--minutes", type=number(0.1, 100000),
                     help="wall time in place of steps; `all` divides it among the stages")
    sub.add_argument("--lr", type=number(1e-8, 10), help="learning rate (default: the size's)")
    sub.add_argument("--batch", type=positive, help="samples a step, over all processes")
    sub.add_argument("--frames", type=positive, help="T, frames of a clip (default: the size's)")
    sub.add_argument("--accumulate", type=positive, help="forward and backward passes a step (1)")
    sub.add_argument("--precision", choices=("fp32", "bf16"), help="default: the faster one here")
    sub.add_argument("--seed", type=seed, default=0, help="of everything random, 0 to 2^63 - 1 (0)")
    sub.add_argument("--out", help="folder of the run of all stages (runs/DATA-SIZE; for a "
                     "path, runs/NAME-HASH-SIZE)")
    sub.add_argument("--start", help="a folder with weights of this stage to go on from, in place "
                     "of random ones")
    sub.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                     help="go on from the last checkpoint in the folder, where there is one")


def _data_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", nargs="+",
                     help="[pack] driving, actions, signs, road, or a folder of videos")
    sub.add_argument("--size", choices=("xs", "s", "m"),
                     help="with pack: size of the frames (default: VLDM_SIZE, or what suits the "
                     "machine)")
    sub.add_argument("--out", help="with pack: the file (runs/NAME-SIZE.clips.safetensors)")
