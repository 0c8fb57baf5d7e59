"""Real video: small sets fetched once and checked, or any folder of videos, as clips with labels and captions.

Paper: 4.2 and appendix F (its own sets are in house or gone; these stand in). Chapters 00 and 14 walk it.

    clips = load("actions")                          # a set of the catalogue: actions, signs, road
    clips = load("my/videos", size=64, stride=2)     # mp4, avi, mkv, mov, webm, gif, folders of png or jpg
    train, test = split(clips)
    x, labels = sample_window(train, length=8, stride=3, generator=g)     # (t 3 h w) in [-1, 1], (n,)

In a folder of videos, `walk/a.mp4` has the label `walk` and takes its caption from `walk/a.txt` or from a line
{"file_name": "walk/a.mp4", "text": "..."} of `metadata.jsonl`. A folder of images is one clip; its parent is the label.
"""
import hashlib
import importlib
import json
import math
import os
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from einops import rearrange

VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif", ".m4v", ".mpg", ".mpeg")
IMAGES = (".png", ".jpg", ".jpeg")

# The set `actions`: who does what, and what no generator ever sees
ACTIONS = ("wave one hand", "wave two hands", "jumping jacks", "bend")
FOLDERS = (0, 1, 3, 4)                                       # FOLDERS[action] is the folder that holds it
HELD_OUT_PERSON = 8                                          # of 0..8
HELD_OUT_PAIRS = ((0, 2), (3, 3), (5, 0), (6, 1))            # (person, action): each is seen, never together


@dataclass(frozen=True, eq=False)
class VideoClip:
    """One clip.

    frames: uint8 (t h w 3). labels: name -> int, words: name -> the label in words. fps: of `frames`, after any stride.
    group: clips of one group (a clip and its mirror image, say) fall on the same side of every split.
    """
    name: str
    frames: torch.Tensor
    labels: dict = field(default_factory=dict)
    fps: float = 25.0
    caption: str = ""
    group: str = ""
    mirror: bool = False
    words: dict = field(default_factory=dict)

    def __repr__(self):
        t, h, w, _ = self.frames.shape
        return f"VideoClip({self.name}: {t} frames of {h}x{w} at {self.fps:g} fps, {self.words or 'no label'})"


# ---------------------------------------------------------------------------------------------- catalogue and fetching

@dataclass(frozen=True)
class File:
    """One file of a set: `path` below the data folder, sha256, size in bytes, and the url that serves these bytes."""
    path: str
    sha256: str
    bytes: int
    url: str


@dataclass(frozen=True)
class Dataset:
    """One entry of the catalogue: what it is, what one may do with it, how to cite it, and its files."""
    name: str
    title: str
    fps: float
    licence: str
    terms: str
    cite: tuple
    home: str
    files: tuple


@lru_cache(maxsize=1)
def catalogue():
    """The sets that `fetch` knows: name -> Dataset, read from `data/catalogue.json`."""
    # installed: vldm_mini/data/catalogue.json; in a clone: data/catalogue.json beside the package
    places = [folder / "data" / "catalogue.json" for folder in Path(__file__).resolve().parents[1:3]]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no catalogue of data sets at {places[0]}: install vldm_mini anew")
    sets = json.loads(found.read_text(encoding="utf-8"))
    return {name: Dataset(**entry | {"name": name, "files": tuple(File(**file) for file in entry["files"])})
            for name, entry in sets.items()}


def fetch(name, root=None, cache=None):
    """The folder that holds the files of the set `name`, every one of them checked against its sha256.

    Taken from `root` or the folder that VLDM_DATA names; else downloaded, once, into `cache` (by default the user's).
    Errors: ValueError (unknown name, wrong checksum), FileNotFoundError (files missing), ConnectionError (no network).
    """
    entry = catalogue().get(name)
    if entry is None:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(catalogue())}, or give a folder of videos")
    root = root or os.environ.get("VLDM_DATA")
    if not root:
        return _download(entry, cache)
    root = Path(root)
    remedy = f"put the files of {entry.name!r} there (urls: data/catalogue.json), or unset VLDM_DATA to download them"
    if not root.is_dir():
        raise FileNotFoundError(f"the data folder {root} does not exist: correct VLDM_DATA, or {remedy}")
    missing = [file.path for file in entry.files if not (root / file.path).is_file()]
    if missing:
        raise FileNotFoundError(f"{root} lacks {len(missing)} of {len(entry.files)} files ({missing[0]}): {remedy}")
    for file in entry.files:
        if not _matches(root / file.path, file.sha256):
            raise ValueError(f"{root / file.path} differs from the catalogue's (sha256): replace it from {file.url}")
    return root / entry.name


