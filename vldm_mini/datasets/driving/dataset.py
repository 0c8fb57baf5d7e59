"""The dash-cam world as a set of clips with labels and boxes, in splits that never meet."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .geometry import in_sight
from .scene import Scene

KEY_FPS = 1.875                 # of key frames: every 16th of 30 a second
MOST_CARS = 4
LABEL_NAMES = (("light", ("day", "night")),
               ("cars", (*map(str, range(MOST_CARS)), f"{MOST_CARS} or more")))

# MINI: training and evaluation never share a scene: each split has its own million of seeds.
# "classifiers" is what the evaluation's classifiers learn from.
SPLITS = {"train": 0, "held_out": 1_000_000, "classifiers": 2_000_000}
SEEDS_PER_SPLIT = 1_000_000


def seeds(split: str, n: int, first: int = 0) -> list[int]:
    """n seeds of a split of SPLITS, from its seed number `first` on.

    Raises ValueError for an unknown split, or if the range leaves the split.
    """
    if split not in SPLITS or not 0 <= first <= first + n <= SEEDS_PER_SPLIT:
        raise ValueError(f"splits are {', '.join(SPLITS)}, of a million seeds each; got {split!r}, "
                         f"{first} to {first + n}")
    begin = SPLITS[split] + first
    return list(range(begin, begin + n))


@lru_cache(maxsize=32)
def _scene(seed: int) -> Scene:
    """The clips of one seed share a scene, and the panorama that it paints once."""
    return Scene(seed)


@dataclass(frozen=True)
class DrivingClip:
    """A clip of a scene. Frames are rendered when they are read: what is stored is a seed."""

    seed: int
    length: int = 16
    height: int = 64
    fps: float = KEY_FPS
    start: float = 0.0          # of the first frame, seconds into the scene

    @property
    def name(self) -> str:
        """A name that is unique to what the clip shows."""
        name = f"driving/{self.seed:07d}-{self.length}x{self.height}"
        if (self.fps, self.start) == (KEY_FPS, 0):
            return name
        return f"{name}-{self.fps:g}-{self.start:g}"

    @property
    def scene(self) -> Scene:
        """The scene that the clip shows."""
        return _scene(self.seed)

    @property
    def times(self) -> np.ndarray:
        """(t,) seconds."""
        return self.start + np.arange(self.length) / self.fps

    @property
    def frames(self) -> torch.Tensor:
        """uint8 (t, h, 2h, 3)."""
        return torch.from_numpy(self.scene.render(self.times, self.height))

    @property
    def boxes(self) -> list[np.ndarray]:
        """For each frame the cars in sight, far ones first: (n, 4) x0, y0, x1, y1 in [0, 1]."""
        scene = self.scene
        return [in_sight(scene.boxes(time)) for time in self.times]

    def labels(self, boxes: Sequence[np.ndarray] | None = None) -> torch.Tensor:
        """For each frame the light (0 day, 1 night) and the cars in sight, at most MOST_CARS.

        boxes: the clip's `boxes`, if they are at hand. Returns long (t, 2).
        """
        boxes = self.boxes if boxes is None else boxes
        night = int(self.scene.night)
        return torch.tensor([(night, min(len(cars), MOST_CARS)) for cars in boxes])


def clips(split: str, n: int, length: int = 16, height: int = 64,
          first: int = 0) -> list[DrivingClip]:
    """n clips of `length` key frames from a split; see `seeds`."""
    return [DrivingClip(seed, length, height) for seed in seeds(split, n, first)]


def summary(n: int = 40) -> str:
    """A few lines on the set, counted over n training clips."""
    labels = torch.cat([clip.labels() for clip in clips("train", n)])
    lines = ["driving: rendered by this package, for any number of clips, frames and pixels"]
    for k, (name, classes) in enumerate(LABEL_NAMES):
        counts = torch.bincount(labels[:, k], minlength=len(classes))
        shares = [f"{word} ({int(count) / len(labels):.0%})"
                  for word, count in zip(classes, counts, strict=True)]
        lines.append(f"  {name}: " + ", ".join(shares))
    lines += [f"  key frames: {KEY_FPS:g} a second, with speed, steering and a box of each car",
              f"  seeds: a million each of {', '.join(SPLITS)}",
              "  licence: Apache-2.0, as the code that renders it"]
    return "\n".join(lines)
