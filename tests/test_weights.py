"""What is saved comes back, a failed save changes nothing, what does not fit is named."""

import errno
import functools
import http.server
import json
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import UNET, copies, normal, same, tiny_unet
from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from vldm_mini.unet import UNet

ROOT = Path(__file__).resolve().parent.parent


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def sizes(folder):
    """{subfolder: bytes of its weights}."""
    return {path.parent.name: path.stat().st_size for path in folder.glob("*/model.safetensors")}


# -- saved and loaded ------------------------------------------------------------------------------


def test_tensors_come_back_exactly_whatever_their_type(tmp_path):
    tensors = dict(
        a=normal(3, 4),
        turned=normal(3, 4).T,
        half=normal(3).half(),
        b=normal(2).bfloat16(),
        n=torch.tensor(7),
    )
    weights.save_tensors(tmp_path / "x.safetensors", tensors)
    assert same(weights.load_tensors(tmp_path / "x.safetensors"), tensors) and names(tmp_path) == [
        "x.safetensors"
    ]


def test_a_model_comes_back_with_its_config_in_float32_and_evaluation_mode(tmp_path):
    model = tiny_unet()
    model.save_pretrained(tmp_path, card="# a card\n")
    again = UNet.from_pretrained(tmp_path)
    assert names(tmp_path) == ["README.md", "config.json", "model.safetensors"]
    assert again.config == model.config == UNET and not again.training
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert same(copies(again), {name: x.half().float() for name, x in copies(model).items()})


def test_weights_are_saved_in_half_precision_unless_asked_otherwise(tmp_path):
    model = tiny_unet()
    model.save_pretrained(tmp_path / "half")
    model.save_pretrained(tmp_path / "full", dtype=torch.float32)
    size = sizes(tmp_path)
    assert size["half"] < 0.6 * size["full"]
    assert same(copies(UNet.from_pretrained(tmp_path / "full")), copies(model))


def test_weights_in_8_bits_are_smaller_and_predict_nearly_the_same(tmp_path):
    model = tiny_unet()
    for name, dtype in (("half", torch.float16), ("eight", torch.int8)):
        model.save_pretrained(tmp_path / name, dtype=dtype)
    again = UNet.from_pretrained(tmp_path / "eight")
    size = sizes(tmp_path)
    assert size["eight"] < 0.75 * size["half"], "a tiny net has many names for few weights"
    for (name, x), y in zip(model.state_dict().items(), again.state_dict().values()):
        if x.ndim > 1:
            step = x.flatten(1).abs().amax(1) / 127
            assert ((y - x).flatten(1).abs().amax(1) <= 0.501 * step + 1e-9).all(), name
        else:
            assert torch.allclose(x, y, atol=1e-3)
    noise, tau = normal(2, 4, 8, 8), torch.tensor([100, 900])
    with torch.no_grad():
        y, y_again = model(noise, tau), again(noise, tau)
    assert float((y - y_again).square().mean() / y.square().mean()) < 1e-3
    again.save_pretrained(tmp_path / "twice", dtype=torch.int8)
    for x, y in zip(
        again.state_dict().values(), UNet.from_pretrained(tmp_path / "twice").state_dict().values()
    ):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-7), "saving again loses nothing more"


def test_scalars_and_integers_stay_exact(tmp_path):
    @dataclass(frozen=True)
    class Config:
        n: int = 1

    class Model(weights.Pretrained, nn.Module):
        config_class = Config

        def __init__(self, config=Config()):
            super().__init__()
            self.config, self.scalar = config, nn.Parameter(torch.tensor(0.1234567))
            self.register_buffer("count", torch.tensor([123457]))

    Model().save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    assert (
        torch.equal(again.scalar.detach(), torch.tensor(0.1234567)) and int(again.count) == 123457
    )


def test_the_numbers_of_a_config_survive(tmp_path):
    model = Autoencoder(AutoencoderConfig((16, 24), scale=0.12345678901, shift=-0.5))
    model.save_pretrained(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).config == model.config


