"""The runner of planted mistakes, on a small tree of its own."""
import json

import pytest

from tests.mutants import __main__ as mutants
from tests.mutants.planted import MUTANTS, Mutant

GOOD = Mutant("sum: minus for plus", "code.py", "a + b", "a - b", ("test_code.py",))
WEAK = Mutant("sum: arguments exchanged", "code.py", "a + b", "b + a", ("test_code.py",))
GONE = Mutant("sum: text that is gone", "code.py", "a * b", "a / b", ("test_code.py",))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A module, its test, and a result file."""
    def copy_tree(folder):
        (folder / "code.py").write_text("def add(a, b):\n    return a + b\n")
        (folder / "test_code.py").write_text(
            "from code_under_test import add\n\ndef test_add():\n    assert add(1, 2) == 3\n")
        (folder / "code_under_test.py").write_text(
            "from pathlib import Path\n"
            "exec(Path(__file__).with_name('code.py').read_text())\n")
    monkeypatch.setattr(mutants, "copy_tree", copy_tree)
    monkeypatch.setattr(mutants, "MUTANTS", [GOOD, WEAK, GONE])
    path = tmp_path / "result.json"
    monkeypatch.setattr(mutants.store, "__defaults__", (path,))
    return path


def test_a_noticed_mistake_is_killed_and_another_survives(tree, capsys):
    assert mutants.main(["--time", "60"]) == 1
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == {"made": 2, "killed": 1, "survived": 1}
    stored = json.loads(tree.read_text())
    assert (stored["made"], stored["killed"]) == (2, 1)
    assert stored["survived"] == [WEAK.name] and stored["does not fit"] == [GONE.name]


def test_a_later_run_of_some_mistakes_keeps_the_others(tree):
    mutants.store({GOOD.name: "survived", WEAK.name: "survived", "one of long ago": "killed"})
    stored = mutants.store({GOOD.name: "killed"})
    assert stored["killed"] == 1 and stored["survived"] == [WEAK.name] and stored["made"] == 2


def test_names_are_unique_and_each_mistake_changes_something():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 80
    for mutant in MUTANTS:
        assert mutant.old != mutant.new, mutant.name
        assert all((mutants.ROOT / test).is_file() for test in mutant.tests), mutant.name


def test_a_stored_result_counts_what_it_lists():
    if not mutants.RESULT.is_file():
        pytest.skip("no stored result")
    stored = json.loads(mutants.RESULT.read_text(encoding="utf-8"))
    assert stored["made"] == stored["killed"] + len(stored["survived"])
