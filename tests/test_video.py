"""What `vldm_mini.datasets.video` promises: files fetched and checked, any video read, splits that do not leak."""

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
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from vldm_mini.datasets import video
from vldm_mini.datasets.video import fetching
from vldm_mini.datasets.video import Dataset, File, VideoClip

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")
pooch = pytest.importorskip("pooch")

REAL = Path(os.environ.get("VLDM_DATA", "")) if os.environ.get("VLDM_DATA") else None
needs_real_clips = pytest.mark.skipif(REAL is None, reason="VLDM_DATA names no folder of real clips")


# ---- made material


def film(t=6, h=24, w=32):
    """Frame k is grey of value 30 k, with a white left half: uint8 (t h w 3)."""
    frames = np.zeros((t, h, w, 3), np.uint8) + (30 * np.arange(t, dtype=np.uint8))[:, None, None, None]
    frames[:, :, : w // 2] = 255
    return frames


CODECS = {".mp4": "mpeg4", ".avi": "ffv1", ".mkv": "ffv1", ".mov": "mpeg4", ".webm": "libvpx", ".gif": "gif"}


def write(path, frames, fps=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix.lower()], rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"ffv1": "bgr0", "gif": "rgb8"}.get(stream.codec_context.name, "yuv420p")
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_frames(folder, frames, suffix=".png"):
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{k}{suffix}")
    return folder


def clip(name="clip", t=20, group="", **labels):
    frames = torch.arange(t, dtype=torch.uint8)[:, None, None, None].expand(t, 4, 4, 3)
    return VideoClip(name, frames, labels, group=group)


def entry(files, base="http://127.0.0.1:9", name="made"):
    """A Dataset of made files: path -> bytes."""
    sha256 = lambda data: hashlib.sha256(data).hexdigest()
    made = tuple(File(path, sha256(data), len(data), f"{base}/{path}") for path, data in files.items())
    return Dataset(name, "made for a test", 25, "CC0", "none", ("nobody",), "http://127.0.0.1", made)