def test_sha256_is_that_of_the_published_example(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert (
        weights.sha256(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# -- what does not fit -----------------------------------------------------------------------------


def test_weights_of_another_size_are_named_with_both_sizes(tmp_path):
    tiny_unet().save_pretrained(tmp_path)
    other = UNet(replace(UNET, channels=(32, 64)))
    with pytest.raises(
        ValueError, match=r"size: conv_in\.bias is \(16,\) there and \(32,\) here; use the --size"
    ):
        weights.load_into(
            other, weights.load_tensors(tmp_path / "model.safetensors"), str(tmp_path)
        )


@pytest.mark.parametrize(
    "wide, narrow, missing", [((4, 9), (4,), "the model"), ((4,), (4, 9), "the checkpoint")]
)
def test_weights_of_another_model_name_what_is_missing_and_where(wide, narrow, missing):
    with pytest.raises(
        ValueError, match=rf"another model: label_embed\.1\.weight is missing in {missing}"
    ):
        weights.load_into(
            UNet(replace(UNET, labels=narrow)), UNet(replace(UNET, labels=wide)).state_dict()
        )


def test_a_model_that_does_not_fit_is_left_as_it_was():
    model = tiny_unet()
    before = copies(model)
    with pytest.raises(ValueError):
        weights.load_into(model, UNet(replace(UNET, labels=(4,))).state_dict())
    assert same(copies(model), before)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-10], lambda data: b"not a tensor in sight", lambda data: b""],
    ids=["cut short", "another file", "empty"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, dict(a=normal(30)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"x\.safetensors is damaged or no safetensors file .* fetch or save it"
    ):
        weights.load_tensors(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*x\.safetensors; train them"):
        weights.load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no config\.json at .*nowhere"):
        UNet.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"width": 3, "depth": 4}', "UNetConfig does not know: depth, width"),
        ("{", "damaged"),
        ("[1]", "damaged"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json .*{message}"):
        UNet.from_pretrained(tmp_path)


# -- what cannot be saved --------------------------------------------------------------------------


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_save_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path, monkeypatch, broken
):
    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, dict(a=torch.ones(3)))
    monkeypatch.setattr(broken, full)
    with pytest.raises(
        OSError,
        match=r"x\.safetensors could not be written \(No space left on device\); "
        r"the old file is untouched\. Free some space",
    ):
        weights.save_tensors(path, dict(a=torch.zeros(3)))
    monkeypatch.undo()
    assert same(weights.load_tensors(path), dict(a=torch.ones(3))) and names(tmp_path) == [
        "x.safetensors"
    ]


FULL_DISK = """
import resource, sys, torch
from vldm_mini import weights
# no file of this process may exceed 4 kB: what a nearly full disk does
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    getattr(weights, sys.argv[1])(sys.argv[2], dict(a=torch.zeros(30000)))
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("save", ["save_tensors", "save_state"])
def test_a_disk_that_fills_up_while_saving_leaves_the_old_file_whole(tmp_path, save):
    pytest.importorskip("resource")
    path = tmp_path / "state"
    getattr(weights, save)(path, dict(a=torch.ones(3)))
    before = path.read_bytes()
    # in a process of its own: the limit would also hold for the file that pytest's output goes to
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, save, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "state could not be written (File too large); the old file is untouched" in done.stdout
    assert path.read_bytes() == before and names(tmp_path) == ["state"]


def test_an_interrupted_save_leaves_nothing_beside_the_old_file(tmp_path):
    weights.write_text(tmp_path / "x.txt", "old")
    with pytest.raises(KeyboardInterrupt):
        with weights.replacing(tmp_path / "x.txt") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt
    assert (tmp_path / "x.txt").read_text() == "old" and names(tmp_path) == ["x.txt"]


# -- shipped ---------------------------------------------------------------------------------------


def test_a_folder_with_a_config_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert weights.shipped(str(tmp_path)) == tmp_path


def test_weights_of_an_unknown_name_are_refused_by_name():
    with pytest.raises(
        FileNotFoundError, match="no weights called 'dragons': give the name of shipped ones, or"
    ):
        weights.shipped("dragons")


def test_without_an_address_the_message_says_where_the_weights_are(monkeypatch):
    monkeypatch.setattr(weights, "RELEASES", "")
    with pytest.raises(FileNotFoundError, match="clone it, or set VLDM_WEIGHTS_URL"):
        weights._fetch_weights("toys", {"toys/config.json": "0" * 64})


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder of weights behind a local web server, and an empty cache.

    Returns (folder, {file: sha256}).
    """
    pooch = pytest.importorskip("pooch")
    folder = tmp_path / "served"
    weights.save_tensors(folder / "toys" / "image" / "model.safetensors", dict(a=torch.ones(2)))
    weights.write_text(folder / "toys" / "config.json", json.dumps(dict(pixels=32)))
    weights.write_text(folder / "others" / "config.json", "{}")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(
        target=server.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True
    ).start()
    monkeypatch.setattr(weights, "RELEASES", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    yield folder, weights.list_shipped(folder)
    server.shutdown()
    server.server_close()


def test_shipped_weights_are_fetched_once_and_checked(served):
    folder, files = served
    assert sorted(files) == [
        "others/config.json",
        "toys/config.json",
        "toys/image/model.safetensors",
    ]
    got = weights._fetch_weights("toys", files)
    assert same(weights.load_tensors(got / "image" / "model.safetensors"), dict(a=torch.ones(2)))
    assert (
        json.loads((got / "config.json").read_text()) == dict(pixels=32)
        and not (got.parent / "others").exists()
    )
    (folder / "toys" / "config.json").unlink()
    assert weights._fetch_weights("toys", files) == got  # from the cache, no server needed


def test_the_list_of_shipped_weights_is_that_of_the_repository():
    data = Path(__file__).resolve().parents[1] / "data"
    found = weights.list_shipped(data / "checkpoints")
    assert json.loads((data / "checkpoints.json").read_text()) == found, (
        "weights changed: write json.dumps(weights.list_shipped('data/checkpoints'), indent=1) to "
        "data/checkpoints.json"
    )


def test_weights_with_another_sha256_are_refused_and_not_kept(served, tmp_path):
    _, files = served
    with pytest.raises(ValueError, match=r"toys/config\.json came with another sha256"):
        weights._fetch_weights("toys", dict(files, **{"toys/config.json": "0" * 64}))
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert "config.json" not in kept and not [name for name in kept if name.startswith("tmp")]


def test_weights_that_the_server_does_not_have_say_what_else_to_do(served):
    folder, files = served
    (folder / "toys" / "config.json").unlink()
    with pytest.raises(
        ConnectionError, match=r"toys/config\.json could not be fetched .* clone the repository"
    ):
        weights._fetch_weights("toys", files)
