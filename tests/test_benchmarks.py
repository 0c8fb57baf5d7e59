"""The benchmark runner: figures come with their origin, are kept whole, and their names are what the notes quote."""
import json
import sys
import types

import pytest
import torch

from tests.benchmarks import __main__ as bench
from tests.benchmarks.prediction import road, road_speed
from vldm_mini.datasets import driving, video


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A benchmark `toy-figure`, and a folder of its own for results."""
    module = types.ModuleType("tests.benchmarks.toy_figure")
    module.run = lambda: {"error": 0.5}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(bench, "names", lambda: {"toy-figure": "A toy."})
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    return tmp_path / "results" / "toy-figure.json"


def test_the_last_line_is_one_json_object_and_the_same_is_kept(toy, capsys):
    print("noise before")
    assert bench.main(["toy-figure", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(toy.read_text())
    assert printed["error"] == 0.5 and printed["threads"] == 1
    assert {"commit", "dirty", "hardware", "torch", "minutes", "date"} <= printed.keys()


def test_a_failed_run_keeps_the_last_result_and_says_why_in_one_line(toy, capsys):
    bench.main(["toy-figure", "--threads", "1"])
    before = toy.read_text()

    def fails():
        raise FileNotFoundError("no data here")
    sys.modules["tests.benchmarks.toy_figure"].run = fails
    assert bench.main(["toy-figure"]) == 2
    assert capsys.readouterr().err == "error: no data here\n" and toy.read_text() == before


def test_an_unknown_name_is_one_line_that_lists_the_known(toy, capsys):
    assert bench.main(["nope"]) == 2
    assert capsys.readouterr().err == "error: unknown benchmark 'nope'; choose one of toy-figure\n"


def test_every_benchmark_says_what_it_measures_and_has_a_run():
    for name, what in bench.names().items():
        source = (bench.HERE / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        assert what, f"{name}: its docstring's first line must say what it measures"
        assert "\ndef run(" in source, f"{name} has no run()"


def test_kept_results_belong_to_a_benchmark_and_were_measured_on_committed_code():
    for file in sorted((bench.HERE / "results").glob("*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        assert file.stem == kept["name"] and file.stem in bench.names()
        assert kept["commit"] and kept["minutes"] <= 15


def test_speed_is_read_off_the_true_road():
    clips = driving.clips("held_out", 3, 8, first=400)
    x, roads = torch.stack([video.to_float(clip.frames) for clip in clips]), [road(clip, 2) for clip in clips]
    drove = torch.tensor([(clip.scene.travelled(clip.times[[1, 4]]) @ [-1, 1]) * driving.KEY_FPS / 3 for clip in clips])
    assert (road_speed(x[:, 2:5], roads) - drove).abs().max() < 1, "true frames, to the step of the grid"
    assert (road_speed(x[:, [1]].expand(-1, 3, -1, -1, -1), roads) == 0).all(), "a copy stands still"
