"""Whole runs: killed and resumed, on other data, within minutes, by two processes."""
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  the first optimiser imports it: once for all processes here
from safetensors.torch import load_file

from tests.tiny import copies, made_folder, normal, tiny_unet
from vldm_mini import cli, weights
from vldm_mini.diffusion import Schedule
from vldm_mini.temporal import VideoModel, insert
from vldm_mini.training import Objective, Record, Settings, loop, sizes, train
from vldm_mini.training.data import Latents
from vldm_mini.training.loop import STATE
from vldm_mini.training.losses import LossOptions, diffusion_loss
from vldm_mini.training.stages import Request, common, stages_for, temporal, train_stage
from vldm_mini.training.stages.common import run_job

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.test_runs"])
needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")


def request(data, out, steps=2, **more):
    return Request(data=str(data), size="xs", out=out, steps=steps, progress=False, **more)


# -- killed and resumed ---------------------------------------------------------------------------

def command(*words):
    """`python -m vldm_mini`, at a size xs of two clips that saves after every step."""
    torch.set_num_threads(1)
    for table in (sizes.SIZES, sizes.DRIVING):
        xs = table["xs"]
        stages = {name: replace(one, save_every_s=0) for name, one in xs.stages.items()}
        table["xs"] = replace(xs, stages=stages, clips=2, upsampler=replace(xs.upsampler, clips=2))
    raise SystemExit(cli.main(words))


def start(data, out, steps):
    words = ("train", "all", "--data", data, "--size", "xs", "--steps", str(steps), "--out",
             str(out))
    process = CONTEXT.Process(target=command, args=words)
    process.start()
    return process


def steps_done(out):
    """Steps of all stages together, as their records have them."""
    total = 0
    for path in out.rglob("record.json"):
        total += json.loads(path.read_text())["rows"][-1]["step"]
    return total


