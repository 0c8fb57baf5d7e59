"""Exercises: instant checks, stored guesses, stubs that agree with their solutions."""

import json
from pathlib import Path

import pytest
import torch

from vldm_mini.teaching import exercises as ex

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

HEADING = """### Exercise 1 (m, 15 min): add one

<details><summary>Hint</summary>

use +

</details>"""
STUB = 'def add(x):\n    """x + 1."""\n    raise NotImplementedError("your code here")'
CHECK = (
    "@ex.check\ndef check_add(add):\n"
    '    ex.close(add(torch.tensor(1.0)), 2.0, "one is missing")\n\n\ncheck_add(add)'
)
SOLUTION = '''# Solution
def add_solution(x):
    """x + 1."""
    ### BEGIN SOLUTION
    y = x + 1
    return y
    ### END SOLUTION


check_add.passes(add_solution)
check_add.fails(lambda x: x, "one is missing")'''


@pytest.fixture(autouse=True)
def guesses(tmp_path, monkeypatch):
    """The file of kept guesses, where no notebook is."""
    monkeypatch.setattr(ex, "GUESSES", tmp_path / "kept" / "guesses.json")
    return ex.GUESSES


def cell(source, tag=None, **metadata):
    if tag == "solution":
        metadata["jupyter"] = {"source_hidden": True}
    if tag == "markdown":
        return {"cell_type": "markdown", "metadata": {}, "source": source}
    tags = {"tags": [tag]} if tag else {}
    return {
        "cell_type": "code",
        "metadata": tags | metadata,
        "source": source,
        "outputs": [1],
        "execution_count": 3,
    }


