"""The renderer of the dash-cam world: sky, ground, then the objects on it, far ones first.

A frame is a function of (scene, time). Each pixel is the mean over its square, so that 32x64 and
256x512 are the same picture, and a crop is that part of it.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .filters import Sprite, mean_over
from .geometry import (
    CAMERA_HEIGHT,
    CAR_SIZE,
    FAR,
    HORIZON,
    KERB,
    LANE,
    NEAR,
    VIEW,
    project,
    random_at,
)
from .sprites import car_sprite, sprites
from .textures import PANORAMA_ABOVE, PANORAMA_BELOW, PANORAMA_WIDTH, ground

if TYPE_CHECKING:
    from .scene import Scene

CHUNK = 8 * 64 * 128            # pixels rendered at a time
SUB_ROWS = 2                    # the ground is sampled at so many rows to a pixel
DASH_BEGIN, DASH_LENGTH, ROADSIDE = 1, 2, 100                       # salts of `random_at`
DASH_PERIOD = 13.0              # metres from one dash of the centre line to the next


@dataclass(frozen=True)
class RoadsideKind:
    """Objects of one kind beside the road: one cell of the road after another may hold one."""

    name: str
    cell: float                 # metres
    chance: float
    gap: float                  # metres from the kerb ...
    spread: float               # ... and up to so much more
    height: float               # metres


ROADSIDE_KINDS = (
    RoadsideKind("tree", 9, 0.55, 3.0, 6, 7.0), RoadsideKind("fir", 11, 0.4, 5.0, 9, 8.0),
    RoadsideKind("post", 18, 0.8, 0.6, 0.2, 1.0), RoadsideKind("sign", 45, 0.6, 0.9, 0.4, 2.6),
    RoadsideKind("house", 34, 0.45, 8.0, 6, 7.0), RoadsideKind("lamp", 38, 0.5, 0.8, 0.1, 6.5))


@dataclass(frozen=True)
class Glow:
    """Lamps that shine at night: positions in the sprite, size as a share of its width, colour."""

    positions: tuple[tuple[float, float], ...]
    size: float
    colour: tuple[float, float, float]


GLOWS = {"rear": Glow(((0.14, 0.55), (0.86, 0.55)), 0.085, (1.0, 0.22, 0.16)),
         "front": Glow(((0.15, 0.6), (0.85, 0.6)), 0.11, (1.0, 0.95, 0.8)),
         "lamp": Glow(((0.6, 0.03),), 0.35, (1.0, 0.8, 0.45))}
# Brightness at night: signs and posts throw light back, cars are dimmer than their lamps.
AT_NIGHT = {"sign": 2.5, "post": 2.5, "lamp": 1.3, "rear": 0.7, "front": 0.9}
# What a car's lamps add to the road below it at night.
ON_THE_ROAD = {"rear": np.array([0.16, 0.01, 0.0], np.float32),
               "front": np.array([0.16, 0.15, 0.12], np.float32)}


def render(scene: Scene, times: np.ndarray, height: int = 64,
           crop: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Frames of a scene at times (t,): uint8 (t, h, w, 3); see `Scene.render`."""
    top, left, h, w = crop or (0, 0, height, 2 * height)
    inside = top >= 0 and left >= 0 and top + h <= height and left + w <= 2 * height
    if height < 8 or h < 1 or w < 1 or not inside:
        raise ValueError(f"a frame is at least 8 high, and the crop lies inside "
                         f"{height} x {2 * height}: got {crop}")
    times = np.asarray(times, float)
    travelled = scene.travelled(times)
    n = max(1, CHUNK // (h * w))
    parts = [_FrameWindow(scene, times[k:k + n], travelled[k:k + n], height, top, left, h, w)
             for k in range(0, len(times), n)]
    if not parts:
        return np.zeros((0, h, w, 3), np.uint8)
    return np.concatenate([part.render() for part in parts])


@dataclass(frozen=True)
class _Roadside:
    """Objects beside the road within reach of any frame of a window."""

    names: list[str]
    sprites: list[Sprite]
    rows: np.ndarray            # (n, 4): metres along, right of the centre line, width, height


@dataclass(frozen=True)
class _Visible:
    """An object of one frame, ready to be painted."""

    name: str
    sprite: Sprite
    box: tuple[float, float, float, float]      # x0, y0, x1, y1 in pixels of the window
    light: np.ndarray                           # (3,) float32, what its colours are multiplied by
    haze: np.ndarray                            # (3,) float32, what is added where it covers


class _FrameWindow:
    """A window of h x w pixels of frames that are `height` high, at some times.

    At these times (t,) the ego car is at s0 (t,) metres along the road.
    """

    def __init__(self, scene: Scene, times: np.ndarray, s0: np.ndarray, height: int, top: int,
                 left: int, h: int, w: int):
        self.scene, self.times, self.s0 = scene, times, s0
        self.height, self.top, self.left, self.h, self.w = height, top, left, h, w
        self.pixel = VIEW / height                                  # tangent
        self.pitch = scene.pitch(times)                             # (t,)
        self.ego = LANE / 2 + scene.lane_offset(times)              # (t,) right of the centre line
        # edges of rows and columns, as tangents: (t, h + 1) and (w + 1,)
        self.y = (top + np.arange(h + 1)) * self.pixel - HORIZON * VIEW - self.pitch[:, None]
        self.x = (left + np.arange(w + 1)) * self.pixel - VIEW

    def render(self) -> np.ndarray:
        """uint8 (t, h, w, 3)."""
        image = self.sky()
        self.add_ground(image)
        roadside = self.roadside()
        for k, frame in enumerate(image):
            for visible in self.visible_objects(k, roadside):
                self.paint(frame, visible)
        return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    # -- sky and ground ------------------------------------------------------------------------

    def sky(self) -> np.ndarray:
        """The panorama, shifted by the ego car's heading; zero below it: (t, h, w, 3)."""
        sums = self.scene.panorama
        n, m = sums.shape[0] - 1, sums.shape[1] - 1
        heading = self.scene.centre_line.slope(self.s0)
        frames = []
        for y, turn in zip(self.y, heading, strict=True):
            rows = (y + PANORAMA_ABOVE) / (PANORAMA_ABOVE + PANORAMA_BELOW) * n
            columns = ((self.x + turn) / PANORAMA_WIDTH + 0.5) * m
            frames.append(mean_over(sums, rows, columns))
        return np.stack(frames)

    def add_ground(self, image: np.ndarray) -> None:
        """Asphalt, marks and verge below the horizon, into image (t, h, w, 3) in place.

        Each row lies at its own distance; a pixel is the mean of SUB_ROWS rows.
        """
        sub_rows = np.arange(SUB_ROWS) / SUB_ROWS * self.pixel
        low = (self.y[:, :-1, None] + sub_rows).reshape(-1)         # of the rows of all frames
        high = low + self.pixel / SUB_ROWS
        rows = np.nonzero(high > 1e-4)[0]
        if not len(rows):
            return
        frame = rows // (self.h * SUB_ROWS)
        # the share of a row that lies below the horizon
        share = ((high - np.maximum(low, 0)) / (high - low)).clip(0, 1).astype(np.float32)
        steepest = CAMERA_HEIGHT / 400
        far = CAMERA_HEIGHT / np.maximum(low[rows], steepest)
        near = CAMERA_HEIGHT / np.maximum(high[rows], steepest)
        centre = (np.maximum(low, 0) + high)[rows] / 2
        z = CAMERA_HEIGHT / np.maximum(centre, steepest)
        colour = np.zeros((len(low), self.w, 3), np.float32)
        colour[rows] = self.ground_colour(self.s0[frame], self.ego[frame], near, far, z)
        colour[rows] *= share[rows, None, None]
        image *= 1 - share.reshape(-1, self.h, SUB_ROWS, 1, 1).mean(2)
        image += colour.reshape(-1, self.h, SUB_ROWS, self.w, 3).mean(2)

    def ground_colour(self, s0: np.ndarray, ego: np.ndarray, near: np.ndarray, far: np.ndarray,
                      z: np.ndarray) -> np.ndarray:
        """The colour of rows of ground at distance z that reach from near to far.

        All arguments are (rows,), in metres. Returns float32 (rows, w, 3).
        """
        scene = self.scene
        centre = 0.5 * (self.x[1:] + self.x[:-1])
        x = centre * z[:, None]                                     # metres right of the camera
        d = x - scene.lateral_offset(s0 + z, 0, s0, ego)[:, None]   # right of the centre line
        width = self.pixel * z                                      # of a pixel on the ground
        grey = ground().mean_over(s0 + z, far - near, d, width)
        asphalt, verge = grey[..., :1], grey[..., 1:]
        footprint = self.footprint(s0, ego, near, far, centre, width)
        d = _f32(d)
        off = np.abs(d)
        gravel = _cover_inside(KERB + 0.7, off, footprint)
        road = _cover_inside(KERB, off, footprint)
        dashes = _f32(self.dashes(s0 + near, s0 + far))[:, None, None]
        marks = (_cover_stripe(0.1, np.abs(off - (KERB - 0.35)), footprint)
                 + dashes * _cover_stripe(0.1, off, footprint))
        out = _f32(scene.grass) * verge
        out += gravel * (_f32([0.5, 0.47, 0.42]) * (0.6 + 0.4 * verge) - out)
        out += road * (_f32(scene.asphalt) * asphalt - out)
        out += marks * (_f32([0.95, 0.95, 0.92]) * (0.7 + 0.3 * asphalt) - out)
        out *= _f32(self.light_at(z[:, None], x))
        fog = _f32(1 - np.exp(-z / scene.haze_range))[:, None, None]
        return out + fog * (_f32(scene.haze) - out)

    def footprint(self, s0: np.ndarray, ego: np.ndarray, near: np.ndarray, far: np.ndarray,
                  centre: np.ndarray, width: np.ndarray) -> np.ndarray:
        """How wide the ground under a pixel is across the road, metres: float32 (rows, w).

        A row is as high as it is wide in the picture, and lines along the road lean there: over
        the height of a row they move by `lean` metres. centre (w,) are columns, as tangents.
        """
        moves = (self.scene.lateral_offset(s0 + far, 0, s0, ego)
                 - self.scene.lateral_offset(s0 + near, 0, s0, ego))
        lean = _f32(centre) * _f32(far - near)[:, None] - _f32(moves)[:, None]
        return np.sqrt(_f32(width)[:, None] ** 2 + lean ** 2)

    def dashes(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        """The share of the road from near to far that dashes of the centre line cover: (rows,).

        There is one dash in DASH_PERIOD metres; where it begins and how long it is is random.
        """
        k = np.floor(near / DASH_PERIOD)[:, None] + np.arange(3)
        begin = (k + 0.4 * random_at(self.scene.seed, DASH_BEGIN, k)) * DASH_PERIOD
        end = begin + 3.5 + 3 * random_at(self.scene.seed, DASH_LENGTH, k)
        far = np.maximum(far, near + 1e-3)
        covered = np.minimum(far[:, None], end) - np.maximum(near[:, None], begin)
        return (covered.clip(0).sum(1) / (far - near)).clip(0, 1)

    def light_at(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The light on something at distance z and x to the right: (..., 3), or (3,) by day.

        By night there is the glimmer of the sky and the cone of the ego car's headlights.
        """
        if not self.scene.night:
            return self.scene.light
        across = (x / (1.1 + 0.26 * z)) ** 2
        beam = np.exp(-((z - 7).clip(0) / 20) ** 2 - across * across)
        return self.scene.light + beam[..., None] * np.array([1.0, 0.95, 0.8])

    # -- upright objects -----------------------------------------------------------------------

    def roadside(self) -> _Roadside:
        """What stands beside the road within reach of any frame of this window."""
        names, pictures, rows = [], [], []
        first, last = self.s0.min() + NEAR, self.s0.max() + FAR
        for i, kind in enumerate(ROADSIDE_KINDS):
            lit_house = kind.name == "house" and self.scene.night
            variants = sprites()["house at night" if lit_house else kind.name]
            aspect = np.array([sprite.shape[1] / sprite.shape[0] for sprite in variants])
            k = np.arange(np.floor(first / kind.cell), np.floor(last / kind.cell) + 1).astype(int)
            for side in (-1, 1):
                salts = [ROADSIDE + 20 * i + 2 * j + (side > 0) for j in range(5)]
                there, along, across, which, size = (random_at(self.scene.seed, salt, k)
                                                     for salt in salts)
                exists = there < kind.chance
                number = (which * len(variants)).astype(int)
                height = kind.height * (0.75 + 0.5 * size * (kind.name != "post"))
                s = (k + 0.1 + 0.8 * along) * kind.cell
                d = side * (KERB + kind.gap + kind.spread * across)
                names += [kind.name] * exists.sum()
                pictures += [variants[n] for n in number[exists]]
                rows.append(np.stack([s, d, height * aspect[number], height], -1)[exists])
        return _Roadside(names, pictures, np.concatenate(rows))

    def visible_objects(self, k: int, roadside: _Roadside) -> list[_Visible]:
        """The objects that can be seen in frame k of this window, far ones first."""
        scene, s0 = self.scene, self.s0[k]
        cars = scene.cars(self.times[k])
        names = roadside.names + ["front" if oncoming else "rear" for oncoming in cars[:, 4]]
        pictures = roadside.sprites + [car_sprite(bool(oncoming), int(kind), int(paint))
                                       for _, _, kind, paint, oncoming in cars]
        s, d, width, height = roadside.rows.T
        car_width, car_height = np.array(CAR_SIZE)[cars[:, 2].astype(int)].T
        z = np.concatenate([s - s0, cars[:, 0]])
        x = np.concatenate([scene.lateral_offset(s, d, s0, self.ego[k]), cars[:, 1]])
        boxes = project(np.maximum(z, 0.1), x, np.concatenate([width, car_width]),
                        np.concatenate([height, car_height]), self.pitch[k])
        boxes = boxes * (2 * [2 * self.height, self.height]) - 2 * [self.left, self.top]
        light = np.broadcast_to(self.light_at(z, x), (len(z), 3))
        if scene.night:
            light = light * np.array([AT_NIGHT.get(name, 1.0) for name in names])[:, None]
        fog = 1 - np.exp(-z / scene.haze_range)
        light = (light * (1 - fog)[:, None]).astype(np.float32)
        haze = (fog[:, None] * scene.haze).astype(np.float32)
        shown = (z > NEAR) & (z < FAR) & self.reaches(boxes)
        return [_Visible(names[i], pictures[i], tuple(boxes[i].tolist()), light[i], haze[i])
                for i in np.argsort(-z) if shown[i]]

    def reaches(self, boxes: np.ndarray) -> np.ndarray:
        """Which boxes (n, 4), in pixels of the window, have something to show there: bool (n,).

        Which objects a frame has is decided for the whole frame, so that a crop has the same: what
        stands beside the frame or covers less than a sixth of a pixel is left out. A shadow or a
        glow reaches beyond its object.
        """
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        whole = boxes + 2 * [self.left, self.top]
        in_frame = (_overlaps(whole[:, 0], whole[:, 2], 2 * self.height, 0.5 * width)
                    & _overlaps(whole[:, 1], whole[:, 3], self.height, 0)
                    & (width * height > 1 / 6))
        in_window = (_overlaps(boxes[:, 0], boxes[:, 2], self.w, width + 2)
                     & _overlaps(boxes[:, 1], boxes[:, 3], self.h, 0.7 * height + 2))
        return in_frame & in_window

    def paint(self, image: np.ndarray, thing: _Visible) -> None:
        """Paint an object over image (h, w, 3), in place: its shadow, itself, its lamps."""
        x0, y0, x1, y1 = thing.box
        width, height, middle = x1 - x0, y1 - y0, (x0 + x1) / 2
        if thing.name in ("rear", "front"):
            weight, where = self.spot(middle, y1, 0.42 * width, 0.08 * height)
            image[where] *= 1 - 0.85 * weight                       # the dark below the car
            if self.scene.night:
                below = y1 + 0.15 * height
                weight, where = self.spot(middle, below, 0.5 * width, 0.16 * height)
                image[where] += weight * ON_THE_ROAD[thing.name]
        i0, i1 = max(0, int(x0)), min(self.w, int(x1) + 1)
        j0, j1 = max(0, int(y0)), min(self.h, int(y1) + 1)
        if i0 < i1 and j0 < j1:
            rows, columns = np.arange(j0, j1 + 1) - y0, np.arange(i0, i1 + 1) - x0
            rgba = thing.sprite.resample(rows, columns, height, width)
            part, cover = image[j0:j1, i0:i1], rgba[..., 3:]
            part *= 1 - cover
            part += rgba[..., :3] * thing.light + cover * thing.haze
        if self.scene.night and thing.name in GLOWS:
            self.add_glow(image, thing, GLOWS[thing.name])

    def add_glow(self, image: np.ndarray, thing: _Visible, glow: Glow) -> None:
        """The light of an object's lamps around them, less with distance, into image in place."""
        x0, y0, x1, y1 = thing.box
        size = glow.size * (x1 - x0)
        clear = 1 - thing.haze.sum() / self.scene.haze.sum()
        for u, v in glow.positions:
            weight, where = self.spot(x0 + u * (x1 - x0), y0 + v * (y1 - y0), size, size)
            image[where] += weight * (np.array(glow.colour, np.float32) * clear)

    def spot(self, x: float, y: float, sx: float,
             sy: float) -> tuple[np.ndarray, tuple[slice, slice]]:
        """A soft spot around (x, y) of deviations sx, sy, in pixels.

        It is at least half a pixel large, and fainter in return. Returns its weights (h', w', 1)
        and the part of the window that they belong to.
        """
        fade = min(1, sx / 0.5) * min(1, sy / 0.5)
        sx, sy = max(sx, 0.5), max(sy, 0.5)
        j0, j1 = self.pixels_between(y - 3 * sy, y + 3 * sy, self.top, self.h)
        i0, i1 = self.pixels_between(x - 3 * sx, x + 3 * sx, self.left, self.w)
        v = (np.arange(j0, j1, dtype=np.float32) + (0.5 - y)) / sy
        u = (np.arange(i0, i1, dtype=np.float32) + (0.5 - x)) / sx
        weight = fade * np.exp(-0.5 * v ** 2)[:, None] * np.exp(-0.5 * u ** 2)
        return weight[..., None], (slice(j0, j1), slice(i0, i1))

    @staticmethod
    def pixels_between(low: float, high: float, offset: int, size: int) -> tuple[int, int]:
        """First pixel and end of a range, in pixels of the window, cut off at its edges.

        The range is rounded in pixels of the whole frame (`offset` is where the window begins), so
        that it is the same in a crop.
        """
        first = max(0, max(0, int(low + offset)) - offset)
        end = min(size, int(high + offset) + 1 - offset)
        return first, max(0, end)


def _f32(x: np.ndarray | list[float]) -> np.ndarray:
    return np.asarray(x, np.float32)


def _overlaps(low: np.ndarray, high: np.ndarray, size: int,
              margin: np.ndarray | float) -> np.ndarray:
    """Which intervals from low to high, with a margin on both sides, overlap the one to size."""
    return (high + margin > 0) & (low - margin < size)


def _cover_inside(edge: float, off: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """The share of each pixel's footprint nearer to the centre line than `edge`: (rows, w, 1).

    off: (rows, w) distance of its middle from the centre line; footprint: its width; metres.
    """
    return ((edge - off) / footprint + 0.5).clip(0, 1)[..., None]


def _cover_stripe(half: float, off: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """The share of each pixel's footprint on a stripe, `half` wide to each side: (rows, w, 1).

    off: (rows, w) distance of its middle from the middle of the stripe, metres.
    """
    share = ((half - off) / footprint + 0.5).clip(0, 1)
    return np.minimum(share, 2 * half / footprint)[..., None]
