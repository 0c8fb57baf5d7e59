"""The commands: python -m vldm_mini demo | test | lab | check | train | sample | data   (-h after each for more).

They are the same on Linux, macOS and Windows; `make demo`, `make test` and `make lab` only install things first.
What goes wrong at the door (a file, a name, a number) is one line on stderr and exit code 2, never a traceback.
"""
import argparse
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")


def main(argv=None):
    """Run one command; returns the exit code (0 fine, 1 a check or test failed, 2 a mistake at the door)."""
    args, extra = parser().parse_known_args(argv)
    if extra and args.run is not test:
        return _mistake(f"unknown option {extra[0]}; see python -m vldm_mini {args.command} -h")
    args.extra = extra
    try:
        return args.run(args) or 0
    except ImportError as error:
        if (error.name or "").startswith("vldm_mini"):
            raise                                                  # a fault of ours: show where
        install = 'pip install -e ".[notebooks,test]" -c constraints.txt'
        return _mistake(f"{error.name} is not installed: {install}" if error.name else error)
    except (ValueError, OSError, FloatingPointError) as error:
        return _mistake(error)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        return _mistake("the device ran out of memory; choose a smaller --size, or fewer --frames")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _mistake(error):
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def _threads():
    """One thread pool, of the size that this container may use."""
    import torch

    from vldm_mini import machine
    torch.set_num_threads(machine.threads())


# ----------------------------------------------------------------------------------------------------- the commands

def demo(args):
    """Films from the shipped weights, on one HTML page. Needs no data and no network."""
    _threads()
    from vldm_mini.teaching import demo
    demo.run(args.out)


def test(args):
    """Every test, and every notebook as a test, in one pytest process. Further words go to pytest: test -k temporal."""
    if not (ROOT / "tests").is_dir():
        raise FileNotFoundError("there is no tests folder beside the package; clone the repository and run it there")
    import nbval  # noqa: F401  a clear message when it is missing
    import pytest

    os.chdir(ROOT)
    os.environ.setdefault("VLDM_SIZE", "xs")                      # of one notebook too, which tests/conftest.py does not see
    books = ["notebooks"] if any(Path("notebooks").glob("*.ipynb")) else []
    options = [*NBVAL, "--nbval-sanitize-with=tests/nbval_sanitize.cfg"]
    chosen = [word for word in args.extra if not word.startswith("-") and Path(word.partition("::")[0]).exists()]
    return int(pytest.main([*options, *args.extra, *([] if chosen else ["tests", *books])]))


def lab(args):
    """JupyterLab in the folder of the chapters."""
    import jupyterlab  # noqa: F401  a clear message when it is missing
    folder = ROOT / "notebooks"
    return subprocess.call([sys.executable, "-m", "jupyterlab", *args.extra], cwd=folder if folder.is_dir() else ROOT)


def check(args):
    """A report on this machine; exit code 1 when something must be mended. --mini lists our own choices instead."""
    from vldm_mini import report
    if args.mini:
        print("\n".join(f"{file}:{line}: {text}" for file, line, text in mini_marks()))
        return 0
    facts = report.collect()
    if args.json:
        import json
        print(json.dumps(facts, indent=1))
    else:
        print(report.describe(facts))
    return 1 if facts["problems"] else 0


def mini_marks():
    """[(file, line, text)] of every `# MINI:` mark: where we differ from the paper or had to choose, and why.

    In a comment a reason runs to the end of the comment, in a docstring to a blank line, the next mark or its end.
    """
    found = []
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for hit in re.finditer(r"(# )?\bMINI:[ ]", text):
            beside = text[text.rfind("\n", 0, hit.start()) + 1:hit.start()].strip()              # code: a comment of one line
            end = (r"\n" if beside else r"\n(?! *# )") if hit[1] else r'\n *\n|"""|MINI:[ ]'
            reason = re.sub(r"\n *# ", " ", re.split(end, text[hit.end():], maxsplit=1)[0])
            line = text.count("\n", 0, hit.start()) + 1
            found.append((file.relative_to(ROOT).as_posix(), line, " ".join(reason.split())))
    return found


def train(args: argparse.Namespace) -> None:
    """Train one stage, or all of them from random weights; a run that was stopped is resumed."""
    from vldm_mini import machine
    from vldm_mini.training.stages import Request, train_stage
    _threads()
    size = args.size or machine.pick_size()
    out = Path(args.out) if args.out else _run_folder(args.data, size)
    request = Request(
        data=args.data, size=size, out=out, seed=args.seed, steps=args.steps, minutes=args.minutes,
        lr=args.lr, batch=args.batch, frames=args.frames, accumulate=args.accumulate,
        precision=args.precision or "", start=Path(args.start) if args.start else None,
        resume=args.resume)
    train_stage(args.stage, request)
    print(f"done: {out if args.stage == 'all' else out / args.stage}")


