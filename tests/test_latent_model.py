"""What all models on latents share: labels, noise, decoding, number formats, saving and loading."""
import json
import shutil
from dataclasses import asdict

import pytest
import torch

from tests.tiny import (
    AUTOENCODER,
    LABEL_NAMES,
    PIPELINE,
    UNET,
    normal,
    random_weights,
    same,
    shaken,
)
from vldm_mini import weights
from vldm_mini.autoencoder import VideoDecoder
from vldm_mini.diffusion import rng
from vldm_mini.latent_model import DECODED_AT_ONCE
from vldm_mini.pipeline import VideoLDM
from vldm_mini.temporal import insert
from vldm_mini.upsampler import SidewaysConv, Upsampler, UpsamplerConfig

NAMES = ("autoencoder", "image", "temporal", "prediction", "interpolation", "decoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("weights") / "a")


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return random_weights(tmp_path_factory.mktemp("whole") / "b", whole=True)


@pytest.fixture(scope="module")
def model(whole_folder):
    return VideoLDM.from_pretrained(str(whole_folder), "cpu")


@pytest.fixture
def bend(model):
    return model.labels(action="bend", person=2)


# -- folders --------------------------------------------------------------------------------------

def test_a_folder_of_weights_is_loaded_as_it_was_saved(model):
    assert model.theta.config == UNET and model.autoencoder.config == AUTOENCODER
    assert len(model.layers.mixes) == 12
    loaded, saved = asdict(model.config), asdict(PIPELINE)
    names = loaded.pop("label_names")
    saved.pop("label_names")
    assert loaded == saved
    assert [(name, tuple(classes)) for name, classes in names] == list(LABEL_NAMES)


@pytest.mark.parametrize("part", ["autoencoder", "image", "temporal"])
def test_a_folder_without_one_of_its_stages_says_which(folder, tmp_path, part):
    shutil.copytree(folder, tmp_path / "less", ignore=shutil.ignore_patterns(part))
    with pytest.raises(FileNotFoundError, match=f"less.{part}"):
        VideoLDM.from_pretrained(str(tmp_path / "less"))


def test_unknown_weights_are_refused_by_name():
    with pytest.raises(FileNotFoundError, match="no weights called 'nowhere'"):
        VideoLDM.from_pretrained("nowhere")


def test_a_whole_model_is_saved_and_loaded_bit_for_bit(model, bend, tmp_path):
    with torch.no_grad():
        for part in model.components.values():      # not on the grid of float16 any more
            for p in part.parameters():
                p.mul_(1.0001)
    model.save_pretrained(tmp_path / "b")
    again = VideoLDM.from_pretrained(tmp_path / "b", "cpu")
    assert tuple(again.components) == tuple(model.components) == NAMES
    for name, part in model.components.items():
        assert same(part.state_dict(), again.components[name].state_dict()), name
    assert torch.equal(again.generate(bend, seed=1), model.generate(bend, seed=1))
    first = normal(1, 2, 4, 4, 4)
    a, b = (torch.cat(list(m.rollout(bend, 6, first=first)), 1) for m in (model, again))
    assert torch.equal(a, b)
    z = [m.interpolate(first, bend, 1, steps=2) for m in (model, again)]
    assert torch.equal(*z)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_weights_are_stored_in_the_format_that_is_asked_for(model, tmp_path, dtype):
    model.save_pretrained(tmp_path, dtype=dtype)
    plain = VideoLDM.from_pretrained(tmp_path, "cpu")
    for name, part in model.components.items():
        stored = weights.load_tensors(tmp_path / name / weights.WEIGHTS)
        expected = weights.packed(part.state_dict(), dtype)
        assert same(weights.unpacked(dict(expected)), stored)
        assert not same(part.state_dict(), plain.components[name].state_dict())


def test_upsamplers_boxes_and_cards_are_saved_along_and_states_of_training_are_not(
        whole_folder, tmp_path):
    shutil.copytree(whole_folder, tmp_path / "a")
    theta = shaken(Upsampler(UpsamplerConfig(channels=(8, 16), emb_channels=16)), 0.02)
    theta.save_pretrained(tmp_path / "a" / "upsampler" / "image")
    layers = insert(theta, conv=SidewaysConv, attention=None)
    layers.save_pretrained(tmp_path / "a" / "upsampler" / "temporal")
    (tmp_path / "a" / "upsampler" / "image" / "state.safetensors").write_bytes(b"a run's own")
    (tmp_path / "a" / "image" / "README.md").write_text("licence of theta")
    model = VideoLDM.from_pretrained(tmp_path / "a", "cpu")
    model.save_pretrained(tmp_path / "b")
    model.save_pretrained(tmp_path / "a")                        # onto itself
    saved = tmp_path / "b"
    assert not (saved / "upsampler" / "image" / "state.safetensors").exists()
    assert (saved / "image" / "README.md").read_text() == "licence of theta"
    assert not (saved / "temporal" / "README.md").exists()
    stored = weights.load_tensors(tmp_path / "a" / "upsampler" / "image" / weights.WEIGHTS)
    up = VideoLDM.from_pretrained(saved, "cpu").upsampler()
    assert all(torch.equal(p, stored[name].float()) for name, p in up.theta.state_dict().items())


# -- device and number format ---------------------------------------------------------------------

def test_to_moves_every_part_and_sampling_stays_in_float32(whole_folder, bend):
    model = VideoLDM.from_pretrained(whole_folder, "cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.device == torch.device("cpu")
    for part in model.components.values():
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    z = model.latents(bend, seed=1)
    assert z.dtype == torch.float32
    assert model.to(dtype=torch.float32) is model and model.dtype == torch.float32
    for part in model.components.values():
        assert {p.dtype for p in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype, off", [(torch.float64, 1e-3), (torch.bfloat16, 0.3)])
def test_all_stages_run_in_another_number_format(whole_folder, bend, dtype, off):
    model, plain = (VideoLDM.from_pretrained(whole_folder, "cpu", dtype=d) for d in (dtype, None))
    assert plain.dtype == torch.float32
    first = normal(1, 1, 4, 4, 4)

    def all_of(m):
        video = m.generate(bend, seed=1, eta=0.0, temporal_guidance=1.0)
        long = torch.cat(list(m.rollout(bend, 6, first=first)), dim=1)
        return video, long, m.interpolate(long[:, :3], bend, 0, steps=2)
    for a, b in zip(all_of(model), all_of(plain)):
        assert a.dtype == torch.float32 and a.isfinite().all()
        assert float((a - b).square().mean().sqrt()) < off * float(b.std())


# -- labels ---------------------------------------------------------------------------------------

def test_labels_are_names_or_numbers_and_the_null_label_if_left_out(model):
    assert model.labels(action="bend", person=2).tolist() == [[2, 2]]
    assert model.labels(person="person 7").tolist() == [[4, 7]]
    assert model.labels(action="wave", person=0).tolist() == [[0, 0]]
    assert model.labels().tolist() == model.theta.null_labels(1).tolist() == [[4, 9]]


@pytest.mark.parametrize("values, message", [
    (dict(action="fly"), "unknown action 'fly'; choose from: wave, jump, bend, sit"),
    (dict(person=12), r"person must lie in 0\.\.8, got 12"),
    (dict(action=-1), r"action must lie in 0\.\.3, got -1"),
    (dict(colour="red"), "unknown label 'colour'; the labels of this model: action, person")])
def test_an_unknown_label_is_refused_with_those_that_are_known(model, values, message):
    with pytest.raises(ValueError, match=message):
        model.labels(**values)


# -- noise ----------------------------------------------------------------------------------------

def test_the_noise_of_a_clip_depends_on_the_seed_and_its_number_alone(model):
    noise = model.noise(3, 4, seed=5)
    assert noise.shape == (3, 4, 4, 4, 4)
    for i in range(3):
        assert torch.equal(noise[i], torch.randn(4, 4, 4, 4, generator=rng(5, 0, i)))
    assert model.noise(1, 2, size=(16, 24)).shape == (1, 2, 4, 4, 6)


# -- decoding -------------------------------------------------------------------------------------

@torch.no_grad()
def test_decoding_in_parts_gives_every_frame_at_its_own_position(folder):
    model = VideoLDM.from_pretrained(folder, "cpu")
    z = normal(3, 13, 4, 4, 4)                             # 39 frames, more than at once
    parts = list(model.decode_parts(z))
    assert max(len(z) * part.shape[1] for part in parts) <= DECODED_AT_ONCE and len(parts) == 2
    video = model.decode(z)
    assert torch.equal(video, torch.cat(parts, dim=1)) and video.shape == (3, 13, 3, 16, 16)
    for clip, frame in ((0, 0), (1, 10), (2, 12)):
        expected = model.autoencoder.decode(z[clip, frame:frame + 1])[0].clamp(-1, 1)
        assert torch.allclose(video[clip, frame], expected, atol=1e-5)


@torch.no_grad()
def test_the_temporal_decoder_sees_twelve_to_sixteen_frames_at_a_time(model, monkeypatch):
    seen, plain = [], VideoDecoder.forward

    def keep(self, z):
        seen.append(z.shape[1])
        return plain(self, z)
    monkeypatch.setattr(VideoDecoder, "forward", keep)
    video = model.decode(normal(1, 41, 4, 4, 4))
    assert video.shape[1] == 41 and seen == [12, 16, 16, 16, 13, 5]
    assert video.abs().max() <= 1


def test_a_config_of_another_version_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    values = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(values | {"words": []}))
    with pytest.raises(ValueError, match="words"):
        VideoLDM.from_pretrained(tmp_path / "old")