def _download(entry, cache):
    """Files that the cache lacks; each is checked, then put in place. One that stops is taken up by the next call."""
    pooch = _need("pooch", "downloading")
    import requests
    from tqdm.auto import tqdm
    pooch.get_logger().setLevel("WARNING")
    cache = Path(cache or pooch.os_cache("vldm_mini"))
    missing = [file for file in entry.files if not _matches(cache / file.path, file.sha256)]
    remedy = "run again (what is there is kept), or copy the files by hand and set VLDM_DATA to their folder"
    for file in tqdm(missing, desc=entry.name, unit="file", disable=not missing):
        path = cache / file.path
        try:
            pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)
        except requests.RequestException as error:
            reason = "no connection" if error.response is None else f"the server answers {error.response.status_code}"
            raise ConnectionError(f"cannot download {file.url} ({reason}): check the network and {remedy}") from error
        except ValueError as error:
            wrong = "gave other bytes than expected (sha256), nothing is kept"
            raise ValueError(f"{file.url} {wrong}: {remedy}") from error
        except OSError as error:
            raise OSError(f"cannot save {path} ({error.strerror or error}): free some space and {remedy}") from error
    return cache / entry.name


def _matches(path, sha256):
    return path.is_file() and _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) == sha256


@lru_cache(maxsize=1024)
def _sha256(path, size, mtime_ns):           # size and mtime are the cache's key: a file is read once per process
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _need(module, what):
    """Import an optional library, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{what} needs {module}: pip install "vldm_mini[video]"') from error


# ------------------------------------------------------------------------------------------------------------- loading

def load(source, size=64, stride=1, root=None, min_frames=1):
    """Clips of a set of the catalogue by name, of a folder of videos, or of one video file -> list[VideoClip].

    size: frames are resized and centre-cropped to it, an int or (h, w); None keeps them as they are. stride: every
    stride-th frame is kept. root: the data folder, as in `fetch`. min_frames: shorter clips are left out, with a
    warning. A folder of your own named like a set is given as "./actions". Memory: 12 kB a frame at 64x64.
    """
    size, path = _size(size), Path(source)
    if stride < 1:
        raise ValueError(f"stride is {stride}: take 1 (every frame) or more")
    if source in catalogue():
        clips = _named(catalogue()[source], size, stride, root)
    elif path.exists():
        clips = _folder(path, size, stride) if path.is_dir() else [_clip(path, path.parent, size, stride, {})]
    else:
        raise FileNotFoundError(f"{str(source)!r} is neither a known data set ({', '.join(catalogue())}) "
                                "nor a folder of videos: check the name or path")
    kept = [clip for clip in clips if len(clip.frames) >= min_frames]
    if not kept:
        longest = max(len(clip.frames) for clip in clips)
        raise ValueError(f"no clip of {source} has {min_frames} frames, the longest has {longest}: "
                         "ask for fewer frames or a smaller stride")
    if short := len(clips) - len(kept):
        warnings.warn(f"{source}: {short} clips shorter than {min_frames} frames are left out", stacklevel=2)
    return kept


def actions(root=None, size=64, stride=1):
    """The 72 clips of `actions`, 51 to 146 frames each, labels {"action": 0..3, "person": 0..8}. See `held_out`."""
    return load("actions", size=size, stride=stride, root=root)


def _named(entry, size, stride, root):
    """The clips of a set of the catalogue: the path of a file says what is in it."""
    data = fetch(entry.name, root).parent
    if entry.name == "actions":
        return [_action_clip(file.path, data, entry.fps, size, stride) for file in entry.files]
    clips = [_clip(data / file.path, data, size, stride, {}) for file in entry.files]
    if entry.name == "road":
        return [replace(clip, words={}, caption="a drive on a highway by day") for clip in clips]
    signs = [Path(clip.name).stem for clip in clips]                                 # in the order of the alphabet
    return [replace(clip, labels={"sign": i}, words={"sign": sign}, caption=f'a person signs "{sign}"')
            for i, (clip, sign) in enumerate(zip(clips, signs))]


def _action_clip(name, data, fps, size, stride):
    """actions/FOLDER/NUMBER.jpg: eight numbers a person, odd ones are mirror images."""
    number, action = int(Path(name).stem), FOLDERS.index(int(Path(name).parent.name))
    person = number // 8
    frames = torch.stack([_fit(frame, size) for frame in read_strip(data / name).numpy()[::stride]])
    caption = f"person {person}: {ACTIONS[action]}"
    return VideoClip(name, frames, labels={"action": action, "person": person}, fps=fps / stride, caption=caption,
                     group=caption, mirror=number % 2 == 1,
                     words={"action": ACTIONS[action], "person": f"person {person}"})


def _folder(path, size, stride):
    """Every video below `path`, in the order of their names. What a label or caption is: see the module."""
    media = _find(path)
    if not media:
        raise ValueError(f"no videos in {path}: put {', '.join(VIDEOS[:6])} files or folders of png frames there")
    notes = _metadata(path / "metadata.jsonl")
    clips = [_clip(item, path, size, stride, notes) for item in media]
    strangers = sorted(notes.keys() - {clip.name for clip in clips})
    if strangers:
        raise ValueError(f"{path / 'metadata.jsonl'} names {strangers[0]!r}, and no such clip is there: correct it")
    classes = sorted({clip.words["class"] for clip in clips if clip.words})
    bare = [clip.name for clip in clips if not clip.words]
    if classes and bare:
        raise ValueError(f"{bare[0]} lies in {path} itself and others in subfolders, which are labels: "
                         "move every clip into a subfolder, or none")
    return [replace(clip, labels={k: classes.index(word) for k, word in clip.words.items()}) for clip in clips]


def _find(path):
    """Video files and folders of frames below `path`. Images beside videos are thumbnails, and no clip."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    videos = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in VIDEOS]
    if not videos and any(entry.is_file() and entry.suffix.lower() in IMAGES for entry in entries):
        videos = [path]
    return videos + [item for entry in entries if entry.is_dir() for item in _find(entry)]


