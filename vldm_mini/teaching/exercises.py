"""Exercises in the chapters: instant checks, guesses that are stored, versions without solutions.

The recipe, five cells of a notebook (the tags are cell tags; prose outside of code cells is free):

    ### Exercise 2 (m, 15 min): write `to_x0` for v          <- markdown; (e)asy, (m)edium, (h)ard,
    <details><summary>Hint</summary>                            and minutes
    blank line, text, blank line </details>                  <- in the same or another cell

    def to_x0(z, v, alpha_tau, sigma_tau):                   <- code, tag `exercise`: the stub;
        raise NotImplementedError("your code here")             print(stub_of(SOLUTION)) gives it

    @ex.check                                                <- code, tag `check`
    def check_x0(to_x0):
        z, v = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
        ex.close(to_x0(z, v, 0.6, 0.8), 0.6 * z - 0.8 * v, "x0 is alpha_tau z - sigma_tau v")
    check_x0(to_x0)

    def to_x0_solution(z, v, alpha_tau, sigma_tau):          <- code, tag `solution`, with metadata
        ### BEGIN SOLUTION                                      {"jupyter":
        return alpha_tau * z - sigma_tau * v                     {"source_hidden": true}}:
        ### END SOLUTION                                        collapsed below its stub
    check_x0.passes(to_x0_solution)                          <- run with the notebook, so that stub,
    check_x0.fails(lambda z, v, a, s: a * z + s * v)            check and solution stay consistent:
                                                                a known wrong answer must fail

An answer that is a value has the region around `answer_solution = 42`; its stub is `answer = ...`.
An exercise of the kind *predict, then reveal* needs no solution cell: `g = ex.guess(...)` before
the picture, `ex.reveal(g, ...)` after it. No cell after an exercise may depend on its answer.
`problems(notebook)` lists what is wrong with the exercises of a notebook; a test runs it.
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..weights import write_text

HEADING = re.compile(r"^#+ Exercise (\d+) \(([emh]), (\d+) min\): (.+)$", re.MULTILINE)
REGION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION[ \t]*$", re.MULTILINE | re.DOTALL
)
NOT_ATTEMPTED = "not attempted"


# --------------------------------------------------------------------------------------------------
# Checks


class Check:
    """An instant check: called with the reader's answer, it prints one line. See `check`."""

    def __init__(self, function: Callable[..., None]):
        self.function = function

    def verdict(self, *answers: Any) -> tuple[str, str]:
        """("passed", "not attempted" or "not yet"; the line that is printed for the reader)."""
        if any(answer is ... or answer is None for answer in answers):
            return NOT_ATTEMPTED, NOT_ATTEMPTED
        try:
            self.function(*answers)
        except NotImplementedError:
            return NOT_ATTEMPTED, NOT_ATTEMPTED
        except AssertionError as error:
            return "not yet", f"not yet: {error or 'the answer is not right'}"
        except Exception as error:  # the reader's code may break in any way; the notebook runs on
            return "not yet", f"not yet: your code stops with {type(error).__name__}: {error}"
        return "passed", "passed: well done"

    def __call__(self, *answers: Any) -> None:
        print(self.verdict(*answers)[1])

    def passes(self, *answers: Any) -> None:
        """Assert that the published solution passes, and print so."""
        status, line = self.verdict(*answers)
        assert status == "passed", f"the published solution does not pass its own check ({line})"
        print("the solution passes")

    def fails(self, *answers: Any, says: str = "") -> None:
        """Assert that a known wrong answer fails with a message that contains `says`.

        `says` may also be given as the last one of several positional arguments.
        """
        if not says and len(answers) > 1 and isinstance(answers[-1], str):
            *answers, says = answers
        status, line = self.verdict(*answers)
        assert status == "not yet", f"a known wrong answer is not caught: {status}"
        assert says in line, (
            f"the message for a known wrong answer is {line!r}; it should mention {says!r}"
        )
        print(f"a wrong answer is caught ({line})")


def check(function: Callable[..., None]) -> Check:
    """Decorator: a function that takes the answers and asserts, with messages, becomes a Check."""
    return Check(function)


