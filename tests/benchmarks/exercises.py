"""Every exercise: does its solution pass its check, and is each wrong answer that is tried caught?

    python -m tests.benchmarks exercises            # all chapters; kept as a result
    python -m tests.benchmarks exercises 04 06      # two of them; prints a line for each exercise

Runs each chapter at size xs in a kernel in which the checks write down every call of `passes` and
`fails`; one that does not hold, like any other cell that fails, does not stop the chapter.
"""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import notebooks
from vldm_mini.teaching import exercises

# runs first in the kernel: one JSON line a call
RECORDER = '''
import json as _json
from vldm_mini.teaching import exercises as _exercises

class _Record:
    exercise = 0

    @classmethod
    def write(cls, **row):
        with open({log!r}, "a", encoding="utf-8") as file:
            file.write(_json.dumps(dict(row, exercise=cls.exercise)) + "\\n")

    @classmethod
    def wrapped(cls, kind):
        original = getattr(_exercises.Check, kind)

        def method(self, *answers, **options):
            try:
                original(self, *answers, **options)
            except AssertionError as error:
                cls.write(kind=kind, held=False, why=str(error))
            else:
                cls.write(kind=kind, held=True)
        setattr(_exercises.Check, kind, method)

_Record.wrapped("passes")
_Record.wrapped("fails")
'''


def recorded(book: dict, log: Path) -> dict:
    """A copy of a notebook whose cells write to `log` which solutions pass and what is caught."""
    book = json.loads(json.dumps(book))
    for number, *_, cells in exercises.sections(book):
        for cell in cells:
            if exercises.has(cell, "solution"):
                cell["source"] = f"_Record.exercise = {number}\n{cell['source']}"
    first = {"cell_type": "code", "id": "recorder", "metadata": {}, "outputs": [],
             "execution_count": None, "source": RECORDER.format(log=str(log))}
    return book | {"cells": [first, *book["cells"]]}


def run_cells(book: dict) -> list[str]:
    """Run a notebook at size xs -> the errors of its cells, one line each."""
    import nbformat
    from nbclient import NotebookClient
    node = nbformat.from_dict(book)
    before = os.environ.get("VLDM_SIZE")
    os.environ["VLDM_SIZE"] = "xs"
    try:
        NotebookClient(node, timeout=900, kernel_name="python3", allow_errors=True,
                       resources={"metadata": {"path": str(notebooks.FOLDER)}}).execute()
    finally:
        if before is None:
            del os.environ["VLDM_SIZE"]
        else:
            os.environ["VLDM_SIZE"] = before
    return [f"cell {k - 1}: {output['ename']}: {output['evalue']}"[:300]      # 0: the recorder
            for k, cell in enumerate(node.cells) for output in cell.get("outputs", [])
            if output["output_type"] == "error"]


def of_chapter(path: Path) -> tuple[list[dict], list[str]]:
    """(a row for each exercise of a chapter, the errors of its cells)."""
    book = exercises.read(path)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "checks.jsonl"
        errors = run_cells(recorded(book, log))
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    calls = [json.loads(line) for line in lines]
    rows = []
    for number, level, _, title, cells in exercises.sections(book):
        own = [call for call in calls if call["exercise"] == number]
        held = {kind: [call["held"] for call in own if call["kind"] == kind]
                for kind in ("passes", "fails")}
        solutions = sum(exercises.has(cell, "solution") for cell in cells)
        rows.append({
            "chapter": path.stem, "exercise": number, "level": level, "title": title,
            "solutions": solutions,
            "solutions_pass": min(sum(held["passes"]), solutions) if all(held["passes"]) else 0,
            "wrong_answers_tried": len(held["fails"]), "caught": sum(held["fails"]),
            "problems": [call["why"] for call in own if not call["held"]]})
    return rows, [f"{path.stem}: {error}" for error in errors]


def run(names: list[str] | None = None) -> dict:
    """{exercises, guesses, solutions, solutions_pass, wrong_answers_tried, caught, ...}.

    guesses: exercises without a solution cell. fewest_wrong_answers: tried on one exercise that
    has a solution. errors: of cells. rows: one for each exercise.
    """
    rows, errors = [], []
    for path in notebooks.find(names or []):
        more_rows, more_errors = of_chapter(path)
        rows, errors = rows + more_rows, errors + more_errors
    solved = [row for row in rows if row["solutions"]]
    sums = {key: sum(row[key] for row in rows)
            for key in ("solutions", "solutions_pass", "wrong_answers_tried", "caught")}
    fewest = min((row["wrong_answers_tried"] for row in solved), default=0)
    return {"exercises": len(rows), "guesses": len(rows) - len(solved), **sums,
            "fewest_wrong_answers": fewest, "errors": errors, "rows": rows}


def main(argv: list[str] | None = None) -> int:
    """The command line for some chapters; it keeps no result. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks exercises", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="how file names begin; none: all chapters")
    args = parser.parse_args(argv)
    try:
        figures = run(args.names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for row in figures.pop("rows"):
        kind = (f"{row['solutions_pass']} of {row['solutions']} solutions pass, {row['caught']} of "
                f"{row['wrong_answers_tried']} wrong answers caught")
        print(f"{row['chapter']} {row['exercise']} ({row['level']}) {row['title']}: "
              f"{kind if row['solutions'] else 'a guess'}", *row["problems"], sep="\n    ")
    print(json.dumps(figures))
    return 0