def _clip(item, top, size, stride, notes):
    name = item.relative_to(top).as_posix() if item != top else item.resolve().name
    frames, fps = (read_frames if item.is_dir() else read_video)(item, size, stride)
    note = notes.get(name, {})
    caption = note.get("text", note.get("caption", ""))
    sidecar = item.with_name((item.name if item.is_dir() else item.stem) + ".txt")
    if sidecar.is_file():
        caption = sidecar.read_text(encoding="utf-8", errors="replace").strip()
    words = {} if top in (item, item.parent) else {"class": item.parent.relative_to(top).as_posix()}
    return VideoClip(name, frames, fps=fps, caption=caption, group=str(note.get("group", name)), words=words)


def _metadata(path):
    """metadata.jsonl, one JSON object a line with "file_name" and "text" -> file_name: object. No file: empty."""
    notes = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for i, line in enumerate(lines, start=1):
        try:
            if line.strip():
                note = json.loads(line)
                notes[PurePosixPath(note["file_name"]).as_posix()] = note
        except (ValueError, KeyError, TypeError) as error:
            example = '{"file_name": "a.mp4", "text": "a dog"}'
            raise ValueError(f"{path}, line {i} is not understood: a line is one JSON object, as {example}") from error
    return notes


# ------------------------------------------------------------------------------------------------------------- reading

