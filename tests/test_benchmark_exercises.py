"""The count of wrong answers that are caught, on a chapter with one good and one bad exercise."""
import json

from tests.benchmarks import __main__ as bench
from tests.benchmarks import exercises as counted
from tests.benchmarks import notebooks

CHECK = "@ex.check\ndef check_{0}(f):\n    ex.close(f(2.0), {1}, 'twice')\n"
TASK = "### Exercise {0} (e, 5 min): {1}\n\n<details><summary>Hint</summary>\n\nadd\n\n</details>"


def cell(source, tag=None):
    if tag == "markdown":
        return {"cell_type": "markdown", "id": f"m{hash(source) % 9999}", "metadata": {},
                "source": source}
    return {"cell_type": "code", "id": f"c{hash(source) % 9999}", "source": source, "outputs": [],
            "metadata": {"tags": [tag]} if tag else {}, "execution_count": None}


def chapter(folder, *cells):
    book = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "00_a.ipynb").write_text(json.dumps(book))


def test_solutions_that_pass_and_wrong_answers_that_are_caught_are_counted_by_exercise(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    good = "check_a.passes(lambda x: 2 * x)\ncheck_a.fails(lambda x: x)\ncheck_a.fails(lambda x: 3)"
    bad = ("check_b.passes(lambda x: x)\ncheck_b.fails(lambda x: 2 * x)\n"
           "check_b.fails(lambda x: x, says='not said')\ncheck_b.fails(lambda x: x, 'twice')")
    chapter(tmp_path, cell("from vldm_mini.teaching import exercises as ex"),
            cell(TASK.format(1, "double"), "markdown"), cell("f = ...", "exercise"),
            cell(CHECK.format("a", 4.0), "check"), cell(good, "solution"),
            cell(TASK.format(2, "wrong"), "markdown"), cell("g = ...", "exercise"),
            cell(CHECK.format("b", 4.0), "check"), cell(bad, "solution"),
            cell("## Next", "markdown"), cell("1 / 0"),
            cell(TASK.format(3, "guess"), "markdown"), cell("g = ex.guess('a or b', ['a', 'b'])"))
    figures = counted.run()
    one, two, three = figures.pop("rows")
    assert (one["solutions_pass"], one["wrong_answers_tried"], one["caught"]) == (1, 2, 2)
    assert (two["solutions_pass"], two["wrong_answers_tried"], two["caught"]) == (0, 3, 1)
    assert len(two["problems"]) == 3 and "not caught" in two["problems"][1]
    assert three["solutions"] == 0
    assert figures.pop("errors") == ["00_a: cell 10: ZeroDivisionError: division by zero"]
    assert figures == {"exercises": 3, "guesses": 1, "solutions": 2, "solutions_pass": 1,
                       "wrong_answers_tried": 5, "caught": 3, "fewest_wrong_answers": 2}
    assert bench.main(["exercises", "00"]) == 0
    out = capsys.readouterr().out
    assert "00_a 1 (e) double: 1 of 1 solutions pass, 2 of 2 wrong answers caught" in out
    assert bench.main(["exercises", "99"]) == 2
