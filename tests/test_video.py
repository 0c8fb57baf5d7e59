"""What `vldm_mini.datasets.video` promises: files checked, folders understood, no leaky splits.

How files become frames is in test_video_reading.py.
"""

import errno
import hashlib
import http.server
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vldm_mini.datasets import video
from vldm_mini.datasets.video import Dataset, File, VideoClip, fetching

from .video_files import Image, cut_to, noise, ramp, write, write_frames

pooch = pytest.importorskip("pooch")

REAL = Path(os.environ["VLDM_DATA"]) if os.environ.get("VLDM_DATA") else None
needs_real_clips = pytest.mark.skipif(REAL is None, reason="VLDM_DATA names no real clips")


def clip(name="clip", t=20, group="", words=None, **labels):
    """A clip of 4x4 pixels whose frame k has the value k."""
    frames = torch.arange(t, dtype=torch.uint8)[:, None, None, None].repeat(1, 4, 4, 3)
    return VideoClip(name, frames, labels, group=group, words=words or {})


def entry(files, base="http://127.0.0.1:9", name="set"):
    """A Dataset of given files: path -> bytes."""
    listed = []
    for path, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        listed.append(File(path, sha256, len(data), f"{base}/{path}"))
    return Dataset(name, "written for a test", 25, "CC0", "none", ("nobody",), "http://127.0.0.1",
                   tuple(listed))


def put(root, files):
    """Write files, path -> bytes, below root."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


FILES = {"set/a.bin": b"a" * 1000, "set/deep/b.bin": b"b" * 2000}


@pytest.fixture
def server(tmp_path):
    """A local server of FILES; server.requests lists the requests that it received."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            server.requests.append(self.path)

    put(tmp_path / "served", FILES)
    handler = partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.requests, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def catalogued(monkeypatch):
    """Put an entry into the catalogue for one test, with VLDM_DATA unset."""
    monkeypatch.delenv("VLDM_DATA", raising=False)

    def use(dataset):
        monkeypatch.setattr(fetching, "catalogue", lambda: {dataset.name: dataset})
        return dataset

    return use


def whole_files(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


# --------------------------------------------------------------------- the catalogue and fetching


def test_the_catalogue_says_of_every_set_what_it_is_and_where_its_bytes_are():
    sets = video.catalogue()
    assert {name: len(sets[name].files) for name in sets} == {"actions": 72, "signs": 20, "road": 2}
    for name, dataset in sets.items():
        assert dataset.licence and dataset.terms and dataset.cite
        assert dataset.home.startswith("https://")
        for file in dataset.files:
            assert file.path.startswith(name + "/") and file.bytes > 0
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert re.match(r"https://.+/[0-9a-f]{40}/", file.url), "a url at a pinned commit"


@pytest.mark.skipif(REAL is None or not (REAL / "manifest.tsv").is_file(), reason="no manifest")
def test_the_catalogue_is_the_manifest():
    rows = [line.split("\t") for line in (REAL / "manifest.tsv").read_text().splitlines()[1:]]
    files = [file for dataset in video.catalogue().values() for file in dataset.files]
    assert [[file.path, file.sha256, str(file.bytes), file.url] for file in files] == rows


def test_the_catalogue_is_found_where_the_package_is_installed_without_its_repository(
    tmp_path, monkeypatch
):
    package, module = tmp_path / "site" / "vldm_mini", "datasets/video/fetching.py"
    source = Path(fetching.__file__).parents[3] / "data" / "catalogue.json"
    put(package, {module: Path(fetching.__file__).read_bytes(),
                  "data/catalogue.json": source.read_bytes()})
    spec = importlib.util.spec_from_file_location("installed_fetching", package / module)
    installed = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, installed)
    spec.loader.exec_module(installed)
    assert list(installed.catalogue()) == ["actions", "signs", "road"]
    (package / "data/catalogue.json").unlink()
    installed.catalogue.cache_clear()
    with pytest.raises(FileNotFoundError, match="install vldm_mini anew"):
        installed.catalogue()


def test_files_are_taken_from_the_folder_that_vldm_data_names(tmp_path, monkeypatch, catalogued):
    catalogued(entry(FILES))
    monkeypatch.setenv("VLDM_DATA", str(put(tmp_path, FILES)))
    assert video.fetch("set") == tmp_path / "set"


