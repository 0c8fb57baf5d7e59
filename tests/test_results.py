"""RESULTS.md, the README's table and the list of what is out of date say what is stored."""
import datetime
import json

import pytest

from tests import loaded_weights
from tests.benchmarks import results, stale
from tests.benchmarks._rows import GROUPS, Arm, Row

A, B = "driving/a/model.safetensors", "driving/b/model.safetensors"


def test_the_page_of_results_is_what_is_stored():
    wanted = "run: python -m tests.benchmarks results"
    assert results.PAGE.read_text(encoding="utf-8") == results.page(), wanted


def test_the_readme_table_is_what_is_stored():
    wanted = "run: python -m tests.benchmarks results"
    assert results.README.read_text(encoding="utf-8") == results.readme(), wanted


def test_every_stored_result_is_on_the_page():
    page = results.page()
    for name, result in results.stored().items():
        assert f"- `{name}`: commit {result['commit'][:7]}" in page


def test_a_cell_of_the_tables_holds_one_number():
    for line in results.page().splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| what")):
            number = line.split("|")[3].strip().replace(",", "")
            assert float(number) == float(number), line
    for group in GROUPS:
        for rows in group.rows.values():
            assert all(row.better for row in rows)


def test_a_path_leads_to_a_number_and_one_that_leads_nowhere_is_named():
    result = {"name": "x", "table": {"7.5": {"a": [0.25, 0.5]}}}
    assert results.value(result, Arm("ours", "table/7.5/a/1", 100)) == 50
    with pytest.raises(KeyError, match="x holds nothing at table/8"):
        results.value(result, Arm("ours", "table/8"))


def test_a_line_shows_its_number_unit_and_direction():
    row = Row("hits", "%", "higher", (Arm("ours", "a", 100), Arm("chance", "b", 100)), 1)
    assert results.lines_of(row, {"name": "x", "a": 0.755, "b": 0.5}) == [
        "| hits | ours | 75.5 | % | higher |", "|  | chance | 50.0 | % | higher |"]
    assert results.shown(-0.001, 2) == "0.00" and results.shown(1234.5, 1) == "1,234.5"


# -- nothing stale
# -----------------------------------------------------------------------------------

def test_what_is_out_of_date_is_excepted_with_a_date_and_a_reason():
    known = stale.exceptions()
    unknown = [f"{one.name}: {one.why}" for one in stale.stale() if one.name not in known]
    assert unknown == [], "run it anew, or except it (tests/stale_exceptions.json) with a reason"
    for entry in known.values():
        assert datetime.date.fromisoformat(entry["date"]) and len(entry["reason"]) > 20


def test_nothing_is_excepted_that_is_not_out_of_date():
    found = {one.name for one in stale.stale()}
    unneeded = [name for name in stale.exceptions() if name not in found]
    assert unneeded == [], "run: python -m tests.benchmarks stale --prune"


@pytest.mark.parametrize("stored, why", [
    (None, "it holds no checksums of weights"),
    ({}, ""),
    ({A: "1"}, ""),
    ({A: "1", B: "0"}, f"weights that have changed: {B}"),
    ({A: "1", "gone": "0"}, "weights that no longer ship: gone"),
])
def test_checksums_are_compared_with_todays(stored, why):
    assert stale.difference(stored, {A: "1", B: "2"}) == why


def test_pruning_keeps_the_exceptions_that_are_needed(tmp_path, monkeypatch):
    file = tmp_path / "exceptions.json"
    monkeypatch.setattr(stale, "EXCEPTIONS", file)
    entries = [dict(name=name, date="2026-11-26", reason="because of that") for name in "ab"]
    file.write_text(json.dumps(entries))
    stale.prune([stale.Stale("b", "")])
    assert list(stale.exceptions()) == ["b"]


def test_todays_weights_are_those_that_the_checkout_lists():
    """Every shipped safetensors file has its checksum in data/checkpoints.json."""
    listed = loaded_weights.listed()
    assert set(loaded_weights.todays()) <= set(listed)
