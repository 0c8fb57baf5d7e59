"""Real video: clips with labels and a split by clip."""
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

ACTIONS = ("wave one hand", "wave two hands", "jumping jacks", "bend")
FOLDERS = (0, 1, 3, 4)           # the folder of `actions` that holds ACTIONS[i]
PERSONS = 9
HELD_OUT_PERSON = 8
HELD_OUT_PAIRS = ((0, 2), (3, 3), (5, 0), (6, 1))     # (person, action)


@dataclass(frozen=True, eq=False)
class VideoClip:
    """One clip: `frames` uint8 (t h w 3), `labels` name -> int; clips of one `group` stay on one side of a split."""

    name: str
    frames: torch.Tensor
    labels: dict = field(default_factory=dict)
    fps: float = 25.0
    caption: str = ""
    group: str = ""
    mirror: bool = False


def read_strip(path):
    """A PNG whose square frames lie side by side -> uint8 (t h w 3). The alpha channel is dropped."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))                    # h (t w) 3
    h = pixels.shape[0]
    t = pixels.shape[1] // h
    return torch.from_numpy(pixels).reshape(h, t, h, 3).permute(1, 0, 2, 3).contiguous()   # t h w 3


def actions(root=None):
    """The 72 clips of `actions`, labels {"action": 0..3, "person": 0..8}, by folder and number."""
    root = Path(root or os.environ["VLDM_DATA"])
    return [_action_clip(path) for path in sorted((root / "actions").glob("*/*.jpg"))]


def _action_clip(path):
    number, action = int(path.stem), FOLDERS.index(int(path.parent.name))
    person = number // 8
    name = f"actions/{path.parent.name}/{path.stem}"
    caption = f"person {person}: {ACTIONS[action]}"
    labels = {"action": action, "person": person}
    group = f"person {person} action {action}"
    return VideoClip(name, read_strip(path), labels, caption=caption, group=group, mirror=number % 2 == 1)


def held_out(clip):
    """True if no generator may learn from this clip of `actions` (its mirror image included)."""
    pair = (clip.labels["person"], clip.labels["action"])
    return pair[0] == HELD_OUT_PERSON or pair in HELD_OUT_PAIRS
