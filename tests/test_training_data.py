"""What stages train on: splits, packed clips, windows on the device, vocabulary, cached latents."""
from dataclasses import replace

import pytest
import torch

from tests.tiny import AUTOENCODER, made_folder, normal
from vldm_mini import weights
from vldm_mini.autoencoder import Autoencoder
from vldm_mini.datasets import driving, video
from vldm_mini.datasets.driving import DrivingClip
from vldm_mini.training import BatchRandom, data
from vldm_mini.training.data import (
    FrameStore,
    Latents,
    cached_latents,
    fingerprint,
    load_clips,
    pack,
    to_float,
    unpack,
    vocabulary,
)
from vldm_mini.training.sizes import DRIVING, SIZES, size_of
from vldm_mini.training.stages import Request
from vldm_mini.training.stages.context import interpolation_clips
from vldm_mini.training.stages.decoder import DECODER_FPS, decoder_clips
from vldm_mini.training.stages.upsampler import large_clips

XS, CPU = SIZES["xs"], torch.device("cpu")


def clip(name, frames=8, size=32, seed=0, **more):
    pixels = torch.randint(256, (frames, size, size, 3), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(seed))
    return video.VideoClip(name, pixels, **more)


# -- splits ---------------------------------------------------------------------------------------

def test_held_out_driving_clips_are_scenes_of_a_split_of_their_own():
    training, held_out = load_clips("driving", DRIVING["xs"])
    assert [one.seed for one in training] == driving.seeds("train", 12)
    assert [one.seed for one in held_out] == driving.seeds("held_out", 16)
    assert not {one.seed for one in training} & {one.seed for one in held_out}
    assert {one.height for one in (*training, *held_out)} == {32}


def test_held_out_clips_of_a_folder_are_not_trained_on(tmp_path):
    training, held_out = load_clips(str(made_folder(tmp_path, clips=8)), XS)
    names = [{one.name for one in part} for part in (training, held_out)]
    assert len(names[0] | names[1]) == 16 and not names[0] & names[1] and names[1]


def test_clips_of_every_stage_of_driving_come_from_the_split_of_training():
    dial = DRIVING["xs"]
    seeds = driving.seeds("train", dial.clips)
    between = interpolation_clips(Request("driving", "xs"))
    assert [one.seed for one in between[::2]] == [one.seed for one in between[1::2]] == seeds
    assert {one.fps for one in between[::2]} == {7.5} and {one.fps for one in between[1::2]} == {30}
    decoded = decoder_clips("driving", dial)
    assert [one.seed for one in decoded] == seeds
    assert [one.fps for one in decoded] == [DECODER_FPS[i % 4] for i in range(12)]
    assert sorted(DECODER_FPS) == [1.875, 7.5, 30, 30]
    large = [large_clips("driving", dial.upsampler, split) for split in ("train", "held_out")]
    for split, clips in zip(("train", "held_out"), large):
        assert [one.seed for one in clips] == driving.seeds(split, dial.upsampler.clips)


# -- packed clips ---------------------------------------------------------------------------------

@pytest.fixture
def clips():
    """Two clips, the mirror image of the first, and a short one."""
    first = clip("a/one", 9, seed=1, labels=dict(action=1), words=dict(action="b"), fps=12.5,
                 group="one", caption="a caption")
    mirrored = replace(first, name="a/one-mirrored", frames=first.frames.flip(2), mirror=True)
    return [first, clip("a/two", 8, seed=2, labels=dict(action=0), words=dict(action="a")),
            mirrored, clip("a/short", 3, seed=3, labels=dict(action=0), words=dict(action="a"))]