def close(
    got: Any, expected: Any, message: str = "the numbers are not right", tolerance: float = 1e-4
) -> None:
    """Assert that `got` equals `expected` up to `tolerance` + `tolerance` |expected|.

    Both may be tensors, lists or numbers. NaN is never close.
    """
    assert got is not None, "your function returns nothing: did you forget `return`?"
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape, (
        f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    )
    difference = (got.double() - expected.double()).abs()
    within = difference <= tolerance + tolerance * expected.double().abs()  # False for NaN
    assert bool(within.all()), f"{message} (off by up to {difference.max().item():.3g})"


# --------------------------------------------------------------------------------------------------
# Predict, then reveal


@dataclass(frozen=True)
class Guess:
    """What was guessed. `picks`: every pick so far, the first one first."""

    question: str
    options: tuple
    picks: tuple = ()

    def name(self, pick: Any) -> str:
        """A pick as text: the option with its number, or the number itself."""
        return f"{pick}: {self.options[pick]}" if self.options else f"{pick:.3g}"


# beside the notebook: {question: picks}; a guess that is run again with another pick, also after a
# restart of the kernel, does not overwrite the first
GUESSES = Path("build/kept/guesses.json")


def _kept_guesses() -> dict[str, list]:
    """What the file holds; nothing if it is missing or damaged."""
    try:
        found = json.loads(GUESSES.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def guess(question: str, options: Sequence[str] = (), pick: Any = ...) -> Guess:
    """Predict before you look: replace `...` by the number of an option (0, 1, ...).

    Guesses are kept in the file GUESSES beside the notebook. A question without options takes a
    number. Raises ValueError for a pick that is no option.
    """
    attempted = pick is not ...
    if options and attempted and (not isinstance(pick, int) or not 0 <= pick < len(options)):
        raise ValueError(f"pick one of 0 to {len(options) - 1}; got {pick!r}")
    kept = _kept_guesses()
    picks = tuple(kept.get(question, ()))
    if attempted and (not picks or picks[-1] != pick):
        picks = (*picks, pick)
        write_text(GUESSES, json.dumps(kept | {question: picks}, indent=1) + "\n")
    print(question)
    for i, option in enumerate(options):
        print(f"  {i}: {option}")
    print(f"your guess: {picks[-1] if picks else NOT_ATTEMPTED}")
    return Guess(question, tuple(options), picks)


def reveal(guess: Guess, truth: Any, why: str = "", within: float = 0.1) -> None:
    """Compare the first guess with the truth, and print both.

    truth: the number of an option, or without options a number, for which a guess counts as right
    if it is at most `within` away. why: an explanation, printed last.
    """
    if not guess.picks:
        print(f"your guess: {NOT_ATTEMPTED}")
    else:
        first, *others = guess.picks
        right = first == truth if guess.options else abs(first - truth) <= within
        later = f" (later: {', '.join(map(str, others))})" if others else ""
        verdict = "right" if right else "not what happens"
        print(f"your guess: {guess.name(first)}{later}, {verdict}")
    print(f"what happens: {guess.name(truth)}")
    if why:
        print(why)


def keep(name: str, value: Any, folder: Path | str = "build/kept") -> Path:
    """Write what a later chapter reads again, as JSON, into `folder` beside the notebook.

    Prints and returns the path.
    """
    path = Path(folder) / f"{name}.json"
    write_text(path, json.dumps(value, indent=1) + "\n")
    print(f"kept in {path}")
    return path


# --------------------------------------------------------------------------------------------------
# Notebooks


def _stub_of_region(match: re.Match) -> str:
    """One solution region -> what stands in the stub instead."""
    indent, body = match.groups()
    if indent:  # the body of a function
        return f'{indent}raise NotImplementedError("your code here")'
    assignments = [node for node in ast.parse(body).body if isinstance(node, ast.Assign)]
    names = [target.id for node in assignments for target in node.targets]
    return "\n".join(f"{name} = ..." for name in names)


def stub_of(solution: str) -> str:
    """A solution cell -> the stub that the reader gets.

    Raises ValueError where there is no region to cut.
    """
    parts = re.split(r"^\w+\.(?:passes|fails)\(", solution, maxsplit=1, flags=re.MULTILINE)
    text = re.sub(r"\A# Solution.*\n", "", parts[0])
    text, found = REGION.subn(_stub_of_region, text)
    if not found:
        raise ValueError(
            "a solution needs a region from `### BEGIN SOLUTION` to `### END SOLUTION`"
        )
    return text.replace("_solution", "").strip()


def read(notebook: Path | str) -> dict[str, Any]:
    """A notebook file -> its JSON, with every cell's source as one string.

    Raises FileNotFoundError where there is no file, ValueError where it is no notebook.
    """
    path = Path(notebook)
    if not path.is_file():
        raise FileNotFoundError(f"there is no notebook {path}")
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            cell["source"] = "".join(cell["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a Jupyter notebook") from error
    return book


def has(cell: dict[str, Any], tag: str) -> bool:
    """Whether a cell is a code cell with this tag."""
    return cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", ())


def sections(book: dict[str, Any]) -> list[tuple[int, str, int, str, list]]:
    """[(number, level, minutes, title, cells)] of the exercises of a notebook (see `read`).

    An exercise runs from its heading to the next heading.
    """
    found: list[tuple[int, str, int, str, list]] = []
    cells = None
    for cell in book["cells"]:
        heading = None
        if cell["cell_type"] == "markdown":
            heading = HEADING.search(cell["source"])
        if heading:
            number, level, minutes, title = heading.groups()
            cells = [cell]
            found.append((int(number), level, int(minutes), title, cells))
        elif cell["cell_type"] == "markdown" and re.match(r"#{1,3} ", cell["source"]):
            cells = None
        elif cells is not None:
            cells.append(cell)
    return found


def _pair_problems(stub: dict, solution: dict) -> list[str]:
    """What is wrong with a stub and its solution cell."""
    found = []
    expected = stub_of(solution["source"])
    if stub["source"].strip() != expected:
        found.append(f"has a stub that is not its solution's stub, which is:\n{expected}")
    if not solution["metadata"].get("jupyter", {}).get("source_hidden"):
        found.append("has a solution that is not collapsed")
    if ".passes(" not in solution["source"] or ".fails(" not in solution["source"]:
        found.append(
            "needs `.passes(solution)` and `.fails(a known wrong answer)` in its solution cell"
        )
    return found


def _section_problems(cells: list[dict]) -> list[str]:
    """What is wrong with the cells of one exercise."""
    prose = "\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
    code = "\n".join(c["source"] for c in cells if c["cell_type"] == "code")
    stubs = [c for c in cells if has(c, "exercise")]
    checks = [c for c in cells if has(c, "check")]
    solutions = [c for c in cells if has(c, "solution")]
    found = []
    if "<summary>Hint" not in prose:
        found.append("has no hint that unfolds")
    if "ex.guess(" in code and not solutions:
        if "ex.reveal(" not in code:
            found.append("is a guess that is never revealed")
        return found
    if not solutions or not checks or len(stubs) != len(solutions):
        found.append("needs one `exercise` cell per `solution` cell, and a `check` cell")
        return found
    for stub, solution in zip(stubs, solutions):
        found += _pair_problems(stub, solution)
    return found


def problems(notebook: Path | str) -> list[str]:
    """What is wrong with the exercises of a notebook, one sentence each; [] where all is well."""
    book = read(notebook)
    found = []
    for number, _, _, _, cells in sections(book):
        found += [f"exercise {number} {problem}" for problem in _section_problems(cells)]
    code = [c for c in book["cells"] if c["cell_type"] == "code" and not has(c, "solution")]
    visible = "\n".join(c["source"] for c in code)
    if re.search(r"\w_solution\b", visible) or "### BEGIN SOLUTION" in visible:
        found.append("a cell outside of the solutions holds a solution or needs one")
    return found


def student_version(notebook: Path | str, out: Path | str = "build/student") -> Path:
    """Write the notebook without solutions and outputs into folder `out` (made if missing).

    Returns the path. Raises ValueError where it would overwrite the notebook itself.
    """
    source, target = Path(notebook), Path(out) / Path(notebook).name
    book = read(source)
    if target.resolve() == source.resolve():
        raise ValueError(f"the student version would overwrite {source}: give another folder")
    book["cells"] = [cell for cell in book["cells"] if not has(cell, "solution")]
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    write_text(target, json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    return target