def put(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


FILES = {"made/a.bin": b"a" * 1000, "made/deep/b.bin": b"b" * 2000}


@pytest.fixture
def server(tmp_path):
    """A local server of FILES; server.asked lists the paths that were asked for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            server.asked.append(self.path)

    put(tmp_path / "served", FILES)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def catalogued(monkeypatch):
    """Put an entry into the catalogue for one test, with VLDM_DATA unset."""
    monkeypatch.delenv("VLDM_DATA", raising=False)

    def use(made):
        monkeypatch.setattr(fetching, "catalogue", lambda: {made.name: made})
        return made

    return use


def whole_files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ---- the catalogue and fetching


def test_the_catalogue_says_of_every_set_what_it_is_and_where_its_bytes_are():
    sets = video.catalogue()
    assert {name: len(sets[name].files) for name in sets} == {"actions": 72, "signs": 20, "road": 2}
    for name, made in sets.items():
        assert made.licence and made.terms and made.cite and made.home.startswith("https://")
        for file in made.files:
            assert file.path.startswith(name + "/") and file.bytes > 0
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert re.match(r"https://.+/[0-9a-f]{40}/", file.url), "a url at a pinned commit"


@pytest.mark.skipif(REAL is None or not (REAL / "manifest.tsv").is_file(), reason="no manifest beside the clips")
def test_the_catalogue_is_the_manifest():
    rows = [line.split("\t") for line in (REAL / "manifest.tsv").read_text().splitlines()[1:]]
    files = [file for made in video.catalogue().values() for file in made.files]
    assert [[file.path, file.sha256, str(file.bytes), file.url] for file in files] == rows


def test_the_catalogue_is_found_where_the_package_is_installed_without_its_repository(tmp_path, monkeypatch):
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
    assert video.fetch("made") == tmp_path / "made"


def test_each_file_is_checked_once_per_process_and_again_when_it_changes(tmp_path, monkeypatch, catalogued):
    catalogued(entry(FILES))
    put(tmp_path, FILES)
    reads = []
    monkeypatch.setattr(fetching.hashlib, "file_digest", lambda f, kind: reads.append(f.name) or hashlib.sha256(f.read()))
    video.fetch("made", root=tmp_path)
    video.fetch("made", root=tmp_path)
    assert len(reads) == 2
    (tmp_path / "made/a.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a.bin differs .*sha256.* replace it from http://127.0.0.1:9/made/a.bin"):
        video.fetch("made", root=tmp_path)


def test_a_data_folder_that_is_not_there_or_lacks_files_says_what_to_do(tmp_path, monkeypatch, catalogued):
    catalogued(entry(FILES))
    monkeypatch.setenv("VLDM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: correct VLDM_DATA.*unset VLDM_DATA"):
        video.fetch("made")
    put(tmp_path, {"made/a.bin": FILES["made/a.bin"]})
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 2 files \(made/deep/b.bin\).*unset VLDM_DATA"):
        video.fetch("made", root=tmp_path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown data set 'action': known are actions, signs, road"):
        video.fetch("action")
    with pytest.raises(FileNotFoundError, match="'action' is neither a known data set .actions, signs, road."):
        video.load("action")


def test_files_are_downloaded_once_and_with_a_progress_bar(tmp_path, server, catalogued, capsys):
    catalogued(entry(FILES, server.url))
    cache = tmp_path / "cache"
    assert video.fetch("made", cache=cache) == cache / "made"
    assert {path: (cache / path).read_bytes() for path in whole_files(cache)} == FILES
    assert "made: 100%" in capsys.readouterr().err
    (cache / "made/a.bin").write_bytes(b"damaged later")
    video.fetch("made", cache=cache)
    video.fetch("made", cache=cache)
    assert (cache / "made/a.bin").read_bytes() == FILES["made/a.bin"]
    assert len(server.asked) == 3, "two files, and the damaged one again"


def test_a_download_with_another_checksum_is_not_kept(tmp_path, server, catalogued):
    made = entry(FILES, server.url)
    catalogued(replace(made, files=(made.files[0], replace(made.files[1], sha256="0" * 64))))
    with pytest.raises(ValueError, match=r"b.bin gave other bytes than expected \(sha256\), nothing is kept"):
        video.fetch("made", cache=tmp_path / "cache")
    assert whole_files(tmp_path / "cache") == ["made/a.bin"], "the whole file stays, the wrong one leaves nothing"


def test_no_network_and_a_missing_page_say_so(tmp_path, server, catalogued):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    catalogued(entry(FILES, dead))
    with pytest.raises(ConnectionError, match="cannot download .*a.bin .no connection.: check the network.*VLDM_DATA"):
        video.fetch("made", cache=tmp_path / "cache")
    catalogued(entry({"made/gone.bin": b"gone"}, server.url))
    with pytest.raises(ConnectionError, match="the server answers 404"):
        video.fetch("made", cache=tmp_path / "cache")
    assert whole_files(tmp_path / "cache") == []


def test_a_full_disk_while_downloading_says_so(tmp_path, server, catalogued, monkeypatch):
    catalogued(entry(FILES, server.url))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pooch, "retrieve", full)
    with pytest.raises(OSError, match="cannot save .*a.bin .No space left on device.: free some space"):
        video.fetch("made", cache=tmp_path / "cache")


# ---- reading videos


@pytest.mark.parametrize("suffix", list(CODECS) + [".MP4"])
def test_every_container_gives_the_frames_that_went_in(tmp_path, suffix):
    path = write((tmp_path / "clip.avi").with_suffix(suffix), film())
    frames, fps = video.read_video(path)
    assert frames.shape == (6, 24, 32, 3) and frames.dtype == torch.uint8 and fps == 10
    lossless = suffix in (".avi", ".mkv")
    error = (frames.int() - torch.from_numpy(film()).int()).abs()
    assert error.max() == 0 if lossless else error.float().mean() < 12


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path, suffix):
    frames = np.concatenate([film(), film()])
    read, fps = video.read_frames(write_frames(tmp_path / "clip", frames, suffix))
    assert read.shape == frames.shape and fps == 25
    assert (read.int() - torch.from_numpy(frames).int()).abs().float().mean() < (0.01 if suffix == ".png" else 3)


def test_stride_keeps_every_other_frame_and_halves_the_frame_rate(tmp_path):
    path = write(tmp_path / "clip.mkv", film())
    frames, fps = video.read_video(path, stride=2)
    assert torch.equal(frames, torch.from_numpy(film()[::2])) and fps == 5


def test_frames_are_scaled_to_cover_the_size_and_cropped_at_the_centre(tmp_path):
    wide = np.zeros((1, 32, 96, 3), np.uint8)
    wide[:, :, 32:64] = 200                                      # the middle square
    [clip] = video.load(write(tmp_path / "wide.mkv", wide), size=16)
    assert clip.frames.shape == (1, 16, 16, 3)
    assert (clip.frames[:, :, 2:-2] == 200).all() and clip.frames.min() > 180, "only the middle square is left"
    [clip] = video.load(tmp_path / "wide.mkv", size=(16, 48))
    assert clip.frames.shape == (1, 16, 48, 3) and clip.frames[0, :, :14].max() < 8


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    [clip] = video.load(write(tmp_path / "stripes.mkv", stripes), size=16)
    inner = clip.frames[:, :, 2:-2].float()
    assert (inner - 127.5).abs().max() < 12, "one-pixel stripes become grey, not stripes of another width"


def test_frames_of_odd_height_and_width_are_read(tmp_path):
    [clip] = video.load(write(tmp_path / "odd.mkv", film(3, 17, 23)), size=None)
    assert clip.frames.shape == (3, 17, 23, 3)


def test_a_strip_holds_its_frames_from_left_to_right(tmp_path):
    frames = np.stack([np.full((4, 4, 4), 10 * k, np.uint8) for k in range(5)])
    Image.fromarray(np.concatenate(list(frames), axis=1), "RGBA").save(tmp_path / "strip.png")
    read = video.read_strip(tmp_path / "strip.png")
    assert read.shape == (5, 4, 4, 3) and read[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    Image.fromarray(np.zeros((4, 10, 3), np.uint8)).save(tmp_path / "uneven.png")
    with pytest.raises(ValueError, match="4x10: a strip of square frames has a width that is a multiple"):
        video.read_strip(tmp_path / "uneven.png")


# ---- folders


def test_subfolders_are_labels_and_sidecars_are_captions(tmp_path):
    write(tmp_path / "walk/a.mkv", film())
    write(tmp_path / "walk/b.mkv", film())
    write_frames(tmp_path / "jump" / "c", film())
    write(tmp_path / "jump/.hidden.mkv", film())
    (tmp_path / "walk/a.txt").write_text("a man walks\n")
    (tmp_path / "jump/c.txt").write_text("a man jumps")
    (tmp_path / "notes.pdf").write_text("no video")
    lines = [{"file_name": "walk/a.mkv", "text": "the sidecar wins"},
             {"file_name": "./walk/b.mkv", "text": "b", "group": "g"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    clips = {clip.name: clip for clip in video.load(tmp_path, size=16)}
    assert sorted(clips) == ["jump/c", "walk/a.mkv", "walk/b.mkv"]
    assert {name: clip.labels for name, clip in clips.items()} == {
        "jump/c": {"class": 0}, "walk/a.mkv": {"class": 1}, "walk/b.mkv": {"class": 1}}
    assert [clips[name].caption for name in sorted(clips)] == ["a man jumps", "a man walks", "b"]
    assert clips["walk/b.mkv"].words == {"class": "walk"} and clips["walk/b.mkv"].group == "g"
    assert all(clip.frames.shape == (6, 16, 16, 3) for clip in clips.values())


def test_a_folder_without_subfolders_has_no_labels(tmp_path):
    write(tmp_path / "a.mkv", film())
    Image.fromarray(film()[0]).save(tmp_path / "a.jpg")          # a thumbnail beside a video is no clip
    [clip] = video.load(str(tmp_path))
    assert clip.labels == {} and clip.name == "a.mkv" and clip.frames.shape == (6, 64, 64, 3)


def test_a_folder_of_frames_given_itself_is_one_clip(tmp_path):
    [clip] = video.load(write_frames(tmp_path / "one", film()), size=None)
    assert clip.name == "one" and len(clip.frames) == 6


def test_the_summary_counts_clips_frames_and_labels(tmp_path):
    write(tmp_path / "walk/a.mkv", film())
    write(tmp_path / "jump/b.mkv", film(3))
    text = video.summary(tmp_path)
    assert "2 clips, 9 frames, 3 to 6 a clip" in text and "class: jump (1), walk (1)" in text


# ---- bad input


def bad(tmp_path, kind):
    path = tmp_path / kind
    if kind == "empty":
        path.mkdir()
    elif kind == "missing.mp4":
        pass
    elif kind == "text.mp4":
        path.write_text("this is no video\n" * 100)
    elif kind == "nothing.mp4":
        path.touch()
    elif kind == "half.mp4":
        whole = write(tmp_path / "whole.mp4", film()).read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        (tmp_path / "whole.mp4").unlink()
    elif kind == "letter.doc":
        path.write_text("a letter")
    elif kind == "sizes":
        write_frames(path, film())
        Image.fromarray(film(1, 10, 10)[0]).save(path / "frame3.png")
    elif kind == "torn":
        png = write_frames(path, film()) / "frame2.png"
        png.write_bytes(png.read_bytes()[:40])
    return path


@pytest.mark.parametrize("kind, message", [
    ("empty", "no videos in .*empty: put .mp4"),
    ("missing.mp4", "neither a known data set .* nor a folder of videos: check"),
    ("text.mp4", "text.mp4 cannot be read as a video .*: it is damaged or no video; replace or delete it"),
    ("nothing.mp4", "nothing.mp4 cannot be read as a video"),
    ("half.mp4", "half.mp4 (cannot be read as a video|holds no pictures, it is damaged)"),
    ("letter.doc", "letter.doc is no video by its name: videos end in .mp4"),
    ("sizes", "differ in size, frame3.png is not 24x32 as most are: make them one size"),
    ("torn", "frame2.png cannot be read as a picture: it is damaged or none; replace or delete it"),
])
def test_bad_input_ends_in_one_sentence_that_says_what_to_do(tmp_path, kind, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        video.load(bad(tmp_path, kind))
    assert "\n" not in str(caught.value)


def test_one_damaged_file_in_a_folder_is_named(tmp_path):
    write(tmp_path / "good.mkv", film())
    (tmp_path / "torn.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + b"\0" * 50)
    with pytest.warns(UserWarning, match="1 of 2 videos of .* are left out .*torn.mkv cannot be read"):
        assert [clip.name for clip in video.load(tmp_path)] == ["good.mkv"]


def test_a_film_without_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(ValueError, match="sound.mkv holds no pictures"):
        video.read_video(tmp_path / "sound.mkv")


def test_a_film_that_was_cut_short_is_read_with_a_warning(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 48, 3), dtype=np.uint8)
    path = write(tmp_path / "film.mkv", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="may be cut short"):
        frames, _ = video.read_video(path)
    assert 2 < len(frames) < 15


@pytest.mark.parametrize("text, message", [
    ("not json", "metadata.jsonl, line 1 is not understood"),
    ('{"text": "no name"}', "metadata.jsonl, line 1 is not understood"),
    ('{"file_name": "b.mkv", "text": "no such clip"}', "names 'b.mkv', and no such clip is there"),
])
def test_captions_that_fit_no_clip_are_refused(tmp_path, text, message):
    write(tmp_path / "a.mkv", film())
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        video.load(tmp_path)


def test_clips_with_and_without_a_label_are_not_mixed(tmp_path):
    write(tmp_path / "a.mkv", film())
    write(tmp_path / "walk/b.mkv", film())
    with pytest.raises(ValueError, match="a.mkv lies in .* itself .* move every clip into a subfolder, or none"):
        video.load(tmp_path)


def test_short_clips_are_left_out_aloud_and_never_all_of_them(tmp_path):
    write(tmp_path / "long.mkv", film(6))
    write(tmp_path / "short.mkv", film(3))
    with pytest.warns(UserWarning, match="1 of 2 clips are shorter than 5 frames and are left out: short.mkv .3."):
        assert [clip.name for clip in video.load(tmp_path, min_frames=5)] == ["long.mkv"]
    with pytest.raises(ValueError, match="has 7 frames, the longest has 6: take fewer frames or a smaller stride"):
        video.load(tmp_path, min_frames=7)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": (8, 8, 8)}, {"stride": 0}])
def test_sizes_and_strides_that_make_no_sense_are_refused(tmp_path, wrong):
    write(tmp_path / "a.mkv", film())
    with pytest.raises(ValueError, match="size is .*give one number|stride is 0: take 1"):
        video.load(tmp_path, **wrong)


# ---- windows


def test_a_window_is_its_frames_and_may_end_on_the_last_one():
    frames = clip(t=22).frames
    assert video.span(8, 3) == 22
    assert video.window(frames, 0, 8, 3)[:, 0, 0, 0].tolist() == [0, 3, 6, 9, 12, 15, 18, 21]
    with pytest.raises(ValueError, match="8 frames, 3 apart, from frame 1 on need a clip of 23 frames, and it has 22"):
        video.window(frames, 1, 8, 3)


def test_values_run_from_minus_one_to_one_and_channels_come_second():
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(5, 4, 2, 3)
    x = video.to_float(frames)
    assert x.shape == (5, 3, 4, 2) and x.dtype == torch.float32
    assert x[..., 0].eq(-1).all() and x[..., 1].eq(1).all()


def test_a_sampled_window_is_a_function_of_its_generator_and_reaches_every_start():
    clips = [clip(t=10, action=2, person=7)]
    draw = lambda seed: video.sample_window(clips, 4, 2, torch.Generator().manual_seed(seed))
    x, labels = draw(0)
    assert x.shape == (4, 3, 4, 4) and labels.tolist() == [2, 7] and torch.equal(x, draw(0)[0])
    first = [round((draw(seed)[0][0, 0, 0, 0].item() + 1) * 127.5) for seed in range(60)]
    assert set(first) == {0, 1, 2, 3}, "10 frames hold four windows of 4 frames at stride 2"


def test_clips_are_drawn_with_equal_chances_whatever_their_length():
    g = torch.Generator().manual_seed(0)
    clips = [clip(t=4, action=0), clip(t=100, action=1)]
    drawn = [video.sample_window(clips, 4, 1, g)[1].item() for _ in range(200)]
    assert 70 < sum(drawn) < 130


def test_a_clip_shorter_than_its_window_is_named():
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="tiny has 5 frames, 8 frames 3 apart need 22: .* min_frames=22"):
        video.sample_window([clip("tiny", t=5)], 8, 3, g)
    with pytest.raises(ValueError, match="no clips to sample from"):
        video.sample_window([], 8, 3, g)


def test_a_clip_is_cut_in_time_without_overlap_or_gap():
    whole = clip(t=20)
    parts = torch.cat([video.cut(whole, 0, 2 / 3).frames, video.cut(whole, 2 / 3, 1).frames])
    assert torch.equal(parts, whole.frames)


# ---- splits


def test_a_split_does_not_depend_on_the_other_clips_and_keeps_groups_together():
    clips = [clip(f"c{i}", t=2, group=f"g{i // 2}") for i in range(400)]
    train, test = video.split(clips, 0.25)
    assert len(train) + len(test) == 400 and 60 < len(test) < 140
    assert {c.group for c in train}.isdisjoint(c.group for c in test)
    some = clips[::7]
    assert [c.name for c in video.split(some, 0.25)[1]] == [c.name for c in test if c in some]


def test_a_split_is_the_same_on_every_machine():
    assert [i for i in range(40) if video.held_out(clip(f"clip{i}", t=1), 0.1)] == PINNED


PINNED = [24, 29]


def test_a_small_set_has_clips_on_both_sides_and_one_clip_is_trained_on():
    sides = lambda names, fraction=0.1: tuple([c.name for c in side] for side in video.split(
        [clip(name, t=1) for name in names], fraction))
    assert sides(["clip24"]) == (["clip24"], []), "held out by its hash, but there is no other"
    assert sides(["clip24", "clip29"]) in ((["clip24"], ["clip29"]), (["clip29"], ["clip24"]))
    assert [len(side) for side in sides(["clip0", "clip1", "clip2"])] == [2, 1]
    assert sides(["clip0", "clip1"], fraction=0) == (["clip0", "clip1"], [])


# ---- actions


@pytest.fixture
def made_actions(tmp_path, monkeypatch):
    """The set `actions` with its real names and tiny made pictures: the rules can be tested without the real ones."""
    strip = np.zeros((4, 12, 4), np.uint8)
    Image.fromarray(strip, "RGBA").save(tmp_path / "strip.png")
    data = (tmp_path / "strip.png").read_bytes()
    files = {file.path: data for file in video.catalogue()["actions"].files}
    made = entry(files, name="actions")
    monkeypatch.setattr(fetching, "catalogue", lambda: {"actions": made})
    return video.actions(root=put(tmp_path, files), size=None)


def test_actions_are_nine_people_doing_four_things_twice(made_actions):
    pairs = [(c.labels["person"], c.labels["action"], c.mirror) for c in made_actions]
    assert sorted(pairs) == [(p, a, m) for p in range(9) for a in range(4) for m in (False, True)]
    assert [list(c.labels) for c in made_actions] == [["action", "person"]] * 72
    by_name = {c.name: c for c in made_actions}
    assert by_name["actions/3/00000005.jpg"].caption == "person 0: jumping jacks"
    assert by_name["actions/4/00000070.jpg"].words == {"action": "bend", "person": "person 8"}


def test_person_8_and_four_pairs_are_held_out_mirrors_included(made_actions):
    train, test = video.split(made_actions)
    assert (len(train), len(test)) == (56, 16)
    pairs = {(8, action) for action in range(4)} | {(0, 2), (3, 3), (5, 0), (6, 1)}
    assert {(c.labels["person"], c.labels["action"]) for c in test} == pairs
    assert {(c.labels["person"], c.labels["action"]) for c in train}.isdisjoint(pairs)
    assert sum(c.mirror for c in test) == 8
    assert video.split(test) == ([], test), "no small-set rule brings them back"
    assert {c.labels["person"] for c in train} == set(range(8)), "each of the eight is seen in three actions or more"
    assert {c.labels["action"] for c in train} == {0, 1, 2, 3}


# ---- the real clips


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
def test_a_real_sign_and_a_real_drive_are_read():
    frames, fps = video.read_video(video.fetch("signs") / "want.mkv", size=64, stride=4)
    assert frames.shape == (12, 64, 64, 3) and fps == 7.5 and 30 < frames.float().mean() < 220
    frames, fps = video.read_video(video.fetch("road") / "test_video.mp4", size=(36, 64), stride=8)
    assert frames.shape == (5, 36, 64, 3)