@needs_kill
@pytest.mark.parametrize("data", ["folder", "driving"])
def test_train_all_killed_at_three_moments_and_resumed_ends_in_exactly_the_same_weights(
        tmp_path, data):
    if data == "folder":
        data = str(made_folder(tmp_path / "videos"))
    steps, names = 2, stages_for(data)
    generator = random.Random(1)
    moments = sorted(generator.sample(range(1, steps * len(names)), 3))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = start(data, whole, steps)
    for moment in moments:
        process = start(data, broken, steps)
        while process.is_alive() and steps_done(broken) < moment:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        assert process.is_alive(), process.exitcode
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert steps_done(broken) < steps * len(names)
    last = start(data, broken, steps)
    last.join(), unbroken.join()
    assert (last.exitcode, unbroken.exitcode) == (0, 0)
    found = [{str(path.relative_to(out)) for path in out.rglob("*.safetensors")}
             for out in (whole, broken)]
    assert found[0] == found[1] and len(found[0]) > 2 * len(names)
    for name in found[0]:
        a, b = load_file(whole / name), load_file(broken / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
    assert (whole / "config.json").read_bytes() == (broken / "config.json").read_bytes()
    assert (broken / "sample.webp").is_file()
    assert not [*broken.rglob(".*.part"), *broken.rglob(".lock")], "what kills left is gone"


def test_a_run_of_minutes_keeps_its_plan_when_it_is_resumed(tmp_path, monkeypatch):
    """The number of steps is measured once; a resumed run must not measure another one."""
    costs, stopped = [0.02, 0.005], []
    monkeypatch.setattr(common, "cost_of_a_step",
                        lambda job: dict(seconds=costs.pop(0), gflop=1.0, peak_memory_mb=0))
    data = made_folder(tmp_path / "videos")
    asked = request(data, tmp_path / "run", None, minutes=0.01)
    plain = loop.Run.one_step

    def stopping(run, step):
        if step == 5 and not stopped:
            stopped.append(step)
            raise KeyboardInterrupt
        plain(run, step)
    monkeypatch.setattr(loop.Run, "one_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_stage("autoencoder", asked)
    plan = json.loads((tmp_path / "run" / "autoencoder" / "steps.json").read_text())
    assert plan["seconds"] == 0.02 and 5 < plan["steps"] <= 0.93 * 0.6 / 0.02
    record = train_stage("autoencoder", asked)
    assert record.settings["steps"] == record.rows[-1]["step"] == plan["steps"]
    assert json.loads((tmp_path / "run" / "autoencoder" / "steps.json").read_text()) == plan
    assert len(costs) == 1, "measured once"


def test_minutes_of_train_all_are_divided_by_the_shares_and_known_to_a_resumed_run(
        tmp_path, monkeypatch):
    from vldm_mini.training import stages
    given, clock = {}, [0.0]

    def fake(name, request, minutes):
        given.setdefault(name, []).append(minutes)
        if name == "temporal" and len(given["temporal"]) == 1:
            raise KeyboardInterrupt
        clock[0] += 60 * minutes
    monkeypatch.setattr(stages, "_train", fake)
    monkeypatch.setattr(stages, "sample_video", lambda request: None)
    monkeypatch.setattr(stages.time, "monotonic", lambda: clock[0])
    asked = request("folder", tmp_path, None, minutes=10.0)
    with pytest.raises(KeyboardInterrupt):
        stages.train_stage("all", asked)
    stages.train_stage("all", asked)
    names = stages.stages_for("folder")
    whole = sum(stages.STAGES[name].share for name in names)
    for name in names:
        share = 10 * (1 - stages.SAMPLING_SHARE) * stages.STAGES[name].share / whole
        assert all(minutes == pytest.approx(share, abs=0.01) for minutes in given[name]), name
    assert names == ["autoencoder", "image", "temporal", "decoder", "prediction"]


# -- other data, other layers ---------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of videos, and a run on it: autoencoder and image model."""
    folder = tmp_path_factory.mktemp("trained")
    data = made_folder(folder / "videos")
    for stage in ("autoencoder", "image"):
        train_stage(stage, request(data, folder / "run"))
    return data, folder / "run"


def changed(data, folder, how):
    """A copy of a folder of videos in which something is different, under the same name."""
    from PIL import Image
    copy = folder / "b" / data.name
    shutil.copytree(data, copy)
    if how == "a file cut anew under its old name":
        frame = copy / "left" / "clip0" / "003.png"
        Image.new("RGB", (32, 32), (9, 9, 9)).save(frame)
    if how == "one more clip":
        shutil.copytree(copy / "left" / "clip0", copy / "left" / "clip7")
    if how == "one more class":
        shutil.copytree(copy / "left", copy / "again")
    if how == "a class renamed":
        (copy / "left").rename(copy / "forward")
    return copy


CHANGES = ("a file cut anew under its old name", "one more clip", "one more class",
           "a class renamed")


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_a_run_is_not_resumed_on_other_data(trained, tmp_path, stage, how):
    data, source = trained
    out = tmp_path / "run"
    shutil.copytree(source, out)
    other = changed(data, tmp_path, how)
    before = (out / stage / weights.WEIGHTS).read_bytes(), (out / stage / STATE).read_bytes()
    message = r"holds a run with other data or layers \(data\); give another --out, or --no-resume"
    with pytest.raises(ValueError, match=message):
        train_stage(stage, request(other, out))
    after = (out / stage / weights.WEIGHTS).read_bytes(), (out / stage / STATE).read_bytes()
    assert before == after
    train_stage(stage, request(data, out))


def test_latents_are_encoded_anew_when_their_clips_change_under_the_same_names(trained, tmp_path):
    data, source = trained
    out = tmp_path / "run"
    shutil.copytree(source, out)
    other = changed(data, tmp_path, CHANGES[0])
    of_old, of_new = (common.latents_of(request(each, out))[0] for each in (data, other))
    assert of_old.names == of_new.names and of_old.fingerprint != of_new.fingerprint
    pairs = zip(of_old.names, of_old.clips, of_new.clips)
    assert [name for name, a, b in pairs if not torch.equal(a, b)] == ["left/clip0"]
    files = {path.name for path in (out / "latents").iterdir()}
    common.latents_of(request(data, out))
    assert {path.name for path in (out / "latents").iterdir()} == files, "the old ones are kept"


def layer_from(folder, factor):
    """A layer of one's own, as a reader's file holds it."""
    folder.mkdir()
    (folder / "my_layer.py").write_text(
        "from vldm_mini.temporal import TemporalConv\n\n\n"
        "class Louder(TemporalConv):\n"
        f"    def forward(self, z, clip):\n        return {factor} * super().forward(z, clip)\n")
    spec = importlib.util.spec_from_file_location("my_layer", folder / "my_layer.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_layer"] = module
    spec.loader.exec_module(module)
    return module.Louder


def test_layers_are_not_resumed_with_other_code(trained, tmp_path, monkeypatch):
    data, source = trained
    out = tmp_path / "run"
    shutil.copytree(source, out)
    asked = request(data, out)
    monkeypatch.setitem(sys.modules, "my_layer", None)
    first = layer_from(tmp_path / "first", 2)
    record = run_job(asked, temporal.prepare(asked, conv=first))
    again = layer_from(tmp_path / "second", 2)
    assert run_job(asked, temporal.prepare(asked, conv=again)).rows == record.rows
    other = layer_from(tmp_path / "third", 3)
    with pytest.raises(ValueError, match=r"with other data or layers \(layers\)"):
        run_job(asked, temporal.prepare(asked, conv=other))
    with pytest.raises(ValueError, match=r"with other data or layers \(layers\)"):
        run_job(asked, temporal.prepare(asked))


def test_clips_that_are_too_short_are_left_out_by_name_before_the_first_step(tmp_path):
    data = made_folder(tmp_path / "videos")
    for frame in sorted((data / "left" / "clip1").iterdir())[3:]:
        frame.unlink()
    with pytest.warns(UserWarning, match=r"1 of 6 clips are shorter than 7 frames and are left out:"
                                         r" .*left/clip1 \(3\)"):
        record = train_stage("autoencoder", request(data, tmp_path / "run"))
        train_stage("image", request(data, tmp_path / "run"))
    assert record.rows[-1]["step"] == 2


# -- two processes --------------------------------------------------------------------------------

def sgd(module, muon=False, betas=None):
    """Steps proportional to the gradient: AdamW's first ones depend on its sign alone."""
    return [torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)]


def train_in_group(folder, rank, world, steps):
    """Temporal layers with the stage's loss; leaves gradients and weights of this process."""
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group-{steps}",
                                             rank=rank, world_size=world)
    latents = Latents([normal(8, 4, 4, 4, seed=i).half() for i in range(3)],
                      torch.tensor([[0, 1], [1, 2], [2, 3]]),
                      (("action", tuple("abcd")), ("person", tuple("012345678"))), 8.0)
    theta = tiny_unet().requires_grad_(False)
    torch.manual_seed(0)
    layers = insert(theta, ff_mult=1, ff_in=False)
    options = LossOptions(tau=(0.0, 1.0), stratified=True, temporal_difference=8.0)
    loss = diffusion_loss(VideoModel(theta, layers), latents, 3, 2, Schedule.linear(),
                          options=options)
    settings = Settings(steps, batch=4, lr=1.0, warmup=0, precision="fp32")
    loop.make_optimizers = sgd
    before = copies(layers)
    train(Path(folder) / f"{world}-{steps}", settings, [Objective("temporal", layers, loss)],
          progress=False)
    grads = {f"gradient.{name}": p.grad for name, p in layers.named_parameters()}
    moved = {f"moved.{name}": x - before[name] for name, x in copies(layers).items()}
    weights.save_tensors(Path(folder) / f"{world}-{steps}-{rank}.safetensors",
                         grads | moved | copies(layers))
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed here")
@pytest.mark.parametrize("steps", [1, 10])
def test_two_processes_with_half_of_the_batch_each_train_as_one(tmp_path, steps):
    group = [CONTEXT.Process(target=train_in_group, args=(str(tmp_path), rank, world, steps))
             for rank, world in ((0, 1), (0, 2), (1, 2))]
    for process in group:
        process.start()
    for process in group:
        process.join(120)
    assert [process.exitcode for process in group] == [0, 0, 0]
    one, first, second = (load_file(tmp_path / f"{name}-{steps}-{rank}.safetensors")
                          for name, rank in ((1, 0), (2, 0), (2, 1)))
    for name, x in one.items():
        assert torch.allclose(x, first[name], atol=1e-5) and torch.equal(first[name], second[name])
    grads = torch.cat([x.flatten() for name, x in one.items() if name.startswith("gradient.")])
    moved = torch.cat([x.flatten() for name, x in one.items() if name.startswith("moved.")])
    assert grads.abs().max() > 0.01 and moved.abs().max() > 0.01, "the bound means something"
    records = [Record.load(tmp_path / f"{world}-{steps}") for world in (1, 2)]
    for a, b in zip(*(record.rows for record in records)):
        assert a["losses"] == pytest.approx(b["losses"], abs=2e-5)
        assert a["levels"] == pytest.approx(b["levels"], abs=2e-5)
