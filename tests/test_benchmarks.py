"""The benchmark runner: figures come with their origin and are kept whole; and the figures of
benchmarks whose generator is a stand-in with known answers."""
import functools
import json
import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch

from tests import loaded_weights
from tests.benchmarks import __main__ as bench
from tests.benchmarks import (
    autoencoder_actions,
    control_actions,
    memorisation_actions,
    motion_actions,
    notebooks,
    prediction,
    rollout,
    upsampler,
)
from tests.clips import circling_clip, noise, seeded
from vldm_mini.datasets import driving, video
from vldm_mini.evaluation import action_samples, baselines, samples
from vldm_mini.evaluation.action_classifiers import ActionClassifiersConfig, ActionPrediction


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A benchmark `toy-figure`, and a folder of its own for results."""
    module = types.ModuleType("tests.benchmarks.toy_figure")
    module.run = lambda: {"error": 0.5}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(bench, "names", lambda: {"toy-figure": "A toy."})
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    return tmp_path / "results" / "toy-figure.json"


# -- the runner
# --------------------------------------------------------------------------------------

def test_the_last_line_is_one_json_object_and_the_same_is_kept(toy, capsys):
    print("noise before")
    assert bench.main(["toy-figure", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(toy.read_text())
    assert printed["error"] == 0.5 and printed["threads"] == 1 and printed["weights"] == {}
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
    known = "error: unknown benchmark 'nope'; choose one of toy-figure\n"
    assert capsys.readouterr().err == known


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


def test_shipped_weights_that_are_loaded_are_recorded_with_their_checksums():
    from vldm_mini import weights
    file = next(loaded_weights.SHIPPED.rglob("*.safetensors"))
    with loaded_weights.recorded() as used:
        weights.load_tensors(file)
    name = file.relative_to(loaded_weights.SHIPPED).as_posix()
    assert used.checksums == {name: weights.sha256(file)}
    with loaded_weights.recorded() as used:
        pass
    assert used.checksums == {}


def test_a_notebook_is_run_and_keeps_its_outputs_and_the_weights_that_it_loaded(
        tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    file = loaded_weights.SHIPPED / "actions" / "classifiers" / "model.safetensors"
    code = f"from vldm_mini import weights\nweights.load_tensors({str(file)!r})\n1 + 1"
    cell = dict(cell_type="code", id="one", metadata={}, source=code, outputs=[],
                execution_count=None)
    book = dict(nbformat=4, nbformat_minor=5, metadata={"vldm": {"minutes_cpu": 1}}, cells=[cell])
    path = tmp_path / "00_a.ipynb"
    path.write_text(json.dumps(book))
    assert notebooks.main(["00", "--size", "xs", "--cell-timeout", "60"]) == 0
    ran = json.loads(path.read_text())
    facts = ran["metadata"]["vldm"]
    assert list(facts["weights"]) == ["actions/classifiers/model.safetensors"]
    assert facts["minutes_cpu"] == 1 and facts["size"] == "xs"
    assert ran["cells"][0]["outputs"][0]["data"]["text/plain"] == "2"
    assert ran["cells"][0]["execution_count"] == 1 and "widgets" not in ran["metadata"]
    assert ran["cells"][0]["source"] == code, "a string stays a string, lines stay lines"
    book["cells"][0]["source"] = ["1 +\\\n", " 1"]
    path.write_text(json.dumps(book))
    notebooks.main(["00", "--size", "xs", "--cell-timeout", "60"])
    assert json.loads(path.read_text())["cells"][0]["source"] == ["1 +\\\n", " 1"]


def test_an_unknown_notebook_is_one_line(capsys):
    assert notebooks.main(["77"]) == 2
    assert "no notebook starts with '77'" in capsys.readouterr().err


# -- figures with known answers
# ----------------------------------------------------------------------

def test_speed_is_read_off_the_true_road():
    clips = driving.clips("held_out", 3, 8, first=400)
    x = torch.stack([video.to_float(clip.frames) for clip in clips])
    roads = [prediction.views_of_road(clip, 2) for clip in clips]
    read = prediction.read_speed(x[:, 2:5], roads)
    assert (read - prediction.true_speed(clips, 2)).abs().max() < 1, "to the step of the grid"
    copies = x[:, [1]].expand(-1, 3, -1, -1, -1)
    assert (prediction.read_speed(copies, roads) == 0).all(), "a copy stands still"


def test_pace_is_one_for_shuffled_frames_and_zero_for_frozen_ones():
    frames = noise(1, 200, 1, 8, 8).expand(1, 200, 3, 8, 8)
    assert float(rollout.pace(frames)) == pytest.approx(1, abs=0.1)
    assert float(rollout.pace(frames[:, :1].expand_as(frames))) == 0


def test_a_loop_is_an_earlier_window_of_the_same_video():
    frames = noise(16, 3, 8, 8, seed=1)
    looping = torch.cat([frames, frames])
    nearest = rollout.nearest_earlier(looping)
    assert float(nearest.min()) < 1e-3, "the second round repeats the first"
    assert float(rollout.nearest_earlier(noise(32, 3, 8, 8, seed=2)).min()) > 0.5


def test_video_error_of_the_same_features_is_zero_and_in_units_of_their_spread():
    true = SimpleNamespace(video_features=noise(50, 4).double())
    off = SimpleNamespace(video_features=true.video_features + true.video_features.std(0))
    assert upsampler.video_error(true, true) == 0
    assert upsampler.video_error(off, true) == pytest.approx(1)


# -- benchmarks of `actions`, with a stand-in for the generator
# ---------------------------------------

class StandInAutoencoder(torch.nn.Module):
    """f = 4 by averaging; decoding repeats. Linear, so that every figure is known."""
    factor = 4

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 4)

    def decode(self, z):
        return z.repeat_interleave(4, -1).repeat_interleave(4, -2)


class StandIn:
    """Gives a window of the circling clip with the requested labels; at alpha = 1 shuffled."""
    config = SimpleNamespace(steps=3, label_guidance=1.5, temporal_guidance=2.0, eta=1.0)

    def __init__(self):
        self.autoencoder = StandInAutoencoder()

    def noise(self, n, frames, seed):
        return noise(n, frames, 3, 16, 16, seed=seed)

    def labels(self, action, person):
        return torch.tensor([[action, person]])

    def latents(self, labels, frames, alpha, seed, noise, temporal_guidance):
        videos = []
        for i, (action, person) in enumerate(labels.tolist()):
            window = video.to_float(circling_clip(action, person, seed=i).frames[:24:3])
            shuffled = baselines.shuffled_order(frames, seeded(i))
            videos.append(self.autoencoder.encode(window[shuffled] if alpha == 1 else window))
        return torch.stack(videos)

    def decode(self, z):
        return self.autoencoder.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])


def split(clips):
    """As video.split does for `actions`: person 8 and the held-out pairs apart."""
    def is_held_out(clip):
        pair = clip.labels["person"], clip.labels["action"]
        return clip.labels["person"] == 8 or pair in video.HELD_OUT_PAIRS
    return ([clip for clip in clips if not is_held_out(clip)],
            [clip for clip in clips if is_held_out(clip)])


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A stand-in model, its samples, and clips to compare with."""
    monkeypatch.setattr(samples, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(video, "split", split)
    model = StandIn()
    generated = {"video": action_samples.generate(model, 28),
                 "held_out": action_samples.generate(model, 4, held_out=True),
                 "image": action_samples.generate(model, 28, alpha=1),
                 "unguided": action_samples.generate(model, 28, temporal_guidance=1)}
    clips = [circling_clip(action, person, mirror=mirror)
             for action in range(4) for person in range(9) for mirror in (False, True)]
    return SimpleNamespace(model=model, generated=generated, clips=clips, root=tmp_path)


def test_requests_are_divided_evenly_over_combinations_and_seeds():
    requests = action_samples.requests(200, held_out=False)
    pairs = [pair for _, some in requests for pair in some]
    assert [len(some) for _, some in requests] == [67, 67, 66]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    assert len(counts) == 28 and set(counts.values()) == {7, 8}
    held_out = {pair for _, some in action_samples.requests(40, held_out=True) for pair in some}
    assert held_out == {(action, person) for person, action in video.HELD_OUT_PAIRS}
    assert not held_out & counts.keys()


def test_samples_are_kept_by_weights_and_settings(stand_in, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    first = action_samples.kept_samples(stand_in.model, folder, 4)
    again = action_samples.kept_samples(None, folder, 4)            # no model is called
    for a, b in zip(vars(first).values(), vars(again).values()):
        assert torch.equal(a, b)
    names = {samples.key(folder, n=4), samples.key(folder, n=5)}
    (folder / "model.safetensors").write_bytes(b"two")
    assert len(names | {samples.key(folder, n=4)}) == 3


def test_control_reports_what_the_classifiers_predict(stand_in):
    def classify(videos):
        """Person by the shade, order by whether anything changes, action always the first."""
        person = ((videos[:, 0, 0, 0, 0] + 1) * 127.5 / 20).round().long()
        change = videos.diff(dim=1).abs().mean((1, 2, 3, 4))
        return ActionPrediction(torch.zeros(len(videos)).long(), person, (change > 0).float())
    classifiers = SimpleNamespace(classify=classify, config=ActionClassifiersConfig())
    out = control_actions.run(stand_in.model, stand_in.generated, classifiers, stand_in.clips)
    assert out["person_accuracy"] == 1 and out["real_person_accuracy"] == 1 and out["n"] == 28
    assert out["action_accuracy"] == 0.25 and out["held_out_accuracy"] == 0.25
    assert out["order_accuracy"] == 1 and out["beside"]["real, freeze"]["in_order"] == 0
    assert sum(row["n"] for row in out["generated"]["video"]["by_seed"].values()) == 28
    assert json.dumps(out)


def test_long_clips_count_no_more_than_short_ones():
    short, long = circling_clip(0, 0, t=22), circling_clip(1, 1, t=90)
    videos, actions = motion_actions.real_windows([short, long], count=5)
    assert videos.shape == (10, 8, 3, 64, 64) and actions.tolist() == [0] * 5 + [1] * 5
    assert torch.equal(videos[9], video.to_float(long.frames[68::3]))


def test_motion_is_one_for_the_same_clips_and_more_for_shuffled_frames(stand_in, monkeypatch):
    few = functools.partial(motion_actions.real_windows, count=3)
    monkeypatch.setattr(motion_actions, "real_windows", few)
    out = motion_actions.run(stand_in.model, stand_in.generated, stand_in.clips)
    for action in video.ACTIONS:
        assert out["video_ratio"][action] == pytest.approx(1, abs=0.15)
        assert out["beside"]["real, freeze"]["motion"][action] == 0
        assert out["image_jerk_ratio"][action] > 1.3 and out["image_distinguished"][action]
    n = {"video": 28, "held_out": 4, "image": 28, "unguided": 28, "real": out["n"]["real"]}
    assert out["n"] == n and json.dumps(out)


def test_memorisation_finds_copies_and_saves_them_as_a_picture(stand_in):
    few = [clip for clip in stand_in.clips if clip.labels["person"] in (0, 3, 8)]
    out = memorisation_actions.run(stand_in.model, stand_in.generated, few)
    assert out["copy_ratio"] < 0.05
    distance = out["median_distance"]
    assert out["nn_ratio"] < distance["generated_image"] / distance["real_held_out"]
    assert (stand_in.root / "runs" / "memorisation-actions.png").is_file()
    assert json.dumps(out)


def test_the_autoencoder_is_measured_on_the_held_out_person(stand_in):
    coder = stand_in.model.autoencoder
    out = autoencoder_actions.run(coder, stand_in.clips)
    held_out = [clip.frames for clip in stand_in.clips if clip.labels["person"] == 8]
    x = video.to_float(torch.cat(held_out))
    error = (x - coder.decode(coder.encode(x))).double().pow(2).mean().item()
    assert out["n"] == len(x) == 480
    # 10 log10(2^2 / MSE)
    assert out["psnr_db"] == pytest.approx(10 * math.log10(4 / error), abs=0.01)
    assert json.dumps(out)


def test_every_test_of_a_fault_report_is_there():
    from tests.benchmarks.reports import REPORTS, ROOT
    assert {number for number, *_ in REPORTS} == {*map(str, range(1, 17)), "m"}
    for _, _, file, names in REPORTS:
        text = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        missing = [name for name in names if f"def {name}(" not in text]
        assert missing == []