def read_video(path, size=None, stride=1):
    """One video file through PyAV -> frames uint8 (t h w 3), frames per second. Sound is ignored, rotation applied."""
    path, av = Path(path), _need("av", "reading videos")
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}: check the path")
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(f"{path} is no video by its name: videos end in {', '.join(VIDEOS)}")
    try:
        with av.open(str(path)) as container:
            frames, fps, seconds = _decode(container, _size(size), stride)
            expected = (container.duration or 0) / av.time_base
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error.strerror}): it is damaged or no video; "
                         "replace or delete it") from error
    if not frames:
        raise ValueError(f"{path} holds no pictures, it is damaged or sound only: replace or delete it")
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"the frames of {path} differ in size: give a size to bring them all to")
    if seconds < 0.9 * expected:
        warnings.warn(f"{path} ends after {seconds:.1f} of {expected:.1f} s: it may be cut short", stacklevel=2)
    return torch.stack(frames), fps / stride                                         # t h w 3


def _decode(container, size, stride):
    """-> frames, frames per second, seconds of film; no frames where there is no picture."""
    frames, fps, seconds, start = [], 25.0, 0.0, (container.start_time or 0) / 1e6
    for stream in container.streams.video[:1]:
        fps = float(stream.average_rate or stream.guessed_rate or fps)
        for i, frame in enumerate(container.decode(stream)):
            seconds = (i + 1) / fps if frame.time is None else frame.time - start + 1 / fps
            if i % stride == 0:
                # quarter turns counter-clockwise: telephones store a film lying on its side
                # MINI: pixels are taken as square, whatever aspect ratio the file states for them
                frames.append(_fit(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)), size))
    return frames, fps, seconds


def read_frames(path, size=None, stride=1, fps=25.0):
    """A folder of png or jpg frames of one size, in the order of their numbers -> uint8 (t h w 3), fps."""
    paths = [p for p in Path(path).iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith(".")]
    # frame2 before frame10
    paths.sort(key=lambda p: [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", p.name)])
    if not paths:
        raise ValueError(f"no frames in {path}: it should hold {', '.join(IMAGES)} files")
    images = {p.name: _image(p) for p in paths}
    h, w = Counter(image.shape[:2] for image in images.values()).most_common(1)[0][0]
    odd = [name for name, image in images.items() if image.shape[:2] != (h, w)]
    if odd:
        raise ValueError(f"the frames in {path} differ in size, {odd[0]} is not {h}x{w} as most are: "
                         "make them one size")
    return torch.stack([_fit(image, _size(size)) for image in list(images.values())[::stride]]), fps / stride


def read_strip(path):
    """A picture whose square frames lie side by side, h x (t h) -> uint8 (t h h 3). Transparency is dropped."""
    pixels = torch.from_numpy(_image(path))
    h, w, _ = pixels.shape
    if w % h:
        raise ValueError(f"{path} is {h}x{w}: a strip of square frames has a width that is a multiple of its height")
    return rearrange(pixels, "h (t w) c -> t h w c", w=h).contiguous()


def _image(path):
    Image = _need("PIL.Image", "reading pictures")
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))                                    # h w 3
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no picture {path}: check the path") from error
    except (OSError, SyntaxError) as error:                                          # Pillow raises either
        raise ValueError(f"{path} cannot be read as a picture: it is damaged or none; replace or delete it") from error


def _fit(pixels, size):
    """uint8 (h w 3) array -> tensor of `size`: scaled (bicubic, antialiased) to cover it, then centre-cropped."""
    if size not in (None, pixels.shape[:2]):
        from PIL import Image, ImageOps
        pixels = np.array(ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BICUBIC))
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _size(size):
    size = (size, size) if isinstance(size, int) else size and tuple(size)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is {size}: give one number, (height, width), or None to keep the frames as they are")
    return size


# -------------------------------------------------------------------------------------------------------------- splits

def held_out(clip, fraction=0.1):
    """True if no generator may learn from this clip: a function of the clip alone, and the same for its mirror image.

    `actions`: person 8, and four pairs of a person and an action. Any other clip: by a hash of its group.
    """
    return _draw(clip) < fraction


