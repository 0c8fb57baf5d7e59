"""Files: folders are tested before work starts, one process holds a run, no state is pickled."""
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vldm_mini import files, weights

ROOT = Path(__file__).resolve().parent.parent


def dead_process():
    """The id of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def write_lock(folder, **owner):
    """A lock as another process would leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files.LOCK).write_text(json.dumps(owner))


# -- folders ---------------------------------------------------------------------------------------

def test_a_writable_folder_is_created_and_left_empty(tmp_path):
    folder = files.writable(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b" and list(folder.iterdir()) == []


def test_a_folder_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to the folder .*b .*choose another --out"):
        files.writable(tmp_path / "file" / "b")


def test_a_read_only_folder_is_refused_by_name(tmp_path, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("pathlib.Path.write_bytes", deny)
    with pytest.raises(OSError, match=rf"{tmp_path} \(Permission denied\); choose another"):
        files.writable(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do it")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        files.writable(tmp_path / "run")


# -- locks -----------------------------------------------------------------------------------------

def test_a_lock_lasts_as_long_as_the_block_also_when_it_fails(tmp_path):
    with pytest.raises(KeyError), files.locked(tmp_path / "run") as folder:
        assert json.loads((folder / files.LOCK).read_text())["pid"] == os.getpid()
        raise KeyError
    assert list((tmp_path / "run").iterdir()) == []
    with files.locked(tmp_path / "run"):
        pass


def test_a_second_run_of_the_same_process_is_refused(tmp_path):
    with files.locked(tmp_path):
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on .* has been using"):
            with files.locked(tmp_path):
                pass
        assert (tmp_path / files.LOCK).is_file(), "the refused one leaves the lock alone"


def test_a_run_of_another_live_process_is_refused_with_the_way_out(tmp_path):
    code = ("import sys; from vldm_mini.files import locked\n"
            f"with locked({str(tmp_path)!r}): print('locked', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "locked\n"
        says = rf"process {other.pid} on .* using .*; wait for it, give another --out, or, if "
        with pytest.raises(BlockingIOError, match=says):
            with files.locked(tmp_path):
                pass
        other.stdin.close()
        other.wait()
    with files.locked(tmp_path):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    write_lock(tmp_path, pid=dead_process(), host=socket.gethostname(), since="yesterday")
    with files.locked(tmp_path):
        assert json.loads((tmp_path / files.LOCK).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_with_our_own_id_from_before_a_restart_is_taken_over(tmp_path):
    write_lock(tmp_path, pid=os.getpid(), host=socket.gethostname(), since="yesterday")
    with files.locked(tmp_path):
        pass


def test_a_lock_of_another_host_is_never_taken_over(tmp_path):
    write_lock(tmp_path, pid=dead_process(), host="elsewhere", since="yesterday")
    with pytest.raises(BlockingIOError, match="on elsewhere has been using .* since yesterday"):
        with files.locked(tmp_path):
            pass


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 3}'])
def test_a_damaged_lock_is_refused_with_its_path(tmp_path, text):
    (tmp_path / files.LOCK).write_text(text)
    with pytest.raises(BlockingIOError, match=r"\.lock is no lock of a run; delete it if no"):
        with files.locked(tmp_path):
            pass


def test_unfinished_files_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path):
    dead = tmp_path / f".state.safetensors.{dead_process()}.part"
    live = tmp_path / f".state.safetensors.{os.getppid()}.part"
    strange = tmp_path / ".download.part"
    for file in (dead, live, strange):
        file.write_text("half")
    with files.locked(tmp_path):
        assert not dead.exists() and live.exists() and strange.exists()


# -- the state of a run ----------------------------------------------------------------------------

def equal(a, b):
    """The same structure, types and values; tensors equal in type, shape and every element."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        same_keys = list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b]
        return same_keys and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return a == b or (a != a and b != b)


def test_a_state_comes_back_exactly_whatever_is_nested_in_it(tmp_path):
    x = torch.arange(6.0).reshape(2, 3)
    state = {
        "step": 7, "loss": 0.1 + 0.2, "bad": [math.nan, math.inf], "done": True, "note": None,
        "text": "tau = \u03c4, \"quoted\"", "empty": [{}, [], ()], "betas": (0.9, (0.99,)),
        "optimizer": {0: {"step": torch.tensor(3.0), "mean": x.T}, 1: {}},
        "tensor": {"tensor": "a key of our own format"}, "dict": [["tuple", 1]],
        "kinds": [x.half(), x.bfloat16(), x.double(), x > 2, x.long(), torch.zeros(0, 2)],
        "twice": [x, x, x[1]], "a.b": {"c": x}, "a": {"b.c": x + 1},
    }
    weights.save_state(tmp_path / "state.safetensors", state)
    assert equal(weights.load_state(tmp_path / "state.safetensors"), state)
    assert not equal({0: x}, {"0": x}) and not equal((x,), [x]) and not equal(1, 1.0)


def test_two_values_under_paths_that_read_the_same_are_kept_apart(tmp_path):
    state = {"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}
    weights.save_state(tmp_path / "s", state)
    assert equal(weights.load_state(tmp_path / "s"), state)


def test_an_optimizer_goes_on_from_a_stored_state_as_if_nothing_had_happened(tmp_path):
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    first = torch.optim.AdamW(models[0].parameters(), lr=0.1)
    x = torch.randn(5, 3)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    step(models[0], first)
    state = {"model": dict(models[0].state_dict()), "optimizer": first.state_dict()}
    weights.save_state(tmp_path / "s", state)
    stored = weights.load_state(tmp_path / "s")
    models[1].load_state_dict(stored["model"])
    second = torch.optim.AdamW(models[1].parameters(), lr=0.5)
    second.load_state_dict(stored["optimizer"])
    step(models[0], first)
    step(models[1], second)
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_state_is_a_safetensors_file_that_any_reader_opens(tmp_path):
    from safetensors.torch import load_file
    weights.save_state(tmp_path / "s", {"x": torch.ones(2), "step": 1})
    assert torch.equal(load_file(tmp_path / "s")["state.x"], torch.ones(2))


def test_what_a_state_cannot_hold_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\.1 holds a set: a state may hold tensors"):
        weights.save_state(tmp_path / "s", {"a": [1, {2}]})
    with pytest.raises(TypeError, match="state holds a tuple"):
        weights.save_state(tmp_path / "s", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:5], lambda data: b"",
                                    lambda data: b"\x80\x02pickle of another time"])
def test_a_damaged_state_says_that_deleting_it_helps(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    weights.save_state(path, {"x": torch.ones(20)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged .* delete it to start"):
        weights.load_state(path)


def test_a_file_of_weights_is_refused_as_a_state(tmp_path):
    weights.save_tensors(tmp_path / "x", {"x": torch.ones(2)})
    with pytest.raises(ValueError, match="is damaged or no checkpoint of a run"):
        weights.load_state(tmp_path / "x")


# -- reading ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("load", [weights.load_tensors, weights.load_state, weights.read_json])
def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, load):
    def deny(path):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("pathlib.Path.read_bytes", deny)
    with pytest.raises(OSError, match=r"x\.y cannot be read \(Permission denied\)") as raised:
        load(tmp_path / "x.y")
    assert "damaged" not in str(raised.value) and "permissions" in str(raised.value)


def test_a_cut_cache_says_what_the_caller_knows_to_help(tmp_path):
    path = tmp_path / "latents.safetensors"
    weights.save_tensors(path, {"x": torch.ones(9)})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"latents\.safetensors is damaged .*; delete it$"):
        weights.load_tensors(path, cure="delete it")


@pytest.mark.parametrize("text, says", [
    ('{"conv": "TemporalConv",\n "attention": "Tem', r"it is no JSON \(Unterminated .* line 2"),
    ('{"conv": "TemporalConv"}', "it lacks attention, alpha; fetch or save it again"),
    ("[1, 2]", "it holds no JSON object"),
    ("\u00e9\udc80", "it is no JSON"),
])
def test_a_damaged_json_file_is_named_with_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"config\.json is damaged, {says}"):
        weights.read_json(path, ("conv", "attention", "alpha"))


def test_a_damaged_record_and_a_damaged_config_of_temporal_layers_are_named(tmp_path):
    from tests.tiny import tiny_unet
    from vldm_mini.temporal import TemporalLayers, insert
    from vldm_mini.training import Record
    (tmp_path / "record.json").write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"record\.json is damaged, it is no JSON"):
        Record.load(tmp_path)
    unet = tiny_unet()
    insert(unet).save_pretrained(tmp_path / "temporal")
    config = tmp_path / "temporal" / "config.json"
    whole = config.read_text()
    config.write_text(whole[:40])
    with pytest.raises(ValueError, match=r"temporal.config\.json is damaged, it is no JSON"):
        TemporalLayers.from_pretrained(tmp_path / "temporal", tiny_unet())
    settings = json.loads(whole)
    del settings["conv"]
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"temporal.config\.json is damaged, it lacks conv"):
        TemporalLayers.from_pretrained(tmp_path / "temporal", tiny_unet())
