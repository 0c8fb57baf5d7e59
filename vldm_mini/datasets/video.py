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

# ----------------------------------------------------------------------------------------------------------------
# The set `actions`: who does what, and what no generator ever sees

ACTIONS = ("wave one hand", "wave two hands", "jumping jacks", "bend")
FOLDERS = (0, 1, 3, 4)                                       # FOLDERS[action] is the folder that holds it
PERSONS = 9
HELD_OUT_PERSON = 8
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


# ----------------------------------------------------------------------------------------------------------------
# Catalogue


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
    here = Path(__file__).resolve()
    # installed: vldm_mini/data/catalogue.json; in a clone: data/catalogue.json beside the package
    places = [up / "data" / "catalogue.json" for up in here.parents[1:3]]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"there is no catalogue of data sets at {places[0]}: install vldm_mini anew")
    entries = json.loads(found.read_text(encoding="utf-8"))
    return {name: _dataset(name, **entry) for name, entry in entries.items()}


def _dataset(name, files, cite, **entry):
    return Dataset(name=name, cite=tuple(cite), files=tuple(File(**file) for file in files), **entry)


# ----------------------------------------------------------------------------------------------------------------
# Fetching


def fetch(name, root=None, cache=None):
    """The folder that holds the files of the set `name`, every one of them checked against its sha256.

    Taken from `root`, or else from the folder that the environment variable VLDM_DATA names; where neither is given
    the files are downloaded into `cache` (default: the user's cache folder), once.
    Errors: ValueError (unknown name, wrong checksum), FileNotFoundError (files missing), ConnectionError (no network).
    """
    entry = catalogue().get(name)
    if entry is None:
        raise ValueError(f"unknown data set {name!r}: known are {', '.join(catalogue())}, or give a folder of videos")
    root = root or os.environ.get("VLDM_DATA")
    if root:
        return _from_folder(entry, Path(root))
    return download(entry, cache or _need("pooch", "downloading").os_cache("vldm_mini"))


def _from_folder(entry, root):
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


def download(entry, folder):
    """Download the files of `entry` that `folder` lacks, with a progress bar; each is checked, then put in place.

    A download that stops leaves whole files only, and the next call goes on from there.
    """
    pooch = _need("pooch", "downloading")
    from tqdm.auto import tqdm

    folder = Path(folder)
    missing = [file for file in entry.files if not _matches(folder / file.path, file.sha256)]
    pooch.get_logger().setLevel("WARNING")
    total = sum(file.bytes for file in missing)
    with tqdm(total=total, unit="B", unit_scale=True, desc=entry.name, mininterval=0.5, disable=not missing) as bar:
        for file in missing:
            _retrieve(pooch, file, folder / file.path)
            bar.update(file.bytes)
    return folder / entry.name


def _retrieve(pooch, file, path):
    import requests

    remedy = "run again (what is there is kept), or copy the files by hand and set VLDM_DATA to their folder"
    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", fname=path.name, path=path.parent)
    except requests.RequestException as error:
        response = getattr(error, "response", None)
        reason = "no connection" if response is None else f"the server answers {response.status_code}"
        raise ConnectionError(f"cannot download {file.url} ({reason}): check the network and {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{file.url} gave other bytes than expected (sha256), nothing is kept: {remedy}") from error
    except OSError as error:
        raise OSError(f"cannot save {path} ({error.strerror or error}): free some space and {remedy}") from error


def _matches(path, sha256):
    if not path.is_file():
        return False
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns) == sha256


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


# ----------------------------------------------------------------------------------------------------------------
# Loading


def load(source, size=64, stride=1, root=None, min_frames=1):
    """Clips of a set of the catalogue by name, of a folder of videos, or of one video file -> list[VideoClip].

    size: frames are resized and centre-cropped to it, an int or (h, w); None keeps them as they are. stride: every
    stride-th frame is kept. root: the data folder, as in `fetch`. min_frames: shorter clips are left out, with a
    warning. A folder of your own named like a set is given as "./actions". Memory: 12 kB a frame at 64x64.
    """
    size = _size(size)
    if stride < 1:
        raise ValueError(f"stride is {stride}: take 1 (every frame) or more")
    if isinstance(source, str) and source in catalogue():
        clips = _named(catalogue()[source], size, stride, root)
    elif Path(source).is_dir():
        clips = folder(source, size, stride)
    elif Path(source).is_file():
        clips = [_clip(Path(source), Path(source).parent, size, stride, {})]
    else:
        raise FileNotFoundError(f"{str(source)!r} is neither a known data set ({', '.join(catalogue())}) "
                                "nor a folder of videos: check the name or path")
    return _long_enough(clips, source, min_frames)


def actions(root=None, size=64, stride=1):
    """The 72 clips of `actions`, 51 to 146 frames each, labels {"action": 0..3, "person": 0..8}. See `held_out`."""
    return load("actions", size=size, stride=stride, root=root)


