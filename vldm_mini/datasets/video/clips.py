"""Clips, and what training takes from them: splits without leaks, windows, labels, a fingerprint.

Paper: section 4 and appendix F (its data sets). Chapter 14 walks through it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from torch import Tensor

# The set `actions`: what is done, and which combinations no generator may be trained on
ACTIONS = ("wave one hand", "wave two hands", "jumping jacks", "bend")
HELD_OUT_PERSON = 8                                  # of 0 to 8
# (person, action): each person and each action is seen in training, these pairs never
HELD_OUT_PAIRS = ((0, 2), (3, 3), (5, 0), (6, 1))


@dataclass(frozen=True, eq=False)
class VideoClip:
    """One clip.

    frames: uint8 (t h w 3). labels: name -> int; words: name -> the label in words.
    fps: frames per second of `frames`, after any stride. group: clips of one group (a clip and its
    mirror image, say) are on the same side of every split; empty: the clip's name.
    """

    name: str
    frames: Tensor
    labels: dict[str, int] = field(default_factory=dict)
    fps: float = 25.0
    caption: str = ""
    group: str = ""
    mirror: bool = False
    words: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        t, h, w, _ = self.frames.shape
        return (f"VideoClip({self.name}: {t} frames of {h}x{w} at {self.fps:g} fps, "
                f"{self.words or 'no label'})")


# ------------------------------------------------------------------------------------ fingerprint


def fingerprint(clips: Sequence[VideoClip]) -> str:
    """sha256 in hex of all that training can see of `clips`: by it a run recognizes its data.

    It covers, in the order of the clips, every pixel, name, size, label, caption, group and frame
    rate, and the vocabulary (which number stands for which word).
    """
    vocabulary: dict[str, dict[int, str]] = {}
    whole = hashlib.sha256()
    for clip in clips:
        for key, number in clip.labels.items():
            vocabulary.setdefault(key, {})[number] = clip.words.get(key, "")
        frames = clip.frames.contiguous()
        pixels = hashlib.sha256(frames.numpy()).hexdigest()
        about = (clip.name, clip.group, clip.mirror, clip.caption, clip.fps, clip.labels,
                 clip.words, list(frames.shape), pixels)
        whole.update(json.dumps(about).encode() + b"\n")
    meanings = [(key, sorted(words.items())) for key, words in vocabulary.items()]
    whole.update(json.dumps(meanings).encode())
    return whole.hexdigest()


# ----------------------------------------------------------------------------------------- splits


def held_out(clip: VideoClip, fraction: float = 0.1) -> bool:
    """True if no generator may be trained on this clip; the same for its mirror image.

    `actions`: person 8, and four pairs of a person and an action. Any other clip: by a hash of its
    group, so that it is a function of the clip alone.
    """
    return _split_value(clip) < fraction


def _split_value(clip: VideoClip) -> float:
    """A number in [0, 1), the same for all clips of a group; infinite for `actions`."""
    if {"person", "action"} <= clip.labels.keys():
        pair = (clip.labels["person"], clip.labels["action"])
        is_held_out = pair[0] == HELD_OUT_PERSON or pair in HELD_OUT_PAIRS
        return -math.inf if is_held_out else math.inf
    # MINI: a hash, not a shuffled list: a clip stays on its side when others come or go
    digest = hashlib.sha256((clip.group or clip.name).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(
    clips: Sequence[VideoClip], fraction: float = 0.1
) -> tuple[list[VideoClip], list[VideoClip]]:
    """-> (clips to train on, clips held out): whole groups, by `held_out`.

    Where that leaves one side of a small set empty, the group that comes nearest moves there; a
    single group is trained on. fraction=0 holds out nothing. `actions` has its own strict rule.
    """
    values = sorted({_split_value(clip) for clip in clips})
    groups = [value for value in values if math.isfinite(value)]
    if groups and values[-1] < fraction:                         # nothing to train on
        fraction = groups[-1]
    elif len(groups) > 1 and 0 < fraction <= values[0]:          # nothing held out
        fraction = groups[1]
    training = [clip for clip in clips if not held_out(clip, fraction)]
    return training, [clip for clip in clips if held_out(clip, fraction)]


# ---------------------------------------------------------------------------------------- windows


def span(length: int, stride: int = 1) -> int:
    """The number of frames that a window of `length` frames, `stride` apart, covers."""
    return (length - 1) * stride + 1


def window(frames: Tensor, start: int, length: int, stride: int = 1) -> Tensor:
    """Frames start, start + stride, ..., `length` of them: (t ...) -> (length ...).

    Raises ValueError where the clip ends before the window does.
    """
    end = start + span(length, stride)
    if start < 0 or length < 1 or stride < 1 or end > len(frames):
        raise ValueError(f"{length} frames, {stride} apart, from frame {start} on need a clip of "
                         f"{end} frames, and it has {len(frames)}: take fewer frames or a smaller "
                         "stride")
    return frames[start:end:stride]


def cut(clip: VideoClip, begin: float, end: float) -> VideoClip:
    """The part of a clip between two fractions of its time: cut(clip, 0, 2/3) is two thirds."""
    t = len(clip.frames)
    return replace(clip, frames=clip.frames[round(begin * t) : round(end * t)])


def to_float(frames: Tensor) -> Tensor:
    """uint8 (... t h w 3) in 0..255 -> float32 (... t 3 h w) in [-1, 1]."""
    return rearrange(frames, "... h w c -> ... c h w").float() / 127.5 - 1


def label_vector(clip: VideoClip) -> Tensor:
    """The labels of a clip in their own order -> long (n,), n = 0 where it has none."""
    return torch.tensor(list(clip.labels.values()), dtype=torch.long)


def sample_window(
    clips: Sequence[VideoClip], length: int, stride: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random window of one random clip -> x (t 3 h w) in [-1, 1], labels (n,) long.

    All clips are equally likely whatever their length, so that every person and action is seen
    equally often. Raises ValueError without clips, and where the clip is shorter than the window.
    """
    if not clips:
        raise ValueError("there are no clips to sample from: load some, and look at what `split` "
                         "left for training")
    clip = clips[torch.randint(len(clips), (), generator=generator)]
    needed = span(length, stride)
    if len(clip.frames) < needed:
        raise ValueError(f"{clip.name} has {len(clip.frames)} frames, {length} frames {stride} "
                         f"apart need {needed}: take fewer, a smaller stride, or load with "
                         f"min_frames={needed}")
    start = int(torch.randint(len(clip.frames) - needed + 1, (), generator=generator))
    return to_float(window(clip.frames, start, length, stride)), label_vector(clip)