def test_each_file_is_checked_once_per_process_and_again_when_it_changes(
    tmp_path, monkeypatch, catalogued
):
    catalogued(entry(FILES))
    put(tmp_path, FILES)
    reads = []

    def counted(stream, kind):
        reads.append(stream.name)
        return hashlib.new(kind, stream.read())

    monkeypatch.setattr(fetching.hashlib, "file_digest", counted)
    video.fetch("set", root=tmp_path)
    video.fetch("set", root=tmp_path)
    assert len(reads) == 2
    (tmp_path / "set/a.bin").write_bytes(b"x")
    message = r"a.bin differs .*sha256.* replace it from http://127.0.0.1:9/set/a.bin"
    with pytest.raises(ValueError, match=message):
        video.fetch("set", root=tmp_path)


def test_a_data_folder_that_is_not_there_or_lacks_files_says_what_to_do(
    tmp_path, monkeypatch, catalogued
):
    catalogued(entry(FILES))
    monkeypatch.setenv("VLDM_DATA", str(tmp_path / "nowhere"))
    message = "nowhere does not exist: correct VLDM_DATA.*unset VLDM_DATA"
    with pytest.raises(FileNotFoundError, match=message):
        video.fetch("set")
    put(tmp_path, {"set/a.bin": FILES["set/a.bin"]})
    message = r"lacks 1 of 2 files \(set/deep/b.bin\).*unset VLDM_DATA"
    with pytest.raises(FileNotFoundError, match=message):
        video.fetch("set", root=tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown data set 'action': known are actions, signs, ro"):
        video.fetch("action")
    message = "'action' is neither a known data set .actions, signs, road."
    with pytest.raises(FileNotFoundError, match=message):
        video.load("action")


def test_files_are_downloaded_once_and_with_a_progress_bar(tmp_path, server, catalogued, capsys):
    catalogued(entry(FILES, server.url))
    cache = tmp_path / "cache"
    assert video.fetch("set", cache=cache) == cache / "set"
    assert {path: (cache / path).read_bytes() for path in whole_files(cache)} == FILES
    assert "set: 100%" in capsys.readouterr().err
    (cache / "set/a.bin").write_bytes(b"damaged later")
    video.fetch("set", cache=cache)
    video.fetch("set", cache=cache)
    assert (cache / "set/a.bin").read_bytes() == FILES["set/a.bin"]
    assert len(server.requests) == 3, "two files, and the damaged one again"


def test_a_download_with_another_checksum_is_not_kept(tmp_path, server, catalogued):
    dataset = entry(FILES, server.url)
    wrong = replace(dataset.files[1], sha256="0" * 64)
    catalogued(replace(dataset, files=(dataset.files[0], wrong)))
    message = r"b.bin gave other bytes than expected \(sha256\), nothing is kept"
    with pytest.raises(ValueError, match=message):
        video.fetch("set", cache=tmp_path / "cache")
    assert whole_files(tmp_path / "cache") == ["set/a.bin"], "the whole file stays"


def test_no_network_and_a_missing_page_say_so(tmp_path, server, catalogued):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    catalogued(entry(FILES, dead))
    message = "cannot download .*a.bin .no connection.: check the network.*VLDM_DATA"
    with pytest.raises(ConnectionError, match=message):
        video.fetch("set", cache=tmp_path / "cache")
    catalogued(entry({"set/gone.bin": b"gone"}, server.url))
    with pytest.raises(ConnectionError, match="the server answers 404"):
        video.fetch("set", cache=tmp_path / "cache")
    assert whole_files(tmp_path / "cache") == []


def test_a_full_disk_while_downloading_says_so(tmp_path, server, catalogued, monkeypatch):
    catalogued(entry(FILES, server.url))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch, "retrieve", full)
    message = "cannot save .*a.bin .No space left on device.: free some space"
    with pytest.raises(OSError, match=message):
        video.fetch("set", cache=tmp_path / "cache")


# ---------------------------------------------------------------------------------------- folders