def _named(entry, size, stride, root):
    data = fetch(entry.name, root).parent
    if entry.name == "actions":
        return [_action_clip(data / file.path, entry.fps, size, stride) for file in entry.files]
    stems = sorted(Path(file.path).stem for file in entry.files)
    clips = []
    for file in entry.files:
        frames, fps = read_video(data / file.path, size, stride)
        clip = VideoClip(file.path, frames, fps=fps, group=file.path, caption="a drive on a highway by day")
        if entry.name == "signs":
            sign = Path(file.path).stem
            clip = replace(clip, labels={"sign": stems.index(sign)}, words={"sign": sign},
                           caption=f'a person signs "{sign}"')
        clips.append(clip)
    return clips


def _action_clip(path, fps, size, stride):
    number, action = int(path.stem), FOLDERS.index(int(path.parent.name))
    person = number // 8
    frames = read_strip(path)[::stride]
    if size not in (None, tuple(frames.shape[1:3])):
        frames = torch.stack([_fit(frame.numpy(), size) for frame in frames])
    caption = f"person {person}: {ACTIONS[action]}"
    return VideoClip(
        name=f"actions/{path.parent.name}/{path.name}", frames=frames, fps=fps / stride,
        labels={"action": action, "person": person}, words={"action": ACTIONS[action], "person": f"person {person}"},
        caption=caption, group=caption, mirror=number % 2 == 1)


def folder(path, size=64, stride=1):
    """Every video below the folder `path`, in the order of their names. What a label or caption is: see the module."""
    path = Path(path)
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
    label = "." if item == top else item.parent.relative_to(top).as_posix()
    note = notes.get(name, {})
    caption = note.get("text", note.get("caption", ""))
    sidecar = item.with_name((item.name if item.is_dir() else item.stem) + ".txt")
    if sidecar.is_file():
        caption = sidecar.read_text(encoding="utf-8", errors="replace").strip()
    words = {} if label == "." else {"class": label}
    return VideoClip(name, frames, fps=fps, caption=caption, group=str(note.get("group", name)), words=words)


def _metadata(path):
    """metadata.jsonl, one JSON object a line with "file_name" and "text" -> file_name: object. No file: empty."""
    notes = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            note = json.loads(line)
            notes[PurePosixPath(note["file_name"]).as_posix()] = note
        except (ValueError, KeyError, TypeError) as error:
            example = '{"file_name": "a.mp4", "text": "a dog"}'
            raise ValueError(f"{path}, line {i} is not understood: a line is one JSON object, as {example}") from error
    return notes


def _long_enough(clips, source, min_frames):
    kept = [clip for clip in clips if len(clip.frames) >= min_frames]
    if not kept:
        longest = max(len(clip.frames) for clip in clips)
        raise ValueError(f"no clip of {source} has {min_frames} frames, the longest has {longest}: "
                         "ask for fewer frames or a smaller stride")
    if len(kept) < len(clips):
        left_out = len(clips) - len(kept)
        warnings.warn(f"{source}: {left_out} clips shorter than {min_frames} frames are left out", stacklevel=3)
    return kept


# ----------------------------------------------------------------------------------------------------------------
# Reading


def read_video(path, size=None, stride=1):
    """One video file through PyAV -> frames uint8 (t h w 3), frames per second. Sound is ignored, rotation applied."""
    path, av = Path(path), _need("av", "reading videos")
    if not path.is_file():
        raise FileNotFoundError(f"there is no video {path}: check the path")
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(f"{path} is no video by its name: videos end in {', '.join(VIDEOS)}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no pictures, it is damaged or sound only: replace or delete it")
            frames, fps, seconds = _decode(container, _size(size), stride)
            expected = (container.duration or 0) / av.time_base
    except av.FFmpegError as error:
        reason = f"{path} cannot be read as a video ({error.strerror})"
        raise ValueError(f"{reason}: it is damaged or no video; replace or delete it") from error
    if not frames:
        raise ValueError(f"{path} holds not one frame: it is damaged; replace or delete it")
    if seconds < 0.9 * expected:
        warnings.warn(f"{path} ends after {seconds:.1f} of {expected:.1f} s: it may be cut short", stacklevel=2)
    return _stack(frames, path), fps / stride


def _decode(container, size, stride):
    stream = container.streams.video[0]
    fps = float(stream.average_rate or stream.guessed_rate or 25)
    start, frames, seconds = (container.start_time or 0) / 1e6, [], 0.0
    for i, frame in enumerate(container.decode(stream)):
        seconds = (i + 1) / fps if frame.time is None else frame.time - start + 1 / fps
        if i % stride == 0:
            # quarter turns counter-clockwise: telephones store a film lying on its side
            # MINI: pixels are taken as square, whatever aspect ratio the file states for them
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            frames.append(_fit(pixels, size))
    return frames, fps, seconds


