"""The figures of `python -m tests.benchmarks house`: own words, missing hints, long lines."""

import json

import pytest

from tests.benchmarks import __main__ as bench
from tests.benchmarks import house


def words(text: str, kind: str = "text") -> list[str]:
    return [word for word, _, _ in house.find(text, kind, "vldm_mini/x.py")]


@pytest.mark.parametrize(
    "text, word",
    [
        ("a film of eight frames", "film"),
        ("`told_latents` holds", "told"),
        ("PlaceNorm", "place"),
        ("every place of the map", "place"),
        ("the drives of the split", "drive"),
        ("the same, to the\n    bit", "to the bit"),
        ("the network is asked\n# again", "personified"),
        ("frames drawn from clips", "drawn"),
    ],
)
def test_an_own_word_counts_once(text, word):
    assert words(text) == [word]


@pytest.mark.parametrize(
    "text",
    [
        "in place of",
        "takes place",
        "replace",
        "to drive along",
        "driving",
        "filmstrip",
        "memory grows",
        "drawn in red",
    ],
)
def test_the_usual_sense_of_a_word_does_not_count(text):
    assert words(text) == []


def test_identifiers_are_split_into_words():
    code = "told_latents = spoil(x)  # a film\n"
    found = house.own_words_of_code(code, "vldm_mini/x.py")
    assert sorted(finding.what for finding in found) == ["film", "spoil", "told"]


def test_a_finding_names_the_line_within_a_docstring():
    code = 'x = 1\n"""One.\n\nA film.\n"""\n'
    assert [f.line for f in house.own_words_of_code(code, "vldm_mini/x.py")] == [4]


def test_a_function_without_a_hint_is_listed_and_a_private_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(house, "ROOT", tmp_path)
    file = tmp_path / "x.py"
    file.write_text(
        "def a(x: int) -> int: ...\ndef b(x) -> int: ...\ndef c(x: int): ...\ndef _d(x): ...\n"
        "class E:\n    def __init__(self, x: int): ...\n    def forward(self, x: int): ...\n"
        "    def g(self, *args) -> None: ...\n"
    )
    assert [finding.text for finding in house.untyped(file)] == ["b", "c", "E.forward", "E.g"]


def test_code_lines_leave_out_docstrings_comments_and_blank_lines(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""Two\nlines."""\n\n# a comment\nx = [\n    1,\n]\n')
    assert house.code_lines(file) == 3


def test_the_command_prints_one_json_object(capsys):
    assert bench.main(["house"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["ground_floor_lines_total"] == sum(figures["ground_floor_lines"].values())
    assert figures["own_words"] == sum(figures["own_words_by_folder"].values())
