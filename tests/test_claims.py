"""The finder of numbers in prose: what counts, what is found where, on tiny notebooks."""
import json

import pytest

from tests.benchmarks import __main__ as bench
from tests.benchmarks import claims, notebooks


def text(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source, printed="", tag=None, **data):
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    outputs += [{"output_type": "execute_result", "data": data}] if data else []
    return {"cell_type": "code", "metadata": {"tags": [tag]} if tag else {}, "source": source,
            "outputs": outputs}


def book(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def found(prose, *cells):
    """[(as written, where)] of the numbers in one piece of prose."""
    return [(one.written, one.found) for one in claims.check(book(text(prose), *cells), {7.25})]


@pytest.mark.parametrize("prose", [
    "# 3.5 ways", "See chapter 04, sections 3.1 and 3.2, eq. (14) and Fig. 2.5 of it.",
    "With $s = 1.5$ and $$x = 0.25$$ it works.", "`alpha=0.25` is set.", "In 2023 it appeared.",
    "An input of 256x512 or 64 × 128 pixels.", "Its shape is (2, 30, 40).", "1. first\n20. second",
    "Sampled in 250 steps from 400 held-out clips.", "It has eight frames, and 7 are new.",
    "A 3-D convolution, H.264, x0 and float32.", "It takes 45 minutes or 1.5 hours.",
    "The paper reports an FVD of 389.5.", "[a link](https://example.org/0.25)",
    "| to read | to run |\n|---|---|\n| 35 min | 65 |\n",
    "## What differs from the paper\n\nIt has 99 %.",
    "<details><summary>Hint</summary>\n\nTry 0.25.\n\n</details>", "```\nx = 0.25\n```",
])
def test_what_is_no_number_of_an_output_is_left_out(prose):
    assert found(prose) == []


@pytest.mark.parametrize("prose, written", [
    ("The error is 0.25.", "0.25"), ("It falls by 11 %.", "11"), ("It is 3 dB nearer.", "3"),
    ("It is 4 times smaller.", "4"), ("It has 14,253 parameters.", "14,253"),
    ("It found 7 of 8 clips.", "7"), ("It changes from -0.13 on.", "0.13"),
    ("| ours | 0.25 |", "0.25"), ("## A\n\nThe gain is 0.4 dB.\n\n## What differs\n\n9 %", "0.4"),
])
def test_numbers_that_speak_of_an_output_count_and_are_missed_where_nothing_shows_them(
        prose, written):
    assert (written, "") in found(prose)


@pytest.mark.parametrize("prose, printed", [
    ("The error is 0.25.", "error 0.2468"), ("It falls by 11 %.", "share 0.113"),
    ("The loss falls by 11 %.", "ratio 0.89"), ("It removes 11 %.", "11.4 %"),
    ("It is 4 times smaller.", "0.247"), ("It has 1.3 million parameters.", "1,312,000"),
    ("It has 1,312,000 parameters.", "parameters: 1.312 M"), ("It changes to −0.13.", "x=-0.134"),
    ("About 300 are found.", "found 287"), ("More than 40 % are right.", "0.44"),
    ("It took 250 ms.", "0.2501 s"), ("Its size is 3.5 MB.", "3500 KB"),
])
def test_rounded_values_and_other_units_are_found_in_outputs(prose, printed):
    assert {where for _, where in found(prose, code("f()", printed))} == {"output"}


@pytest.mark.parametrize("prose, printed", [
    ("The error is 0.25.", "0.256"), ("The error is 0.25.", "25.0"), ("It falls by 11 %.", "0.12"),
    ("11 % are right.", "0.89"), ("More than 40 % are right.", "0.6"), ("It is 3 dB.", "0.3"),
])
def test_other_values_are_not_taken_for_the_number(prose, printed):
    assert {where for _, where in found(prose, code("f()", printed))} == {""}


def test_asserts_constants_html_and_descriptions_of_pictures_are_read_and_pictures_data_is_not():
    assert found("It is 0.25.", code("assert x < 0.25, 'no'")) == [("0.25", "assert")]
    assert found("It is 0.25.", code("rate = 1 / 4")) == [("0.25", "constant")]
    assert found("It is 0.25.", code("f('from 0.25 on')")) == [("0.25", "constant")]
    assert found("It is 0.25.", code("%matplotlib inline\nrate = 0.25")) == [("0.25", "constant")]
    row = {"text/html": "<td style='width:0.75px'>0.25</td><img alt='0.5 s' src='data:0.125'>"}
    assert [where for _, where in found("0.25, 0.5, 0.75, 0.125 here.", code("f()", **row))] == [
        "output", "output", "", ""]


def test_a_sentence_that_cites_stored_results_may_use_them():
    assert found("The README says 7.25.") == [("7.25", "stored")]
    assert found("It is 7.25.") == [("7.25", "")]


def test_exercises_do_not_count_and_the_text_after_them_does():
    task = text("### Exercise 1 (e, 5 min): divide by 0.5\n\nExpected: 0.75.")
    cells = [task, code("...", tag="exercise"), text("The solution gives 0.75."),
             code("assert y == 0.875", tag="solution"), text("It was 0.875.")]
    checked = claims.check(book(*cells), set())
    assert [(one.cell, one.written, one.found) for one in checked] == [(4, "0.875", "")]
    assert claims.asserts(book(*cells)) == 0


def test_counts_of_a_chapter():
    cells = book(text("**What to notice.** The error is 0.25. It is the lowest of all curves. Its "
                      "share is 12.5 %, a third of the other."),
                 code("assert a < b\nassert a > 0.5", "0.25"))
    row = claims.figures(cells, claims.check(cells, set()))
    assert row == {"statements": 3, "numbers": 2, "supported": 1, "unsupported": 1,
                   "only_as_constant": 0, "in_words": 1, "asserts": 2}


def test_a_number_that_a_new_run_does_not_give_again_is_refuted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    cells = [text("It is 0.25, or 0.75."), code("print(0.5 ** 2 + 0.1)", "0.25"),
             code("print(0.5 + .1)", "0.75")]
    for k, cell in enumerate(cells):
        cell["id"] = f"c{k}"
        if cell["cell_type"] == "code":
            cell["execution_count"] = None
    (tmp_path / "00_a.ipynb").write_text(json.dumps(book(*cells)))
    before = (tmp_path / "00_a.ipynb").read_text()
    assert bench.main(["claims", "--run", "00", "--size", "xs"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["totals"]["refuted"] == 2 and "0.75" in out.err
    assert (tmp_path / "00_a.ipynb").read_text() == before, "the stored notebook is left alone"
    assert bench.main(["claims", "--list", "00"]) == 0
    assert capsys.readouterr().out == ""
    assert bench.main(["claims", "--list", "12"]) == 2