def read_frames(path, size=None, stride=1, fps=25.0):
    """A folder of png or jpg frames of one size, in the order of their numbers -> uint8 (t h w 3), fps."""
    paths = sorted((p for p in Path(path).iterdir() if p.suffix.lower() in IMAGES and p.name[0] != "."), key=_natural)
    if not paths:
        raise ValueError(f"no frames in {path}: it should hold {', '.join(IMAGES)} files")
    images = [_image(p) for p in paths]
    sizes = Counter(image.shape[:2] for image in images).most_common()
    if len(sizes) > 1:
        h, w = sizes[0][0]
        odd = next(p.name for p, image in zip(paths, images) if image.shape[:2] != (h, w))
        raise ValueError(f"the frames in {path} differ in size, {odd} is not {h}x{w} as most are: make them one size")
    return _stack([_fit(image, _size(size)) for image in images[::stride]], path), fps / stride


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
    if size is not None and pixels.shape[:2] != size:
        from PIL import Image, ImageOps

        pixels = np.array(ImageOps.fit(Image.fromarray(pixels), size[::-1], Image.Resampling.BICUBIC))
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _size(size):
    size = (size, size) if isinstance(size, int) else size and tuple(size)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size is {size}: give one number, (height, width), or None to keep the frames as they are")
    return size


def _stack(frames, path):
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"the frames of {path} differ in size: give a size to bring them all to")
    return torch.stack(frames)                                                       # t h w 3


def _natural(path):
    """frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]


# ----------------------------------------------------------------------------------------------------------------
# Splits


def held_out(clip, fraction=0.1):
    """True if no generator may learn from this clip: a function of the clip alone, and the same for its mirror image.

    `actions`: person 8, and four pairs of a person and an action. Any other clip: by a hash of its group.
    """
    if _of_actions(clip):
        pair = (clip.labels["person"], clip.labels["action"])
        return pair[0] == HELD_OUT_PERSON or pair in HELD_OUT_PAIRS
    return _chance(clip) < fraction


def _of_actions(clip):
    return {"person", "action"} <= clip.labels.keys()


def _chance(clip):
    # MINI: a hash, not a shuffled list: a clip stays on its side when others come or go, on every machine
    digest = hashlib.sha256((clip.group or clip.name).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(clips, fraction=0.1):
    """-> (clips to train on, clips held out), whole clips by `held_out`; no frame of one side is on the other.

    A small set, where that leaves one side empty, gives it the group that comes nearest: two clips are one and one.
    A single clip is trained on. fraction=0 holds out nothing. None of this holds for `actions`: its rule is strict.
    """
    out = [held_out(clip, fraction) for clip in clips]
    chances = sorted({_chance(clip) for clip in clips if not _of_actions(clip)})
    if chances and all(out):
        out = [_of_actions(clip) or _chance(clip) != chances[-1] for clip in clips]
    elif not any(out) and fraction > 0 and len(chances) > 1:
        out = [_chance(clip) == chances[0] for clip in clips]
    return [c for c, o in zip(clips, out) if not o], [c for c, o in zip(clips, out) if o]


# ----------------------------------------------------------------------------------------------------------------
# Windows


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
    starts = len(clip.frames) - needed + 1
    if starts < 1:
        raise ValueError(f"{clip.name} has {len(clip.frames)} frames, {length} frames {stride} apart need {needed}: "
                         f"take fewer, a smaller stride, or load with min_frames={needed}")
    start = int(torch.randint(starts, (), generator=generator))
    return to_float(window(clip.frames, start, length, stride)), label_vector(clip)


# ----------------------------------------------------------------------------------------------------------------
# What is in it


def summary(source, root=None):
    """A few lines on a set or folder: clips, frames, labels, what is held out, licence, how to cite."""
    clips = load(source, size=64, root=root)
    counts = [len(clip.frames) for clip in clips]
    lines = [f"{source}: {len(clips)} clips, {sum(counts):,} frames, {min(counts)} to {max(counts)} a clip"]
    for key in dict.fromkeys(key for clip in clips for key in clip.words):
        words = Counter(clip.words[key] for clip in clips if key in clip.words)
        lines.append(f"  {key}: " + ", ".join(f"{word} ({n})" for word, n in words.items()))
    lines.append(f"  held out from training: {len(split(clips)[1])} of {len(clips)} clips")
    entry = catalogue().get(source) if isinstance(source, str) else None
    if entry:
        lines += [f"  what: {entry.title}", f"  licence: {entry.licence}", f"  terms: {entry.terms}"]
        lines += [f"  cite: {work}" for work in entry.cite] + [f"  from: {entry.home}"]
    return "\n".join(lines)