def _run_folder(data: str, size: str) -> Path:
    """Where the stages of a set lie by default. Two folders of one name get two runs."""
    if not Path(data).exists():
        return Path("runs") / f"{data}-{size}"
    path = Path(data).resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:6]
    return Path("runs") / f"{path.name.partition('.')[0] or 'root'}-{digest}-{size}"


def sample(args):
    """One film from trained weights: an animated WebP, a PNG film strip and an x-t slice.

    With --minutes one that goes on and on, written while it is made; with --smooth one at 16 times the rate, with
    --large one of four times the height: an .mp4. With --film no film is made up: your own is made large.
    """
    from vldm_mini.teaching import pictures
    from vldm_mini.pipeline import VideoLDM
    _threads()
    if args.minutes and args.large:
        raise ValueError("--minutes makes small films that go on; a part of it is made large by --film FILE --large ...")
    if args.film:
        return _enlarge_own(args)
    asked = {"person": args.person, "action": args.action} | dict(args.label)
    asked = {name: int(value) if value.isdigit() else value for name, value in asked.items() if value is not None}
    model, out = VideoLDM.from_pretrained(args.weights), Path(args.out)
    labels, fps = model.labels(**asked), model.config.fps
    if args.minutes:
        from tqdm.auto import tqdm
        parts = model.rollout(labels, round(60 * args.minutes * fps) + 1, seed=args.seed, progress=tqdm)
        print(f"done: {pictures.save_growing(out / 'film.mp4', (model.decode(z)[0] for z in parts), fps)}")
        return
    upsampler = model.upsampler(args.large) if args.large else None
    film = model.smooth_video(labels, seed=args.seed) if args.smooth else \
        model.generate(labels, frames=args.frames, alpha=args.alpha, seed=args.seed)
    fps = 16 * fps if args.smooth else fps
    if upsampler:
        return _enlarge(upsampler, film, fps, args)
    if args.smooth:
        print(f"done: {pictures.movie(film, fps=fps, scale=2, loop=1).save(out / 'film.mp4')}")
        return
    pictures.movie(film, fps=fps).save(out / "film.webp")
    pictures.strip(film).save(out / "strip.png")
    pictures.slice(film).save(out / "slice.png")
    print(f"done: film.webp, strip.png and slice.png in {out}")


def _enlarge(upsampler, film, fps, args, tile=None):
    from tqdm.auto import tqdm

    from vldm_mini.teaching import pictures
    parts = upsampler.parts(film, seed=args.seed, alpha=args.alpha, tile=tile, progress=tqdm)
    print(f"done: {pictures.save_growing(Path(args.out) / 'film.mp4', (part[0] for part in parts), fps, scale=1)}")