def test_subfolders_are_labels_and_sidecars_are_captions(tmp_path):
    write(tmp_path / "walk/a.mkv", ramp(), fps=25)
    write(tmp_path / "walk/b.mkv", ramp(), fps=25)
    write_frames(tmp_path / "jump" / "c", ramp())
    write(tmp_path / "jump/.hidden.mkv", ramp())
    (tmp_path / "walk/a.txt").write_text("a man walks\n")
    (tmp_path / "jump/c.txt").write_text("a man jumps")
    (tmp_path / "notes.pdf").write_text("no video")
    lines = [{"file_name": "walk/a.mkv", "text": "the sidecar wins"},
             {"file_name": "./walk/b.mkv", "text": "b", "group": "g"}]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metadata.jsonl").write_text(text + "\n\n")
    clips = {clip.name: clip for clip in video.load(tmp_path, size=16)}
    assert {name: clip.labels for name, clip in clips.items()} == {
        "jump/c": {"class": 0}, "walk/a.mkv": {"class": 1}, "walk/b.mkv": {"class": 1}}
    captions = [clips[name].caption for name in sorted(clips)]
    assert captions == ["a man jumps", "a man walks", "b"]
    assert clips["walk/b.mkv"].words == {"class": "walk"} and clips["walk/b.mkv"].group == "g"
    assert all(clip.frames.shape == (6, 16, 16, 3) for clip in clips.values())


def test_a_folder_without_subfolders_has_no_labels(tmp_path):
    write(tmp_path / "a.mkv", ramp())
    Image.fromarray(ramp()[0]).save(tmp_path / "a.jpg")              # a thumbnail is no clip
    [clip] = video.load(str(tmp_path))
    assert clip.labels == {} and clip.name == "a.mkv" and clip.frames.shape == (6, 64, 64, 3)


def test_a_folder_of_frames_given_itself_is_one_clip(tmp_path):
    [clip] = video.load(write_frames(tmp_path / "one", ramp()), size=None)
    assert clip.name == "one" and len(clip.frames) == 6


def test_the_summary_counts_clips_frames_and_labels(tmp_path):
    write(tmp_path / "walk/a.mkv", ramp())
    write(tmp_path / "jump/b.mkv", ramp(3))
    text = video.summary(tmp_path)
    assert "2 clips, 9 frames, 3 to 6 a clip" in text and "class: jump (1), walk (1)" in text


