"""A dash-cam world that the package renders itself: the stand-in for the paper's in-house driving
set (section 4.1).

    scene = Scene(seed=3)                         # or Scene(3, night=True, traffic=0.8)
    frames = scene.render(times, height=64)       # uint8 (t, h, 2h, 3); any times, in seconds
    boxes = scene.boxes(times[0])                 # (n, 5): x0 y0 x1 y1 in [0, 1], visible share
    scene.labels(times)                           # night, cars in sight, speed, steering
    train, held_out = clips("train", 1500), clips("held_out", 40)

Everything is a function of (seed, time, position in the picture): a scene has no length, no frame
rate and no resolution of its own. Each pixel is the mean over its square: 32x64 and 256x512 are the
same picture, and a crop is that part of it. Chapters 03 to 09 use it.

`scene` says which car is where, `geometry` where it appears in the picture, `renderer` paints the
frames with `filters`, `textures` and `sprites`; `dataset` is the set of clips.

MINI: the paper's clips are real. Here light, cars, speed and steering are known exactly.
"""
from .dataset import KEY_FPS, LABEL_NAMES, MOST_CARS, SPLITS, DrivingClip, clips, seeds, summary
from .geometry import (
                       CAMERA_HEIGHT,
                       CAR_SIZE,
                       FAR,
                       HORIZON,
                       KERB,
                       LANE,
                       MAX_SPEED,
                       MIN_BOX,
                       MIN_VISIBLE,
                       NEAR,
                       VIEW,
                       in_sight,
                       project,
                       visible_share,
)
from .scene import Scene

__all__ = ["CAMERA_HEIGHT", "CAR_SIZE", "FAR", "HORIZON", "KERB", "KEY_FPS", "LABEL_NAMES", "LANE",
           "MAX_SPEED", "MIN_BOX", "MIN_VISIBLE", "MOST_CARS", "NEAR", "SPLITS", "VIEW",
           "DrivingClip", "Scene", "clips", "in_sight", "project", "seeds", "summary",
           "visible_share"]
