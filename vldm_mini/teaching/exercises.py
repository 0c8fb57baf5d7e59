"""Exercises in the chapters: marks, instant checks, guesses that are kept, and versions without solutions.

The recipe, five cells of a notebook (the tags are cell tags; prose outside of code cells is free):

    ### Exercise 2 (m, 15 min): write `to_x0` for v          <- markdown; (e)asy, (m)edium, (h)ard, and minutes
    <details><summary>Hint</summary> blank line, text, blank line </details>       <- in the same or another cell

    def to_x0(z, v, alpha_tau, sigma_tau):                   <- code, tag `exercise`: the stub, which nobody writes by
        raise NotImplementedError("your code here")             hand: print(stub_of(SOLUTION)) gives it

    @ex.check                                                <- code, tag `check`
    def check_x0(to_x0):
        z, v = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
        ex.close(to_x0(z, v, 0.6, 0.8), 0.6 * z - 0.8 * v, "x0 is alpha_tau z - sigma_tau v: look at the sign")
    check_x0(to_x0)

    def to_x0_solution(z, v, alpha_tau, sigma_tau):          <- code, tag `solution`, metadata {"jupyter":
        ### BEGIN SOLUTION                                      {"source_hidden": true}}: collapsed below its stub
        return alpha_tau * z - sigma_tau * v
        ### END SOLUTION
    check_x0.passes(to_x0_solution)                          <- run with the notebook, so stub, check and solution
    check_x0.fails(lambda z, v, a, s: a * z + s * v, "sign")    cannot drift apart: a known wrong answer must be told

An answer that is a value has the region around `answer_solution = 42`; its stub is `answer = ...`. An exercise of the
kind *predict, then reveal* needs no solution cell: `g = ex.guess(...)` before the picture, `ex.reveal(g, ...)` after.
No cell after an exercise may need its answer. `problems(notebook)` lists what a notebook has wrong; a test runs it.
"""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from vldm_mini.weights import write_text

HEADING = re.compile(r"^#+ Exercise (\d+) \(([emh]), (\d+) min\): (.+)$", re.MULTILINE)
REGION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION[ \t]*$", re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------------------------------------------------------------
# Checks


class Check:
    """An instant check: call it with the reader's answer, and it prints one line. See `check`."""

    def __init__(self, function):
        self.function = function

    def verdict(self, *answers) -> tuple[str, str]:
        """("passed" | "not attempted" | "not yet", the line that tells the reader)."""
        if any(answer is ... or answer is None for answer in answers):
            return "not attempted", "not attempted"
        try:
            self.function(*answers)
        except NotImplementedError:
            return "not attempted", "not attempted"
        except AssertionError as error:
            return "not yet", f"not yet: {error or 'the answer is not right'}"
        except Exception as error:  # the reader's code may break in any way; the notebook runs on
            return "not yet", f"not yet: your code stops with {type(error).__name__}: {error}"
        return "passed", "passed: well done"

    def __call__(self, *answers) -> None:
        print(self.verdict(*answers)[1])

    def passes(self, *answers) -> None:
        """Assert that the published solution passes; prints so."""
        status, line = self.verdict(*answers)
        assert status == "passed", f"the published solution does not pass its own check ({line})"
        print("the solution passes")

    def fails(self, *answers, says: str = "") -> None:
        """Assert that a known wrong answer fails, and that the message holds `says`; the last argument may be it."""
        if not says and len(answers) > 1 and isinstance(answers[-1], str):
            *answers, says = answers
        status, line = self.verdict(*answers)
        assert status == "not yet", f"a known wrong answer is not caught: {status}"
        assert says in line, f"the message for a known wrong answer is {line!r}; it should speak of {says!r}"
        print(f"a wrong answer is told ({line})")


def check(function) -> Check:
    """Decorator: a function of the answers that asserts, with messages saying what is wrong, becomes a Check."""
    return Check(function)


def close(got, expected, message: str = "the numbers are not right", tolerance: float = 1e-4) -> None:
    """Assert that `got` equals `expected` (tensors, lists or numbers) up to `tolerance` + `tolerance` |expected|."""
    assert got is not None, "your function returns nothing: did you forget `return`?"
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape, f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    difference = (got.double() - expected.double()).abs()
    right = bool((difference <= tolerance + tolerance * expected.double().abs()).all())  # False for NaN
    assert right, f"{message} (off by up to {difference.max().item():.3g})"


# ---------------------------------------------------------------------------------------------------------------------
# Predict, then reveal


@dataclass(frozen=True)
class Guess:
    """What was guessed. `picks`: every pick so far, the first one first."""

    question: str
    options: tuple
    picks: tuple = ()


_KEPT: dict = {}  # question -> picks: running a guess again with another pick does not forget the first


