"""Loading clips: a set of the catalogue, a folder of videos, or one video file.

In a folder, `walk/a.mp4` has the label `walk` and takes its caption from `walk/a.txt` or from a
line {"file_name": "walk/a.mp4", "text": "..."} of `metadata.jsonl`. A folder of pictures is one
clip; its parent is the label. Chapter 14 walks through it.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch

from . import fetching
from .clips import ACTIONS, VideoClip, split
from .decoding import VIDEOS, Reading
from .frames import Size, as_size, check_rate, choose, fit
from .reading import IMAGES, read, read_strip, remarks

FOLDERS = (0, 1, 3, 4)          # of the set `actions`: FOLDERS[action] is the folder that holds it


@dataclass(frozen=True)
class Source:
    """A video file or folder of pictures that is to be read, and what is known of it before."""

    path: Path
    name: str
    caption: str = ""
    group: str = ""
    word: str = ""                                       # the label: its subfolder


def load(
    source: str | Path,
    size: int | Size = 64,
    fps: float | None = None,
    stride: int = 1,
    root: str | Path | None = None,
    min_frames: int = 1,
) -> list[VideoClip]:
    """The clips of a set of the catalogue by name, of a folder of videos, or of one video file.

    size: frames are scaled and centre-cropped to it, an int or (h, w); None keeps them as they are.
    fps: a target rate; frames are chosen by their time stamps. stride: every stride-th of these is
    kept. root: the data folder, as in `fetch`. min_frames: clips that are shorter are left out.
    A folder of your own that is named like a set is given as "./actions". Memory: 12 kB a frame at
    64x64, whatever the size of the file.

    Warns once of each: files that cannot be read, damaged files, short clips (all are named, and
    the first and last are left out), and frame rates that vary within a clip or among clips.
    Raises FileNotFoundError, and ValueError where no clip is left.
    """
    size, path = as_size(size), Path(source)
    check_rate(fps, stride)
    if source in fetching.catalogue():
        clips = _load_set(fetching.catalogue()[source], size, fps, stride, root)
    elif path.is_dir():
        clips = _load_folder(path, size, fps, stride)
    elif path.exists():
        clips = _read_all([_source(path, path.parent, {})], path, size, fps, stride)
    else:
        known = ", ".join(fetching.catalogue())
        raise FileNotFoundError(f"{str(source)!r} is neither a known data set ({known}) nor a "
                                "folder of videos: check the name or path")
    return long_enough(clips, min_frames, source)


def actions(
    root: str | Path | None = None,
    size: int | Size = 64,
    fps: float | None = None,
    stride: int = 1,
) -> list[VideoClip]:
    """The 72 clips of `actions`, 51 to 146 frames each: labels action 0..3 and person 0..8."""
    return load("actions", size=size, fps=fps, stride=stride, root=root)


def summary(source: str | Path, root: str | Path | None = None) -> str:
    """A few lines on a set or folder: clips, frames, labels, what is held out, licence, citation.

    Raises as `load`.
    """
    clips = load(source, size=64, root=root)
    counts = [len(clip.frames) for clip in clips]
    lines = [f"{source}: {len(clips)} clips, {sum(counts):,} frames, "
             f"{min(counts)} to {max(counts)} a clip"]
    for key in dict.fromkeys(key for clip in clips for key in clip.words):
        words = Counter(clip.words[key] for clip in clips if key in clip.words)
        lines.append(f"  {key}: " + ", ".join(f"{word} ({n})" for word, n in words.items()))
    lines.append(f"  held out from training: {len(split(clips)[1])} of {len(clips)} clips")
    entry = fetching.catalogue().get(source)
    if entry is not None:
        lines += [f"  what: {entry.title}", f"  licence: {entry.licence}",
                  f"  terms: {entry.terms}"]
        lines += [f"  cite: {work}" for work in entry.cite]
        lines.append(f"  from: {entry.home}")
    return "\n".join(lines)


def long_enough(clips: list[VideoClip], min_frames: int, source: str | Path) -> list[VideoClip]:
    """The clips of at least min_frames frames; one warning names all others."""
    short = [clip for clip in clips if len(clip.frames) < min_frames]
    if len(short) == len(clips):
        longest = max(len(clip.frames) for clip in clips)
        raise ValueError(f"no clip of {source} has {min_frames} frames, the longest has {longest}: "
                         "take fewer frames or a smaller stride")
    if short:
        names = ", ".join(f"{clip.name} ({len(clip.frames)})" for clip in short)
        warnings.warn(f"{source}: {len(short)} of {len(clips)} clips are shorter than {min_frames} "
                      f"frames and are left out: {names}", stacklevel=3)
    return [clip for clip in clips if len(clip.frames) >= min_frames]


# ------------------------------------------------------------------------- sets of the catalogue


def _load_set(
    entry: fetching.Dataset, size: Size, fps: float | None, stride: int, root: str | Path | None
) -> list[VideoClip]:
    """The clips of a set of the catalogue: the path of a file says what it shows."""
    data = fetching.fetch(entry.name, root).parent
    if entry.name == "actions":
        return [_action_clip(file.path, data, entry.fps, size, fps, stride) for file in entry.files]
    sources = [_source(data / file.path, data, {}) for file in entry.files]
    clips = _read_all(sources, entry.name, size, fps, stride)
    if entry.name == "road":
        return [replace(clip, words={}, caption="driving on a highway by day") for clip in clips]
    signs = [Path(file.path).stem for file in entry.files]       # in the order of the alphabet
    named = []
    for clip in clips:
        sign = Path(clip.name).stem
        named.append(replace(clip, labels={"sign": signs.index(sign)}, words={"sign": sign},
                             caption=f'a person signs "{sign}"'))
    return named


def _action_clip(
    name: str, data: Path, source_fps: float, size: Size, fps: float | None, stride: int
) -> VideoClip:
    """actions/FOLDER/NUMBER.jpg: eight numbers a person, odd ones are mirror images."""
    number = int(Path(name).stem)
    action, person = FOLDERS.index(int(Path(name).parent.name)), number // 8
    chosen = choose(read_strip(data / name).numpy(), source_fps, fps, stride)
    caption = f"person {person}: {ACTIONS[action]}"
    return VideoClip(
        name,
        torch.stack([fit(frame, size) for frame in chosen]),
        labels={"action": action, "person": person},
        words={"action": ACTIONS[action], "person": f"person {person}"},
        fps=(fps or source_fps) / stride,
        caption=caption,
        group=caption,
        mirror=number % 2 == 1,
    )


# ---------------------------------------------------------------------------- folders of videos


def _load_folder(path: Path, size: Size, fps: float | None, stride: int) -> list[VideoClip]:
    """Every video below `path`, in the order of their names; labels and captions: see the module.

    Names, captions and labels are checked before anything is decoded.
    """
    media = _find(path)
    if not media:
        raise ValueError(f"no videos in {path}: put {', '.join(VIDEOS[:6])} files or folders of "
                         "png frames there")
    notes = _metadata(path / "metadata.jsonl")
    sources = [_source(item, path, notes) for item in media]
    unknown = sorted(notes.keys() - {source.name for source in sources})
    if unknown:
        raise ValueError(f"{path / 'metadata.jsonl'} names {unknown[0]!r}, and no such clip is "
                         "there: correct it")
    classes = sorted({source.word for source in sources if source.word})
    bare = [source.name for source in sources if not source.word]
    if classes and bare:
        raise ValueError(f"{bare[0]} lies in {path} itself and others in subfolders, which are "
                         "labels: move every clip into a subfolder, or none")
    clips = _read_all(sources, path, size, fps, stride)
    if not classes:
        return clips
    # a class keeps its number when all of its clips are left out
    return [replace(clip, labels={"class": classes.index(clip.words["class"])}) for clip in clips]


def _find(path: Path) -> list[Path]:
    """Video files and folders of frames below `path`. Pictures beside videos are thumbnails."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file()]
    found = [file for file in files if file.suffix.lower() in VIDEOS]
    if not found and any(file.suffix.lower() in IMAGES for file in files):
        found = [path]
    for entry in entries:
        if entry.is_dir():
            found += _find(entry)
    return found


