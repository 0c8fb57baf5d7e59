"""Camera, road and projection of the dash-cam world, and which part of a car is visible.

Lengths are metres and times are seconds. The camera looks along the road: a pixel looks in the
direction (x, y, 1), x to the right, y down, so that positions in the picture are tangents of
angles. Chapter 09 uses the boxes.
"""
import numpy as np

CAMERA_HEIGHT = 1.35
HORIZON = 0.42                  # height of the horizon, as a share of the frame from the top
VIEW = 0.6                      # tangent of half the horizontal view (frames are 1 : 2)
NEAR, FAR = 2.5, 110.0          # objects between these distances are rendered
LANE = 3.5                      # width of a lane
KERB = 4.1                      # distance of the edge of the asphalt from the centre line
MAX_SPEED = 12.0                # of the ego car, m/s

# A car is "in sight" if its box has at least this share of the frame's width, and if at least this
# share of the box is visible.
MIN_BOX = 8 / 128
MIN_VISIBLE = 0.5

# Kinds of car (sedan, estate, van): width and height.
CAR_SIZE = ((1.75, 1.4), (1.8, 1.6), (2.0, 2.2))


def project(distance: np.ndarray, offset: np.ndarray, width: np.ndarray, height: np.ndarray,
            pitch: np.ndarray | float) -> np.ndarray:
    """The boxes of upright objects that stand on the ground.

    distance and offset (to the right) say where an object stands, seen from the camera; pitch is
    the tangent by which the picture is shaken down. All broadcast to one shape (...,).
    Returns (..., 4): x0, y0, x1, y1 as shares of the frame's width and height, not clipped to it.
    """
    foot = HORIZON + (CAMERA_HEIGHT / distance + pitch) / VIEW
    top = foot - height / distance / VIEW
    left = 0.5 + (offset - width / 2) / distance / (2 * VIEW)
    right = 0.5 + (offset + width / 2) / distance / (2 * VIEW)
    return np.stack([left, top, right, foot], -1)


def visible_share(boxes: np.ndarray, n: int = 24) -> np.ndarray:
    """The share of each box that lies in the frame and behind no nearer box, on an n x n grid.

    boxes: (k, 4) x0, y0, x1, y1, far objects first. Returns (k,) in [0, 1].
    """
    grid = (np.arange(n) + 0.5) / n
    x = boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * grid
    y = boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * grid
    visible = _between(y, 0, 1)[:, :, None] & _between(x, 0, 1)[:, None]
    for i in range(len(boxes)):
        for x0, y0, x1, y1 in boxes[i + 1:]:
            visible[i] &= ~(_between(y[i], y0, y1)[:, None] & _between(x[i], x0, x1)[None])
    return visible.mean((1, 2))


def _between(value: np.ndarray, low: float, high: float) -> np.ndarray:
    return (value >= low) & (value <= high)


def in_sight(boxes: np.ndarray) -> np.ndarray:
    """The boxes of the cars that count as in sight: wide enough, and not hidden.

    boxes: (n, 5) as `Scene.boxes` returns them. Returns (m, 4), without the visible share.
    """
    wide = boxes[:, 2] - boxes[:, 0] >= MIN_BOX
    visible = boxes[:, 4] >= MIN_VISIBLE
    return boxes[wide & visible, :4]


def random_at(seed: int, salt: int, k: np.ndarray) -> np.ndarray:
    """A uniform random number in [0, 1) for each integer of k: a fixed function of its arguments.

    The same tree stands at the same point of the road whenever the ego car passes it. Different
    salts give independent numbers. splitmix64 (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        x = np.asarray(k, dtype=np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.uint64((seed * 0xD1B54A32D192ED03 + salt * 0x8CB92BA72F3D8DD7) % 2 ** 64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) / 2.0 ** 64