def test_short_clips_are_all_named_by_one_warning_and_left_out(tmp_path):
    write(tmp_path / "long.mkv", ramp(6))
    write(tmp_path / "short.mkv", ramp(3))
    write(tmp_path / "shorter.mkv", ramp(2))
    message = r"2 of 3 clips are shorter than 5 frames .* short.mkv \(3\), shorter.mkv \(2\)"
    with pytest.warns(UserWarning, match=message) as caught:
        assert [clip.name for clip in video.load(tmp_path, min_frames=5)] == ["long.mkv"]
    assert len(caught) == 1
    with pytest.raises(ValueError, match="has 7 frames, the longest has 6: take fewer frames or"):
        video.load(tmp_path, min_frames=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(video.load(tmp_path, min_frames=2)) == 3


def test_what_is_too_short_is_counted_in_frames_of_the_target_rate(tmp_path):
    write(tmp_path / "a.mkv", ramp(12), fps=30)
    write(tmp_path / "b.mkv", ramp(9), fps=30)
    with pytest.warns(UserWarning, match=r"1 of 2 clips .* b.mkv \(3\)"):
        [clip] = video.load(tmp_path, fps=10, min_frames=4)
    assert clip.name == "a.mkv" and len(clip.frames) == 4


def test_a_class_keeps_its_number_when_its_clips_are_left_out(tmp_path):
    write(tmp_path / "jump/a.mkv", ramp(2))
    write(tmp_path / "walk/b.mkv", ramp(6))
    with pytest.warns(UserWarning, match="left out"):
        [clip] = video.load(tmp_path, min_frames=5)
    assert clip.labels == {"class": 1} and clip.words == {"class": "walk"}


# -------------------------------------------------------------------------------------- bad input


def bad(tmp_path, kind):
    """A path of that name with something wrong."""
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    elif kind in ("text.mp4", "letter.doc"):
        path.write_text("this is no video\n" * 100)
    elif kind == "nothing.mp4":
        path.touch()
    elif kind == "half.mp4":                             # its index was at the end
        cut_to(write(path, noise(10)), 0.5)
    elif kind == "sizes":
        write_frames(path, ramp())
        Image.fromarray(ramp(1, 10, 10)[0]).save(path / "frame3.png")
    elif kind == "torn":
        cut_to(write_frames(path, ramp()) / "frame2.png", 0.5)
    return path


@pytest.mark.parametrize("kind, message", [
    ("empty", "no videos in .*empty: put .mp4"),
    ("missing.mp4", "neither a known data set .* nor a folder of videos: check"),
    ("text.mp4", "text.mp4 cannot be read as a video .*: it is damaged or no video; replace or"),
    ("nothing.mp4", "nothing.mp4 cannot be read as a video"),
    ("half.mp4", "half.mp4 cannot be read as a video"),
    ("letter.doc", "letter.doc is no video by its name: videos end in .mp4"),
    ("sizes", "differ in size, frame3.png is not 24x32 as most are: make them one size"),
    ("torn", "frame2.png cannot be read as a picture: it is damaged or none; replace or delete it"),
])
def test_bad_input_ends_in_one_sentence_that_says_what_to_do(tmp_path, kind, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        video.load(bad(tmp_path, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", [
    ("not json", "metadata.jsonl, line 1 is not understood"),
    ('{"text": "no name"}', "metadata.jsonl, line 1 is not understood"),
    ('{"file_name": "b.mkv", "text": "no such clip"}', "names 'b.mkv', and no such clip is there"),
])
def test_captions_that_fit_no_clip_are_refused(tmp_path, text, message):
    write(tmp_path / "a.mkv", ramp())
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        video.load(tmp_path)


def test_clips_with_and_without_a_label_are_not_mixed(tmp_path):
    write(tmp_path / "a.mkv", ramp())
    write(tmp_path / "walk/b.mkv", ramp())
    message = "a.mkv lies in .* itself .* move every clip into a subfolder, or none"
    with pytest.raises(ValueError, match=message):
        video.load(tmp_path)


@pytest.mark.parametrize("wrong, message", [
    ({"size": 0}, "size is 0: give one number"),
    ({"size": (8, 8, 8)}, "size is .8, 8, 8.: give one number"),
    ({"stride": 0}, "stride is 0: take 1"),
    ({"fps": 0}, "fps is 0: give frames per second"),
    ({"fps": float("nan")}, "fps is nan: give frames per second"),
])
def test_sizes_strides_and_rates_that_make_no_sense_are_refused(tmp_path, wrong, message):
    path = write(tmp_path / "a.mkv", ramp())
    with pytest.raises(ValueError, match=message):
        video.load(tmp_path, **wrong)
    with pytest.raises(ValueError, match=message):
        video.read_video(path, **wrong)


# ------------------------------------------------------------------------------------ fingerprint


def test_the_fingerprint_is_that_of_the_content():
    clips = [clip("a", words={"class": "walk"}, **{"class": 0}), clip("b", t=30)]
    known = video.fingerprint(clips)
    assert re.fullmatch("[0-9a-f]{64}", known)
    copies = [replace(one, frames=one.frames.clone()) for one in clips]
    assert video.fingerprint(copies) == known == video.fingerprint(tuple(clips))
    strided = replace(clips[0], frames=clips[0].frames.repeat_interleave(2, 0)[::2])
    assert video.fingerprint([strided, clips[1]]) == known, "how frames lie in memory is no matter"


def test_the_fingerprint_is_the_same_in_every_process():
    """A run that is resumed compares it with the one that it stored."""
    one = clip("a", words={"class": "walk"}, **{"class": 0})
    assert video.fingerprint([one]) == FINGERPRINT


FINGERPRINT = "cbdc60d3fafdd9193d80aa1b2df61afc3cda8a77ab847e03eadbf889e905a92d"


def changed_pixel(one):
    frames = one.frames.clone()
    frames[-1, -1, -1, -1] += 1
    return replace(one, frames=frames)


@pytest.mark.parametrize("change", [
    changed_pixel,
    lambda one: replace(one, frames=one.frames.reshape(20, 2, 8, 3)),
    lambda one: replace(one, frames=one.frames[:-1]),
    lambda one: replace(one, name="c"),
    lambda one: replace(one, labels={"class": 1}),
    lambda one: replace(one, words={"class": "run"}),
    lambda one: replace(one, fps=12.0),
    lambda one: replace(one, caption="someone walks"),
    lambda one: replace(one, group="g"),
])
def test_the_fingerprint_changes_with_everything_that_training_can_see(change):
    one = clip("a", words={"class": "walk"}, **{"class": 0})
    other = clip("b", words={"class": "walk"}, **{"class": 0})
    assert video.fingerprint([change(one), other]) != video.fingerprint([one, other])


def test_the_fingerprint_changes_with_an_added_clip_and_with_the_order():
    one, other = clip("a"), clip("b")
    found = [video.fingerprint(clips) for clips in ([one], [one, other], [other, one], [])]
    assert len(set(found)) == 4


def test_the_fingerprint_of_a_folder_knows_other_content_and_a_new_class(tmp_path):
    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        write(tmp_path / folder / "walk/a.mkv", noise(4, seed=seed))
    prints = {name: video.fingerprint(video.load(tmp_path / name, size=16))
              for name in ("one", "same", "other")}
    assert prints["one"] == prints["same"] != prints["other"], "file names agree, content does not"
    write(tmp_path / "one/jump/b.mkv", noise(4))
    clips = video.load(tmp_path / "one", size=16)
    assert video.fingerprint(clips) != prints["one"]
    [walking] = [clip for clip in clips if clip.words["class"] == "walk"]
    assert walking.labels == {"class": 1}
    assert video.fingerprint([walking]) != prints["one"], "`walk` has another number"


# ---------------------------------------------------------------------------------------- windows


def test_a_window_is_its_frames_and_may_end_on_the_last_one():
    frames = clip(t=22).frames
    assert video.span(8, 3) == 22
    first = video.window(frames, 0, 8, 3)[:, 0, 0, 0].tolist()
    assert first == [0, 3, 6, 9, 12, 15, 18, 21]
    message = "8 frames, 3 apart, from frame 1 on need a clip of 23 frames, and it has 22"
    with pytest.raises(ValueError, match=message):
        video.window(frames, 1, 8, 3)


def test_values_run_from_minus_one_to_one_and_channels_come_second():
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(5, 4, 2, 3)
    x = video.to_float(frames)
    assert x.shape == (5, 3, 4, 2) and x.dtype == torch.float32
    assert x[..., 0].eq(-1).all() and x[..., 1].eq(1).all()


def test_a_sampled_window_is_a_function_of_its_generator_and_reaches_every_start():
    clips = [clip(t=10, action=2, person=7)]

    def sample(seed):
        return video.sample_window(clips, 4, 2, torch.Generator().manual_seed(seed))

    x, labels = sample(0)
    assert x.shape == (4, 3, 4, 4) and labels.tolist() == [2, 7] and torch.equal(x, sample(0)[0])
    first = [round((sample(seed)[0][0, 0, 0, 0].item() + 1) * 127.5) for seed in range(60)]
    assert set(first) == {0, 1, 2, 3}, "10 frames hold four windows of 4 frames at stride 2"


def test_clips_are_sampled_with_equal_chances_whatever_their_length():
    g = torch.Generator().manual_seed(0)
    clips = [clip(t=4, action=0), clip(t=100, action=1)]
    labels = [video.sample_window(clips, 4, 1, g)[1].item() for _ in range(200)]
    assert 70 < sum(labels) < 130


def test_a_clip_shorter_than_its_window_is_named():
    g = torch.Generator().manual_seed(0)
    message = "tiny has 5 frames, 8 frames 3 apart need 22: .* min_frames=22"
    with pytest.raises(ValueError, match=message):
        video.sample_window([clip("tiny", t=5)], 8, 3, g)
    with pytest.raises(ValueError, match="no clips to sample from"):
        video.sample_window([], 8, 3, g)


def test_a_clip_is_cut_in_time_without_overlap_or_gap():
    whole = clip(t=20)
    parts = [video.cut(whole, 0, 2 / 3).frames, video.cut(whole, 2 / 3, 1).frames]
    assert torch.equal(torch.cat(parts), whole.frames)


# ----------------------------------------------------------------------------------------- splits


def test_a_split_does_not_depend_on_the_other_clips_and_keeps_groups_together():
    clips = [clip(f"c{i}", t=2, group=f"g{i // 2}") for i in range(400)]
    train, test = video.split(clips, 0.25)
    assert len(train) + len(test) == 400 and 60 < len(test) < 140
    assert {c.name for c in train} | {c.name for c in test} == {c.name for c in clips}
    assert {c.group for c in train}.isdisjoint(c.group for c in test)
    some = clips[::7]
    assert [c.name for c in video.split(some, 0.25)[1]] == [c.name for c in test if c in some]


def test_a_split_is_the_same_on_every_machine():
    clips = [clip(f"clip{i}", t=1) for i in range(40)]
    assert [i for i in range(40) if video.held_out(clips[i], 0.1)] == [24, 29]
    train, test = video.split(clips)
    assert [c.name for c in test] == ["clip24", "clip29"]
    assert [c.name for c in train] == [f"clip{i}" for i in range(40) if i not in (24, 29)]


def test_a_small_set_has_clips_on_both_sides_and_one_clip_is_trained_on():
    def sides(names, fraction=0.1):
        split = video.split([clip(name, t=1) for name in names], fraction)
        return tuple([c.name for c in side] for side in split)

    assert sides(["clip24"]) == (["clip24"], []), "held out by its hash, but there is no other"
    assert [len(side) for side in sides(["clip24", "clip29"])] == [1, 1]
    assert [len(side) for side in sides(["clip0", "clip1", "clip2"])] == [2, 1]
    assert sides(["clip0", "clip1"], fraction=0) == (["clip0", "clip1"], [])


# ---------------------------------------------------------------------------------------- actions


@pytest.fixture
def tiny_actions(tmp_path, monkeypatch):
    """The set `actions` with its real names and tiny pictures of 3 frames: for its rules."""
    Image.fromarray(np.zeros((4, 12, 4), np.uint8)).save(tmp_path / "strip.png")
    data = (tmp_path / "strip.png").read_bytes()
    files = {file.path: data for file in video.catalogue()["actions"].files}
    dataset = entry(files, name="actions")
    monkeypatch.setattr(fetching, "catalogue", lambda: {"actions": dataset})
    return video.actions(root=put(tmp_path, files), size=None)


def test_actions_are_nine_people_doing_four_things_twice(tiny_actions):
    pairs = [(c.labels["person"], c.labels["action"], c.mirror) for c in tiny_actions]
    expected = [(p, a, m) for p in range(9) for a in range(4) for m in (False, True)]
    assert sorted(pairs) == expected
    assert [list(c.labels) for c in tiny_actions] == [["action", "person"]] * 72
    by_name = {c.name: c for c in tiny_actions}
    assert by_name["actions/3/00000005.jpg"].caption == "person 0: jumping jacks"
    assert by_name["actions/4/00000070.jpg"].words == {"action": "bend", "person": "person 8"}


def test_person_8_and_four_pairs_are_held_out_mirrors_included(tiny_actions):
    train, test = video.split(tiny_actions)
    held_out = {(8, 0), (8, 1), (8, 2), (8, 3), (0, 2), (3, 3), (5, 0), (6, 1)}
    everything = {(person, action) for person in range(9) for action in range(4)}

    def sides(clips):
        return sorted((c.labels["person"], c.labels["action"], c.mirror) for c in clips)

    assert sides(test) == sorted((*pair, m) for pair in held_out for m in (False, True))
    assert sides(train) == sorted((*pair, m) for pair in everything - held_out
                                  for m in (False, True))
    assert {c.group for c in train}.isdisjoint(c.group for c in test)
    assert video.split(test) == ([], test), "no small-set rule brings them back"
    assert {c.labels["person"] for c in train} == set(range(8))
    assert {c.labels["action"] for c in train} == {0, 1, 2, 3}


def test_actions_follow_a_target_rate(tiny_actions, tmp_path):
    clips = video.actions(root=tmp_path, size=None, fps=12.5)
    assert all(len(c.frames) == 2 and c.fps == 12.5 for c in clips)


# ---------------------------------------------------------------------------------- the real clips


@needs_real_clips
def test_the_real_actions_are_72_clips_of_5290_frames_and_exact_mirror_images():
    clips = video.actions()
    assert len(clips) == 72 and all(c.frames.shape[1:] == (64, 64, 3) for c in clips)
    counts = [len(c.frames) for c in clips]
    assert (sum(counts), min(counts), max(counts)) == (5290, 51, 146)
    for one, other in zip(clips[::2], clips[1::2]):
        assert one.group == other.group and not one.mirror and other.mirror
        assert torch.equal(one.frames[::10].flip(2), other.frames[::10])


@needs_real_clips
def test_a_real_sign_and_a_real_road_are_read_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames, fps = video.read_video(video.fetch("signs") / "want.mkv", size=64, stride=4)
        assert frames.shape == (12, 64, 64, 3) and fps == 7.5
        assert 30 < frames.float().mean() < 220
        road = video.fetch("road") / "test_video.mp4"
        frames, fps = video.read_video(road, size=(36, 64), stride=8)
    assert frames.shape == (5, 36, 64, 3) and fps == 3.125