@pytest.fixture
def packed(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(video, "load", lambda name, size: clips)
    path = tmp_path / "set.clips.safetensors"
    size = pack("set", XS, path)
    assert size == path.stat().st_size
    return str(path)


def test_packed_clips_are_read_as_they_were_and_mirror_images_are_not_stored(packed, clips):
    found = unpack(packed, XS)
    for one, other in zip(clips, found, strict=True):
        assert torch.equal(one.frames, other.frames)
        for name in ("name", "labels", "words", "fps", "group", "caption", "mirror"):
            assert getattr(one, name) == getattr(other, name)
    assert fingerprint(found) == fingerprint(clips), "a run may be resumed on either"
    assert len(weights.load_tensors(packed)["frames"]) == 9 + 8 + 3


def test_short_packed_clips_are_left_out_with_a_warning(packed):
    with pytest.warns(UserWarning, match=r"1 of 4 clips are shorter than 7 .*: a/short \(3\)"):
        training, held_out = load_clips(packed, XS)
    names = sorted(one.name for one in (*training, *held_out))
    assert names == ["a/one", "a/one-mirrored", "a/two"]


def test_a_packed_set_of_another_height_and_bad_names_are_refused(packed):
    with pytest.raises(ValueError, match="32 pixels high, and size s needs 64: pack it again"):
        unpack(packed, SIZES["s"])
    with pytest.raises(ValueError, match=r"ends in \.clips\.safetensors"):
        pack("set", XS, "set.zip")
    with pytest.raises(ValueError, match="driving needs no packing"):
        pack("driving", XS, packed)


# -- fingerprints and vocabulary ------------------------------------------------------------------

def test_the_fingerprint_changes_with_content_order_labels_and_their_meanings(clips):
    pixel = clips[1].frames.clone()
    pixel[0, 0, 0, 0] ^= 1
    others = [clips[::-1], clips[:3], [clips[0], replace(clips[1], frames=pixel), *clips[2:]],
              [replace(clips[0], labels=dict(action=2)), *clips[1:]],
              [replace(clips[0], words=dict(action="z")), *clips[1:]]]
    found = [fingerprint(some) for some in (clips, *others)]
    assert len(set(found)) == 6 and fingerprint(list(clips)) == found[0]


def test_the_fingerprint_of_driving_changes_with_its_scenes_and_with_the_renderer(monkeypatch):
    few = [DrivingClip(seed, 5, 16) for seed in (1, 2)]
    before = fingerprint(few)
    assert fingerprint([DrivingClip(seed, 5, 16) for seed in (1, 2)]) == before
    assert fingerprint(few[::-1]) != before != fingerprint(few[:1])
    render = type(few[0].scene).render
    monkeypatch.setattr(type(few[0].scene), "render",
                        lambda self, *args: render(self, *args) // 2)
    assert fingerprint(few) != before


def test_the_vocabulary_says_what_each_class_means_and_numbers_those_never_seen():
    some = [clip("a", labels=dict(action=2, person=0), words=dict(action="sit")),
            clip("b", labels=dict(action=0, person=1), words=dict(action="bend"))]
    assert vocabulary(some) == (("action", ("bend", "1", "sit")), ("person", ("0", "1")))
    assert Latents([], torch.zeros(0, 2), vocabulary(some), 8.0).classes == (3, 2)


# -- windows on the device ------------------------------------------------------------------------

def test_windows_cover_all_starts_of_their_clip_in_their_stride():
    frames = [torch.arange(5), 100 + torch.arange(7)]
    store = FrameStore(frames, CPU, 3, 2)
    windows = store.windows(BatchRandom(0, 0, 600, CPU))
    found = store.at(windows)
    starts = {(int(number), int(row[0])) for number, row in zip(windows.clip, found)}
    assert starts == {(0, 0), (1, 100), (1, 101), (1, 102)}
    assert (found.diff(dim=1) == 2).all() and torch.equal(windows.clip, (found[:, 0] >= 100).long())


def test_clips_too_short_for_a_window_are_named_with_their_lengths():
    message = r"4 frames 2 apart take 7 frames of video; these clips are shorter: b \(6\), c \(1\)"
    with pytest.raises(ValueError, match=message):
        FrameStore([torch.arange(n) for n in (7, 6, 1)], CPU, 4, 2, ["a", "b", "c"])


def test_labels_of_all_frames_in_a_row():
    some = [normal(n, 4, 2, 2) for n in (2, 3)]
    of_clips = Latents(some, torch.tensor([[1, 5], [2, 6]]), (), 8.0)
    assert of_clips.frame_labels().tolist() == [[1, 5]] * 2 + [[2, 6]] * 3
    same_length = [normal(2, 4, 2, 2)] * 2
    of_frames = Latents(same_length, torch.arange(8).view(2, 2, 2), (), 8.0)
    assert of_frames.frame_labels().tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_frames_become_numbers_from_minus_1_to_1():
    frames = torch.tensor([0, 255, 127], dtype=torch.uint8).view(1, 1, 1, 3)
    assert to_float(frames).flatten().tolist() == pytest.approx([-1, 1, -1 / 255], abs=1e-6)
    assert to_float(torch.zeros(2, 5, 4, 6, 3)).shape == (2, 5, 3, 4, 6)


# -- cached latents -------------------------------------------------------------------------------

@torch.no_grad()
def test_latents_are_the_encoders_and_are_cached_by_encoder_and_content(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Autoencoder(AUTOENCODER)
    model.save_pretrained(tmp_path / "autoencoder")
    model = Autoencoder.from_pretrained(tmp_path / "autoencoder")
    some = [clip(f"clip {i}", 70, seed=i, labels=dict(action=i)) for i in range(2)]
    found = cached_latents("folder", tmp_path, some)
    for latents, one in zip(found.clips, some):
        assert latents.dtype == torch.float16 and latents.shape == (70, 4, 8, 8)
        assert torch.allclose(latents.float(), model.encode(to_float(one.frames)), atol=5e-3)
    assert found.labels.tolist() == [[0], [1]] and found.names == ["clip 0", "clip 1"]
    assert found.fingerprint == fingerprint(some)
    encode = data.encode_clips
    calls = []
    monkeypatch.setattr(data, "encode_clips",
                        lambda *args: calls.append(1) or encode(*args))
    cached_latents("folder", tmp_path, some)
    assert calls == [], "encoded once"
    cached_latents("folder", tmp_path, [replace(some[0], frames=some[1].frames), some[1]])
    assert len(calls) == 1, "other content under the same names"
    Autoencoder(AUTOENCODER).save_pretrained(tmp_path / "autoencoder")
    cached_latents("folder", tmp_path, some)
    assert len(calls) == 2, "another encoder"


# -- the dial -------------------------------------------------------------------------------------

def test_driving_is_twice_as_wide_as_high_and_its_key_frames_follow_one_another():
    for name, size in SIZES.items():
        of_driving = size_of(name, "driving")
        assert (of_driving.width, of_driving.stride) == (2 * size.pixels, 1)
        assert size_of(name, "folder") == size and size.width == size.pixels
        assert of_driving.stages.keys() == size.stages.keys()
    with pytest.raises(ValueError, match="unknown size 'l'; choose one of xs, s, m, paper"):
        size_of("l")
    with pytest.raises(ValueError, match="there is no stage 'sound' for this data; it has auto"):
        XS.settings("sound")