def _draw(clip):
    """A number in [0, 1) for each group; without bounds for `actions`, whose rule is strict."""
    if {"person", "action"} <= clip.labels.keys():
        person, action = clip.labels["person"], clip.labels["action"]
        return -math.inf if person == HELD_OUT_PERSON or (person, action) in HELD_OUT_PAIRS else math.inf
    # MINI: a hash, not a shuffled list: a clip stays on its side when others come or go, on every machine
    digest = hashlib.sha256((clip.group or clip.name).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(clips, fraction=0.1):
    """-> (clips to train on, clips held out), whole clips by `held_out`; no frame of one side is on the other.

    A small set, where that leaves one side empty, gives it the group that comes nearest; a single clip is trained on.
    fraction=0 holds out nothing. None of this holds for `actions`: its rule is strict.
    """
    draws = sorted({_draw(clip) for clip in clips})
    groups = [draw for draw in draws if math.isfinite(draw)]
    if groups and draws[-1] < fraction:                          # nothing to train on
        fraction = groups[-1]
    elif len(groups) > 1 and 0 < fraction <= draws[0]:           # nothing held out
        fraction = groups[1]
    return [c for c in clips if not held_out(c, fraction)], [c for c in clips if held_out(c, fraction)]


# ------------------------------------------------------------------------------------------------------------- windows

def span(length, stride=1):
    """Frames of film that a window of `length` frames covers, `stride` apart."""
    return (length - 1) * stride + 1


def window(frames, start, length, stride=1):
    """Frames start, start + stride, ..., `length` of them: (t ...) -> (length ...)."""
    end = start + span(length, stride)
    if start < 0 or length < 1 or stride < 1 or end > len(frames):
        raise ValueError(f"{length} frames, {stride} apart, from frame {start} on need a clip of {end} frames, "
                         f"and it has {len(frames)}: take fewer frames or a smaller stride")
    return frames[start:end:stride]


def cut(clip, begin, end):
    """The part of a clip between two fractions of its time: cut(clip, 0, 2/3) is its first two thirds."""
    t = len(clip.frames)
    return replace(clip, frames=clip.frames[round(begin * t) : round(end * t)])


def to_float(frames):
    """uint8 (... t h w 3) in 0..255 -> float32 (... t 3 h w) in [-1, 1]."""
    return rearrange(frames, "... h w c -> ... c h w").float() / 127.5 - 1


def label_vector(clip):
    """The labels of a clip in their own order -> long (n,), n = 0 where it has none."""
    return torch.tensor(list(clip.labels.values()), dtype=torch.long)


def sample_window(clips, length, stride, generator):
    """One random window of one random clip -> x (t 3 h w) in [-1, 1], labels (n,) long.

    Clips are drawn with equal chances whatever their length, so that every person and action is seen equally often.
    """
    if not clips:
        raise ValueError("there are no clips to draw from: load some, and look at what `split` left for training")
    clip = clips[torch.randint(len(clips), (), generator=generator)]
    needed = span(length, stride)
    if len(clip.frames) < needed:
        raise ValueError(f"{clip.name} has {len(clip.frames)} frames, {length} frames {stride} apart need {needed}: "
                         f"take fewer, a smaller stride, or load with min_frames={needed}")
    start = int(torch.randint(len(clip.frames) - needed + 1, (), generator=generator))
    return to_float(window(clip.frames, start, length, stride)), label_vector(clip)


def summary(source, root=None):
    """A few lines on a set or folder: clips, frames, labels, what is held out, licence, how to cite."""
    clips = load(source, size=64, root=root)
    counts = [len(clip.frames) for clip in clips]
    lines = [f"{source}: {len(clips)} clips, {sum(counts):,} frames, {min(counts)} to {max(counts)} a clip"]
    for key in dict.fromkeys(key for clip in clips for key in clip.words):
        words = Counter(clip.words[key] for clip in clips if key in clip.words)
        lines.append(f"  {key}: " + ", ".join(f"{word} ({n})" for word, n in words.items()))
    lines.append(f"  held out from training: {len(split(clips)[1])} of {len(clips)} clips")
    if entry := catalogue().get(source):
        lines += [f"  what: {entry.title}", f"  licence: {entry.licence}", f"  terms: {entry.terms}"]
        lines += [f"  cite: {work}" for work in entry.cite] + [f"  from: {entry.home}"]
    return "\n".join(lines)
