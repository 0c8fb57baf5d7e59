"""Stored results and notebooks whose weights are not those that ship today.

    python -m tests.benchmarks stale [--prune]

Each stored result and each notebook holds the checksums of the shipped weights that it loaded.
One is out of date if a checksum differs from today's, or if it holds none.
tests/stale_exceptions.json lists what is known to be out of date: {"name", "date", "reason"}
each; a test refuses others, and exceptions that are no longer needed.
"""
import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from tests import loaded_weights

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
NOTEBOOKS = ROOT / "notebooks"
EXCEPTIONS = ROOT / "tests" / "stale_exceptions.json"


@dataclass(frozen=True)
class Stale:
    """A stored result ("results/NAME") or notebook ("notebooks/NAME"), and why it is out of
    date."""
    name: str
    why: str


def difference(stored: dict[str, str] | None, today: dict[str, str]) -> str:
    """Why what was stored with these checksums is out of date; "" if it is not."""
    if stored is None:
        return "it holds no checksums of weights"
    gone = sorted(set(stored) - set(today))
    if gone:
        return f"weights that no longer ship: {', '.join(gone)}"
    changed = sorted(name for name, checksum in stored.items() if today[name] != checksum)
    return f"weights that have changed: {', '.join(changed)}" if changed else ""


def stored_checksums() -> dict[str, dict[str, str] | None]:
    """{name: checksums, or None where there are none} of all stored results and notebooks."""
    found = {}
    for file in sorted(RESULTS.glob("*.json")):
        found[f"results/{file.stem}"] = json.loads(file.read_text(encoding="utf-8")).get("weights")
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
        found[f"notebooks/{file.stem}"] = metadata.get("vldm", {}).get("weights")
    return found


def stale() -> list[Stale]:
    """Everything that is out of date."""
    today, found = loaded_weights.todays(), []
    for name, checksums in stored_checksums().items():
        why = difference(checksums, today)
        if why:
            found.append(Stale(name, why))
    return found


def exceptions() -> dict[str, dict]:
    """{name: {"date", "reason"}} of tests/stale_exceptions.json."""
    if not EXCEPTIONS.is_file():
        return {}
    return {entry["name"]: entry for entry in json.loads(EXCEPTIONS.read_text(encoding="utf-8"))}


def prune(found: list[Stale]) -> None:
    """Take exceptions that are not in `found` out of tests/stale_exceptions.json."""
    needed = {one.name for one in found}
    kept = [entry for name, entry in exceptions().items() if name in needed]
    EXCEPTIONS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """The command line: one line each; returns 1 if something is out of date and not excepted."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks stale",
                                     description=__doc__.partition("\n")[0])
    parser.add_argument("--prune", action="store_true",
                        help="take exceptions that are no longer needed out of the file")
    args = parser.parse_args(argv)
    found = stale()
    if args.prune:
        prune(found)
    known = exceptions()
    for one in found:
        reason = known.get(one.name, {}).get("reason")
        print(f"{one.name}: {one.why}" + (f" (excepted: {reason})" if reason else ""))
    print(f"{len(found)} of {len(stored_checksums())} out of date, "
          f"{sum(one.name not in known for one in found)} of them not excepted")
    return int(any(one.name not in known for one in found))
