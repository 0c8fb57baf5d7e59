"""Real video: small sets that are fetched once and checked, or any folder of videos, as clips.

    clips = load("actions")                          # a set of the catalogue: actions, signs, road
    clips = load("my/videos", size=64, fps=8)        # mp4, avi, mkv, mov, webm, mpg, gif, pictures
    train, test = split(clips)
    x, labels = sample_window(train, length=8, stride=3, generator=g)   # (t 3 h w) in [-1, 1], (n,)

Paper: section 4.2 and appendix F (its own sets are in house or no longer offered; these stand in).
Chapters 00 and 14 walk through it. `fetching` holds the catalogue, `loading` says what becomes a
clip, `reading`, `decoding` and `frames` how files become frames; `clips` has splits and windows.
"""

from .clips import (
    ACTIONS,
    HELD_OUT_PAIRS,
    HELD_OUT_PERSON,
    VideoClip,
    cut,
    fingerprint,
    held_out,
    label_vector,
    sample_window,
    span,
    split,
    to_float,
    window,
)
from .decoding import VIDEOS
from .fetching import Dataset, File, catalogue, fetch
from .loading import actions, load, summary
from .reading import IMAGES, read_frames, read_strip, read_video

__all__ = [
    "ACTIONS",
    "HELD_OUT_PAIRS",
    "HELD_OUT_PERSON",
    "IMAGES",
    "VIDEOS",
    "Dataset",
    "File",
    "VideoClip",
    "actions",
    "catalogue",
    "cut",
    "fetch",
    "fingerprint",
    "held_out",
    "label_vector",
    "load",
    "read_frames",
    "read_strip",
    "read_video",
    "sample_window",
    "span",
    "split",
    "summary",
    "to_float",
    "window",
]
