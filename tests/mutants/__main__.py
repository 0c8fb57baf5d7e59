"""Plant one small mistake after the other in a copy of the package and run the tests named for it.

    python -m tests.mutants                             # all of them, an hour or so on one core
    python -m tests.mutants --only upsampler --time 60  # those whose name holds "upsampler"
    python -m tests.mutants --check                     # whether every mistake still fits the code

Prints killed or survived for each and stores tests/mutants/result.json. A test that runs into the
time limit counts as killed. Not part of `make test`.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.planted import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).resolve().parent / "result.json"
COPIED = ("vldm_mini", "tests", "pyproject.toml", "README.md", "RESULTS.md", "Makefile",
          "constraints.txt", "environment.yml", ".ci", "LICENSE")
LINKED = ("data", "notebooks")                              # large, and never changed


def copy_tree(folder: Path) -> None:
    """What the tests need, in `folder`."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "result.json")
            shutil.copytree(source, folder / name, ignore=ignore)
        elif source.is_file():
            shutil.copy(source, folder / name)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def fits(mutant: Mutant, root: Path = ROOT) -> bool:
    """Whether the text to change occurs exactly once in its file."""
    file = root / mutant.file
    return file.is_file() and file.read_text(encoding="utf-8").count(mutant.old) == 1


def tests_pass(folder: Path, tests: tuple[str, ...], seconds: float) -> bool:
    """Whether the tests pass in a copy; running into the time limit is a failure."""
    environment = dict(os.environ, PYTHONPATH=str(folder), OMP_NUM_THREADS="1",
                       PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
               *tests]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True,
                              timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):                   # neither passed nor failed: no tests
        raise RuntimeError(f"pytest did not run {' '.join(tests)}: "
                           f"{done.stdout.decode()[-1000:]}{done.stderr.decode()[-500:]}")
    return done.returncode == 0


def survives(mutant: Mutant, folder: Path, seconds: float) -> bool:
    """Plant the mistake in the copy, run its tests, take it out again -> whether they passed."""
    file = folder / mutant.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return tests_pass(folder, mutant.tests, seconds)
    finally:
        file.write_text(text, encoding="utf-8")


def store(found: dict[str, str], path: Path = RESULT) -> dict:
    """Merge {name: "killed", "survived" or "does not fit"} into the stored result, and write it.

    -> {"made", "killed", "survived": [...], "does not fit": [...]} over all planted mistakes.
    """
    before = json.loads(path.read_text(encoding="utf-8"))["each"] if path.is_file() else {}
    names = [mutant.name for mutant in MUTANTS]
    each = {name: verdict for name, verdict in (before | found).items() if name in names}
    result = {"made": sum(verdict != "does not fit" for verdict in each.values()),
              "killed": sum(verdict == "killed" for verdict in each.values()),
              "survived": [name for name in names if each.get(name) == "survived"],
              "does not fit": [name for name in names if each.get(name) == "does not fit"],
              "each": {name: each[name] for name in names if name in each}}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def run(mutants: list[Mutant], seconds: float) -> dict[str, str]:
    """-> {name: "killed", "survived" or "does not fit"}; each is stored when it is known.

    Raises RuntimeError if tests fail in the unchanged copy.
    """
    found, passed = {}, set()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tree"
        folder.mkdir()
        copy_tree(folder)
        for number, mutant in enumerate(mutants, 1):
            if not fits(mutant, folder):
                found[mutant.name] = "does not fit"
            else:
                if mutant.tests not in passed:
                    if not tests_pass(folder, mutant.tests, 10 * seconds):
                        raise RuntimeError(f"{' '.join(mutant.tests)} fails without any mistake")
                    passed.add(mutant.tests)
                alive = survives(mutant, folder, seconds)
                found[mutant.name] = "survived" if alive else "killed"
            print(f"{number}/{len(mutants)} {found[mutant.name]}: {mutant.name}", flush=True)
            store({mutant.name: found[mutant.name]})
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 1 if a mistake survived or does not fit."""
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="SUBSTRING",
                        help="mistakes whose name or file holds this")
    parser.add_argument("--time", type=float, default=120, help="seconds for the tests of one")
    parser.add_argument("--check", action="store_true", help="say which do not fit; run nothing")
    args = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if args.only in mutant.name or args.only in mutant.file]
    if args.check:
        unfit = [mutant.name for mutant in chosen if not fits(mutant)]
        print("\n".join([*unfit, f"{len(unfit)} of {len(chosen)} do not fit the code"]))
        return int(bool(unfit))
    found = list(run(chosen, args.time).values())
    print(json.dumps({"made": sum(verdict != "does not fit" for verdict in found),
                      "killed": found.count("killed"), "survived": found.count("survived")}))
    return int(found.count("killed") < len(found))


if __name__ == "__main__":
    sys.exit(main())