def _enlarge_own(args):
    from vldm_mini.datasets import video
    from vldm_mini.upsampler import VideoUpsampler
    if not args.large:
        raise ValueError("--film FILE is made large: give --large pixel or --large latent as well")
    if args.minutes or args.smooth or args.frames or args.label or args.person or args.action:
        raise ValueError("--film FILE is made large as it is: leave labels, --frames, --minutes and --smooth out")
    upsampler, (frames, fps) = VideoUpsampler.from_pretrained(args.weights, args.large), video.read_video(args.film)
    even = frames[:, :frames.shape[1] // 2 * 2, :frames.shape[2] // 2 * 2]                  # the U-Net halves it once
    _enlarge(upsampler, even.movedim(-1, 1)[None], fps, args, tile=(64, 128))


def data(args: argparse.Namespace) -> None:
    """Fetch a set (or read a folder of videos), check it, and say what is in it.

    `data pack NAME` writes its frames as one file for a machine that cannot read videos.
    """
    from vldm_mini.datasets import driving, video
    if args.name[0] == "pack" and len(args.name) == 2:
        return _pack(args)
    if len(args.name) != 1:
        raise ValueError(f"data takes NAME or pack NAME, got {' '.join(args.name)!r}")
    print(driving.summary() if args.name[0] == "driving" else video.summary(args.name[0]))


def _pack(args: argparse.Namespace) -> None:
    from vldm_mini import machine
    from vldm_mini.training.data import PACKED, pack
    from vldm_mini.training.sizes import size_of
    name, size = args.name[1], args.size or machine.pick_size()
    path = Path(args.out or Path("runs") / f"{Path(name).resolve().name}-{size}{PACKED}")
    written = pack(name, size_of(size, name), path)
    print(f"done: {path}, {written / 2 ** 20:.1f} MiB")


# -------------------------------------------------------------------------------------------------------- the options

class _Parser(argparse.ArgumentParser):
    """argparse whose complaints look like all others: one line."""

    def error(self, message):
        sys.exit(_mistake(f"{message}; see {self.prog} -h"))


def _positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2 ** 63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: a whole number from 0 to 2^63 - 1")
    return int(text)


def _label(text):
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _number(least, most):
    def number(text):
        try:
            if least <= float(text) <= most:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
    return number


def parser():
    """All commands and their options."""
    top = _Parser("python -m vldm_mini", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function):
        doc = function.__doc__
        sub = commands.add_parser(function.__name__, help=doc.splitlines()[0], description=doc)
        sub.set_defaults(run=function)
        return sub

    command(demo).add_argument("--out", default="demo_out", help="folder for the page and the films (demo_out)")
    command(test)
    command(lab)
    sub = command(check)
    sub.add_argument("--mini", action="store_true", help="list every place where we chose or differ from the paper")
    sub.add_argument("--json", action="store_true", help="the report as JSON")
    _train_options(command(train))
    _sample_options(command(sample))
    sub = command(data)
    sub.add_argument("name", nargs="+", help="[pack] driving, actions, signs, road, or a folder of videos")
    sub.add_argument("--size", choices=("xs", "s", "m"), help="pack: of the frames")
    sub.add_argument("--out", help="pack: the file (runs/NAME-SIZE.clips.safetensors)")
    return top


def _train_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("stage", help="autoencoder, image, temporal, decoder, prediction, interpolation, "
                     "boxes, upsampler, latent_upsampler, classifiers, or all: every stage of Fig. 5 "
                     "from random weights")
    sub.add_argument("--data", default="actions", help="driving, actions, signs, road, a folder of "
                     "videos, or a file that `data pack` wrote (actions)")
    sub.add_argument("--size", choices=("xs", "s", "m"),
                     help="default: VLDM_SIZE, or what suits the machine")
    sub.add_argument("--steps", type=_positive, help="training steps (default: the size's)")
    sub.add_argument("--minutes", type=_number(0.1, 100000),
                     help="wall time in place of steps; `all` divides it among the stages")
    sub.add_argument("--lr", type=_number(1e-8, 10), help="learning rate (default: the size's)")
    sub.add_argument("--batch", type=_positive, help="samples a step, over all processes")
    sub.add_argument("--frames", type=_positive, help="T, frames of a clip (default: the size's)")
    sub.add_argument("--accumulate", type=_positive, help="forward and backward passes a step (1)")
    sub.add_argument("--precision", choices=("fp32", "bf16"), help="default: the faster one here")
    sub.add_argument("--seed", type=_seed, default=0)
    sub.add_argument("--out", help="folder of the run of all stages (runs/DATA-SIZE)")
    sub.add_argument("--start", help="a folder with weights of this stage to go on from, in place of "
                     "random ones")
    sub.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                     help="go on from the last checkpoint in the folder, where there is one")


def _sample_options(sub):
    sub.add_argument("--weights", default="actions", help="a shipped set of weights, or the folder of a run (actions)")
    sub.add_argument("--person", help="0 to 8 (default: left to the model)")
    sub.add_argument("--action", help="'wave one hand', 'wave two hands', 'jumping jacks', bend, or 0 to 3")
    sub.add_argument("--label", action="append", type=_label, default=[], metavar="NAME=VALUE",
                     help="a label of other data (light=night), for weights that were trained on it")
    sub.add_argument("--frames", type=_positive, help="default: as trained")
    sub.add_argument("--minutes", type=_number(0.1, 600), help="a rollout of so many minutes (weights that hold prediction)")
    sub.add_argument("--smooth", action="store_true", help="two passes of interpolation (weights that hold it)")
    sub.add_argument("--large", choices=("pixel", "latent"), help="four times the height (weights with an upsampler; "
                     "they learnt at 30 frames a second: best with --smooth)")
    sub.add_argument("--film", metavar="FILE", help="a film of your own, made large (--large; --weights signs, or your own)")
    sub.add_argument("--alpha", type=_number(0, 1), help="0 to 1 sets every mix; 1 is the image model (default: as trained)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", default="sample_out", help="folder for the film (sample_out)")