def notebook(folder, *cells):
    path = folder / "book.ipynb"
    path.write_text(
        json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def good(heading=HEADING, stub=STUB, check=CHECK, solution=SOLUTION):
    code = cell(stub, "exercise"), cell(check, "check"), cell(solution, "solution")
    return (
        cell("# Title", "markdown"),
        cell(heading, "markdown"),
        *code,
        cell("### After", "markdown"),
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_chapter_keeps_stub_and_solution_together(path):
    assert ex.problems(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_chapter_has_two_marked_exercises(path):
    found = ex.sections(ex.read(path))
    assert len(found) >= 2
    assert [number for number, *_ in found] == list(range(1, len(found) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_student_version_of_a_chapter_holds_no_solution(path, tmp_path):
    text = ex.student_version(path, tmp_path).read_text(encoding="utf-8")
    assert "SOLUTION" not in text and "_solution" not in text


def test_the_cells_of_the_recipe_run_and_say_what_they_should(capsys):
    space = {"ex": ex, "torch": torch}
    for source in (STUB, CHECK, SOLUTION):
        exec(source, space)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "not attempted"
    assert lines[1] == "the solution passes"
    assert "one is missing" in lines[2]


def test_a_stub_is_what_remains_of_its_solution():
    assert ex.stub_of(SOLUTION) == STUB
    value = "### BEGIN SOLUTION\nanswer_solution = 6 * 7\n### END SOLUTION\n"
    value += "check_it.passes(answer_solution)\n"
    assert ex.stub_of(value) == "answer = ..."
    with pytest.raises(ValueError, match="BEGIN SOLUTION"):
        ex.stub_of("x = 1")


def test_a_notebook_by_the_recipe_has_no_problems(tmp_path):
    assert ex.problems(notebook(tmp_path, *good())) == []


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"stub": STUB.replace("def add(x)", "def add(y)")},
            "a stub that is not its solution's stub",
        ),
        ({"heading": HEADING.split("\n")[0]}, "no hint"),
        ({"solution": SOLUTION.replace("check_add.fails", "print")}, "known wrong answer"),
        ({"stub": "y = add_solution(1)"}, "holds a solution or needs one"),
    ],
)
def test_a_notebook_whose_exercises_are_broken_is_reported(tmp_path, change, message):
    assert message in "\n".join(ex.problems(notebook(tmp_path, *good(**change))))


def test_a_solution_must_be_collapsed_and_checked(tmp_path):
    cells = list(good())
    cells[4]["metadata"].pop("jupyter")
    assert any("not collapsed" in p for p in ex.problems(notebook(tmp_path, *cells)))
    del cells[3]
    assert any("`check` cell" in p for p in ex.problems(notebook(tmp_path, *cells)))


def test_a_guess_needs_its_reveal(tmp_path):
    cells = cell(HEADING, "markdown"), cell('g = ex.guess("?", ["a", "b"])')
    assert any("never revealed" in p for p in ex.problems(notebook(tmp_path, *cells)))
    assert ex.problems(notebook(tmp_path, *cells, cell("ex.reveal(g, 1)"))) == []


def test_a_check_distinguishes_passed_not_attempted_wrong_and_broken():
    check = ex.check(lambda f: ex.close(f(2), 4, "square it"))
    assert check.verdict(lambda x: x * x)[0] == "passed"
    assert check.verdict(...)[0] == check.verdict(None)[0] == "not attempted"
    assert "square it" in check.verdict(lambda x: x + 1)[1]
    assert "did you forget `return`" in check.verdict(lambda x: None)[1]
    assert "ZeroDivisionError" in check.verdict(lambda x: 1 / 0)[1]


def test_close_sees_shapes_and_nan():
    with pytest.raises(AssertionError, match=r"expected shape \(2,\), got \(3,\)"):
        ex.close(torch.zeros(3), torch.zeros(2))
    with pytest.raises(AssertionError):
        ex.close(float("nan"), 0.0)
    ex.close([1.0, 2.0], torch.tensor([1.0, 2.0]))


def test_a_solution_that_fails_and_a_wrong_answer_that_passes_are_errors():
    check = ex.check(lambda x: ex.close(x, 1.0))
    with pytest.raises(AssertionError, match="does not pass its own check"):
        check.passes(2.0)
    with pytest.raises(AssertionError, match="not caught"):
        check.fails(1.0)
    with pytest.raises(AssertionError, match="should mention"):
        check.fails(2.0, says="a word that the message lacks")


def test_the_first_guess_is_kept(capsys):
    question = "Which one? (test_the_first_guess_is_kept)"
    ex.reveal(ex.guess(question, ["a", "b"]), 1)
    assert capsys.readouterr().out.count("not attempted") == 2
    ex.guess(question, ["a", "b"], pick=0)
    kept = ex.guess(question, ["a", "b"], pick=1)
    ex.reveal(kept, 1, why="because")
    text = capsys.readouterr().out
    assert kept.picks == (0, 1)
    assert "your guess: 0: a (later: 1), not what happens" in text
    assert "what happens: 1: b\nbecause" in text


def test_guesses_are_there_after_a_restart(guesses):
    assert ex.guess("Which?", ["a", "b"]).picks == () and not guesses.exists()
    ex.guess("Which?", ["a", "b"], pick=1)
    ex.guess("How much?", pick=0.5)
    assert json.loads(guesses.read_text()) == {"Which?": [1], "How much?": [0.5]}
    assert ex.guess("Which?", ["a", "b"]).picks == (1,)
    guesses.write_text("{damaged")
    assert ex.guess("Which?", ["a", "b"], pick=0).picks == (0,)


def test_a_guess_of_a_number_is_right_within_a_margin(capsys):
    kept = ex.guess("How much? (test_a_guess_of_a_number)", pick=0.52)
    ex.reveal(kept, 0.5, within=0.05)
    assert "right" in capsys.readouterr().out
    with pytest.raises(ValueError, match="pick one of 0 to 1"):
        ex.guess("?", ["a", "b"], pick=2)


def test_the_student_version_runs_on_without_solutions_and_outputs(tmp_path):
    path = ex.student_version(notebook(tmp_path, *good()), tmp_path / "build")
    cells = json.loads(path.read_text())["cells"]
    assert [c["source"] for c in cells if c["cell_type"] == "code"] == [STUB, CHECK]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)
    with pytest.raises(ValueError, match="would overwrite"):
        ex.student_version(path, path.parent)


def test_a_file_that_is_no_notebook_is_reported_in_a_sentence(tmp_path):
    (tmp_path / "x.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="not a Jupyter notebook"):
        ex.read(tmp_path / "x.ipynb")
    with pytest.raises(FileNotFoundError, match="no notebook"):
        ex.student_version(tmp_path / "missing.ipynb", tmp_path)


def test_what_is_kept_can_be_read_again(tmp_path):
    path = ex.keep("failure", {"person": 3}, folder=tmp_path / "kept")
    assert json.loads(path.read_text()) == {"person": 3} and path.name == "failure.json"