def guess(question: str, options=(), pick=...) -> Guess:
    """Predict before you look: put the number of an option (0, 1, ...), or without options a number, for `...`."""
    if options and pick is not ... and (not isinstance(pick, int) or not 0 <= pick < len(options)):
        raise ValueError(f"pick one of 0 to {len(options) - 1}; got {pick!r}")
    picks = _KEPT.get(question, ())
    if pick is not ... and (not picks or picks[-1] != pick):
        picks = _KEPT[question] = (*picks, pick)
    print(question)
    for i, option in enumerate(options):
        print(f"  {i}: {option}")
    print("your guess: not attempted" if not picks else f"your guess: {picks[-1]}")
    return Guess(question, tuple(options), picks)


def reveal(guess: Guess, truth, why: str = "", within: float = 0.1) -> None:
    """Compare the guess that was kept with the truth (number of an option, or a number: right if `within` of it)."""
    name = (lambda p: f"{p}: {guess.options[p]}") if guess.options else (lambda p: f"{p:.3g}")
    if not guess.picks:
        print("your guess: not attempted")
    else:
        first = guess.picks[0]
        right = first == truth if guess.options else abs(first - truth) <= within
        later = "" if len(guess.picks) == 1 else f" (later: {', '.join(map(str, guess.picks[1:]))})"
        print(f"your guess: {name(first)}{later}, {'right' if right else 'not what happens'}")
    print(f"what happens: {name(truth)}")
    if why:
        print(why)


def keep(name: str, value, folder="build/kept") -> Path:
    """Write what a later chapter asks for again, as JSON, into `folder` beside the notebook; says where."""
    path = Path(folder) / f"{name}.json"
    write_text(path, json.dumps(value, indent=1) + "\n")
    print(f"kept in {path}")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Notebooks


def stub_of(solution: str) -> str:
    """A solution cell -> the stub that the reader gets. ValueError where there is no region to cut."""

    def cut(match) -> str:
        indent, body = match.groups()
        if indent:
            return f'{indent}raise NotImplementedError("your code here")'
        names = [t.id for node in ast.parse(body).body if isinstance(node, ast.Assign) for t in node.targets]
        return "\n".join(f"{name} = ..." for name in names)

    text = re.split(r"^\w+\.(?:passes|fails)\(", solution, maxsplit=1, flags=re.MULTILINE)[0]
    text, found = REGION.subn(cut, re.sub(r"\A# Solution.*\n", "", text))
    if not found:
        raise ValueError("a solution needs a region from `### BEGIN SOLUTION` to `### END SOLUTION`")
    return text.replace("_solution", "").strip()


def read(notebook) -> dict:
    """A notebook file -> its JSON, with every cell's source as one string. Errors in one sentence."""
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


def has(cell: dict, tag: str) -> bool:
    return cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", ())


def sections(book: dict) -> list[tuple]:
    """[(number, level, minutes, title, cells)]: an exercise runs from its heading to the next heading."""
    out, cells = [], None
    for cell in book["cells"]:
        if cell["cell_type"] == "markdown" and (found := HEADING.search(cell["source"])):
            number, level, minutes, title = found.groups()
            cells = [cell]
            out.append((int(number), level, int(minutes), title, cells))
        elif cell["cell_type"] == "markdown" and re.match(r"#{1,3} ", cell["source"]):
            cells = None
        elif cells is not None:
            cells.append(cell)
    return out


def _section_problems(cells: list) -> list[str]:
    prose = "\n".join(c["source"] for c in cells if c["cell_type"] == "markdown")
    code = "\n".join(c["source"] for c in cells if c["cell_type"] == "code")
    found = [] if "<summary>Hint" in prose else ["has no hint that unfolds"]
    stubs, checks, solutions = ([c for c in cells if has(c, tag)] for tag in ("exercise", "check", "solution"))
    if "ex.guess(" in code and not solutions:
        return found + ([] if "ex.reveal(" in code else ["is a guess that is never revealed"])
    if not (len(stubs) == len(solutions) >= 1 and checks):
        return found + ["needs one `exercise` cell per `solution` cell, and a `check` cell"]
    for stub, solution in zip(stubs, solutions):
        if stub["source"].strip() != stub_of(solution["source"]):
            found.append(f"has a stub that is not its solution's stub, which is:\n{stub_of(solution['source'])}")
        if not solution["metadata"].get("jupyter", {}).get("source_hidden"):
            found.append("has a solution that is not collapsed")
        if ".passes(" not in solution["source"] or ".fails(" not in solution["source"]:
            found.append("needs `.passes(solution)` and `.fails(a known wrong answer)` in its solution cell")
    return found


def problems(notebook) -> list[str]:
    """What is wrong with the exercises of a notebook, one sentence each; [] where all is well."""
    book = read(notebook)
    found = [f"exercise {n} {p}" for n, _, _, _, cells in sections(book) for p in _section_problems(cells)]
    kept = "\n".join(c["source"] for c in book["cells"] if c["cell_type"] == "code" and not has(c, "solution"))
    if re.search(r"\w_solution\b", kept) or "### BEGIN SOLUTION" in kept:
        found.append("a cell outside of the solutions holds a solution or needs one")
    return found


def student_version(notebook, out="build/student") -> Path:
    """Write the notebook without solutions and outputs into folder `out` (made if missing); returns the path."""
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