def _source(item: Path, top: Path, notes: dict[str, dict]) -> Source:
    """What is known of a file or folder of pictures below `top` before it is read."""
    name = item.resolve().name if item == top else item.relative_to(top).as_posix()
    note = notes.get(name, {})
    caption = note.get("text", note.get("caption", ""))
    sidecar = item.with_name((item.name if item.is_dir() else item.stem) + ".txt")
    if sidecar.is_file():
        caption = sidecar.read_text(encoding="utf-8", errors="replace").strip()
    word = "" if top in (item, item.parent) else item.parent.relative_to(top).as_posix()
    return Source(item, name, caption, str(note.get("group", name)), word)


def _metadata(path: Path) -> dict[str, dict]:
    """metadata.jsonl, a JSON object a line with "file_name" and "text" -> file_name: object.

    Empty where there is no such file. Raises ValueError that names the line.
    """
    notes = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for i, line in enumerate(text.splitlines(), start=1):
        try:
            if line.strip():
                note = json.loads(line)
                notes[PurePosixPath(note["file_name"]).as_posix()] = note
        except (ValueError, KeyError, TypeError) as error:
            example = '{"file_name": "a.mp4", "text": "a dog"}'
            raise ValueError(f"{path}, line {i} is not understood: a line is one JSON object, as "
                             f"{example}") from error
    return notes


def _read_all(
    sources: Sequence[Source], origin: str | Path, size: Size, fps: float | None, stride: int
) -> list[VideoClip]:
    """Each source read once. One warning names all that cannot be read, and they are left out."""
    done: list[tuple[Source, Reading]] = []
    errors = []
    for source in sources:
        try:
            done.append((source, read(source.path, size, fps, stride)))
        except (ValueError, OSError) as error:
            errors.append(error)
    if len(sources) == len(errors) == 1:
        raise errors[0]
    # the first half of each message says what is wrong, the second what to do
    faults = ", ".join(str(error).partition(": ")[0] for error in errors)
    if not done:
        raise ValueError(f"none of the {len(sources)} videos of {origin} can be read ({faults}): "
                         "replace them")
    if errors:
        warnings.warn(f"{len(errors)} of {len(sources)} videos of {origin} are left out "
                      f"({faults}): replace or delete them", stacklevel=4)
    for remark in remarks([(source.name, reading) for source, reading in done], fps):
        warnings.warn(f"{origin}: {remark}", stacklevel=4)
    return [_clip(source, reading) for source, reading in done]


def _clip(source: Source, reading: Reading) -> VideoClip:
    words = {"class": source.word} if source.word else {}
    return VideoClip(source.name, reading.frames, fps=reading.fps, caption=source.caption,
                     group=source.group, words=words)
