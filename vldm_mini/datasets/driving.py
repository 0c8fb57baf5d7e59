"""A dash-cam world that the package renders itself, standing in for the paper's in-house driving set (section 4.1).

    scene = Scene(seed=3)                                     # or Scene(3, night=True, traffic=0.8)
    frames = scene.render(times, height=64)                   # uint8 (t h 2h 3); times in seconds, any of them
    boxes = scene.boxes(times[0])                             # (n, 5): x0 y0 x1 y1 in [0, 1], share that is visible
    scene.labels(times)                                       # night, cars in sight, ego speed, steering; per frame
    train, held_out = clips("train", 1500), clips("held_out", 40)                           # as of real video

Everything is a function of (seed, time, place in the picture): a scene has no length, no frame rate and no resolution
of its own. Each pixel is the mean over its square, not a point: 32x64 and 256x512 are the same picture, and a `crop`
is that part of it. Chapters 03 to 09 run on it. Its pictures are made in `scenery`.

MINI: the paper's clips are real. Here the truth is known: who drives where, in which light, at which speed.
"""
from dataclasses import dataclass

import numpy as np
import torch

from .scenery import BELOW, CAR_SIZE, HIGH, PAINT, WIDE, ground, horizon, mean_over, sprites, waves

# Metres, seconds, and tangents of angles: a pixel looks along (x, y, 1), x to the right, y down.
CAMERA_HEIGHT, HORIZON = 1.35, 0.42           # the horizon lies at this share of the height
VIEW = 0.6                                    # tangent of half the horizontal view; frames are twice as wide as high
NEAR, FAR = 2.5, 110.0                        # objects are drawn between these distances
LANE, KERB = 3.5, 4.1                         # width of a lane; edge of the asphalt from the middle of the road
MAX_SPEED = 12.0
TICK = 1 / 60                                 # the ego car's speed is summed up on this grid
MIN_BOX = 8 / 128                             # a car is "in sight" if it is so wide (share of the width) ...
MIN_VISIBLE = 0.5                             # ... and so much of it is not hidden

# what stands beside the road: name, metres a cell, chance that one is there, distance from the kerb, spread, height
SCENERY = (("tree", 9, 0.55, 3.0, 6, 7.0), ("fir", 11, 0.4, 5.0, 9, 8.0), ("post", 18, 0.8, 0.6, 0.2, 1.0),
           ("sign", 45, 0.6, 0.9, 0.4, 2.6), ("house", 34, 0.45, 8.0, 6, 7.0), ("lamp", 38, 0.5, 0.8, 0.1, 6.5))
# what shines at night: where in the picture, how wide (share of it), which colour
LIT = {"rear": ((0.14, 0.55), (0.86, 0.55), 0.085, (1.0, 0.22, 0.16)),
       "front": ((0.15, 0.6), (0.85, 0.6), 0.11, (1.0, 0.95, 0.8)), "lamp": ((0.6, 0.03), 0.35, (1.0, 0.8, 0.45))}
# at night signs and posts throw light back, and cars are dimmer than their lamps; what their lamps add to the road
AT_NIGHT = {"sign": 2.5, "post": 2.5, "lamp": 1.3, "rear": 0.7, "front": 0.9}
GLEAM = {"rear": np.array([0.16, 0.01, 0.0], np.float32), "front": np.array([0.16, 0.15, 0.12], np.float32)}

# MINI: worlds to train on and to judge by never meet: each split has its own million of seeds
SPLITS = {"train": 0, "held_out": 1_000_000, "classifiers": 2_000_000}


def seeds(split, n, first=0):
    """n seeds of a split: "train", "held_out", or "classifiers" (what classifiers learn from). -> list of int."""
    if split not in SPLITS or not 0 <= first <= first + n <= 1_000_000:
        raise ValueError(f"splits are {', '.join(SPLITS)}, of a million seeds each; got {split!r}, "
                         f"{first} to {first + n}")
    return list(range(SPLITS[split] + first, SPLITS[split] + first + n))


# ---------------------------------------------------------------------------------------------------------------------
# As a set of clips.

KEY_FPS = 1.875                                # of key frames: every 16th of 30
MOST_CARS = 4
WORDS = (("light", ("day", "night")), ("cars", (*map(str, range(MOST_CARS)), f"{MOST_CARS} or more")))


@dataclass(frozen=True)
class Drive:
    """One clip. Its frames are drawn when they are asked for: what is kept of it is a seed."""
    seed: int
    length: int = 16
    height: int = 64
    fps: float = KEY_FPS
    start: float = 0.0                         # seconds into the drive

    @property
    def name(self):
        when = "" if (self.fps, self.start) == (KEY_FPS, 0) else f"-{self.fps:g}-{self.start:g}"
        return f"driving/{self.seed:07d}-{self.length}x{self.height}{when}"

    @property
    def scene(self):
        return Scene(self.seed)

    @property
    def times(self):
        return self.start + np.arange(self.length) / self.fps

    @property
    def frames(self):
        """uint8 (t h 2h 3)."""
        return torch.from_numpy(self.scene.render(self.times, self.height))

    @property
    def boxes(self):
        """Of each frame the cars in sight, far ones first: [(n, 4) x0 y0 x1 y1 in [0, 1]]."""
        return [in_sight(boxes) for boxes in map(self.scene.boxes, self.times)]

    def labels(self, boxes=None):
        """Of each frame the light (0 day, 1 night) and the cars in sight, no more than MOST_CARS: long (t, 2)."""
        cars = [min(len(some), MOST_CARS) for some in (self.boxes if boxes is None else boxes)]
        night = int(self.scene.night)
        return torch.tensor([(night, n) for n in cars])


def clips(split, n, length=16, height=64, first=0):
    """n clips of a split (see `seeds`), `length` key frames each. -> [Drive]."""
    return [Drive(seed, length, height) for seed in seeds(split, n, first)]


def summary(n=40):
    """A few lines on the set, counted over n training clips."""
    some = torch.cat([clip.labels() for clip in clips("train", n)])
    lines = ["driving: rendered by this package, as many clips of as many frames and pixels as asked for"]
    for k, (name, classes) in enumerate(WORDS):
        share = [f"{word} ({float((some[:, k] == i).float().mean()):.0%})" for i, word in enumerate(classes)]
        lines.append(f"  {name}: " + ", ".join(share))
    lines += [f"  key frames: {KEY_FPS:g} a second; also known of every frame: a box of each car, speed, steering",
              f"  seeds: a million each of {', '.join(SPLITS)}", "  licence: Apache-2.0, as the code that draws it"]
    return "\n".join(lines)


def in_sight(boxes):
    """Of the boxes (n, 5) of a frame those of cars in sight: wide enough, and not hidden. -> (m, 4)."""
    return boxes[(boxes[:, 2] - boxes[:, 0] >= MIN_BOX) & (boxes[:, 4] >= MIN_VISIBLE), :4]


def _hash(seed, salt, k):
    """Uniform in [0, 1), an array like k (integers): the same tree stands there whenever one drives by.

    splitmix64 (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        x = np.asarray(k, dtype=np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.uint64((seed * 0xD1B54A32D192ED03 + salt * 0x8CB92BA72F3D8DD7) % 2 ** 64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) / 2.0 ** 64


# ---------------------------------------------------------------------------------------------------------------------
# A scene: who is where at which time.


class Scene:
    """One drive, from one seed. night: bool, traffic: 0 (an empty road) to 1 (crowded); None: as the seed has it."""

    def __init__(self, seed, night=None, traffic=None):
        if traffic is not None and not 0 <= traffic <= 1:
            raise ValueError(f"traffic lies in 0 (an empty road) to 1 (crowded), got {traffic}")
        rng, self.seed = np.random.default_rng((17, seed)), int(seed)
        dark, busy = rng.random() < 0.4, max(0.0, rng.uniform(-0.3, 1.0))
        self.night, self.traffic = bool(dark if night is None else night), float(busy if traffic is None else traffic)
        # the middle of the road, m to the right of a straight line, as a function of the way s; the ego car's course
        self.middle, self.heading = waves(rng, (170, 410, 900), (0.9, 7, 18))
        self.wobble, _ = waves(rng, (4.3, 9.7), (0.1, 0.18))
        self.shake, _ = waves(rng, (0.31, 0.73, 1.9), (0.0008, 0.0015, 0.002))
        self._mean, (self._surge, _) = rng.uniform(2, 11), waves(rng, (8, 19, 37), (0.9, 2.2, 3.6))
        self._start, self._gap = rng.uniform(0, 5000), waves(rng, (7, 17), (1.0, 2.0))[0]
        self._oncoming, self._parked = rng.uniform(5, 10), rng.random() < 0.5
        self._leaders = int((rng.random(2) < 1.6 * self.traffic).sum())
        self._colours(rng)
        self.horizon = horizon(rng, self.night, self.sky, self.light, self.haze, self.grass)

    def _colours(self, rng):
        """Light, sky and haze."""
        if self.night:
            self.light, self.sky = np.array([0.2, 0.21, 0.27]), np.array([[0.02, 0.03, 0.07], [0.09, 0.08, 0.13]])
            self.haze, self.haze_m = np.array([0.05, 0.05, 0.08]), rng.uniform(120, 300)
        else:
            warm, grey = rng.uniform(0, 1), rng.uniform(0, 1)
            self.light = np.array([1, 0.97, 0.93]) ** (1 + warm) * rng.uniform(0.85, 1.05)
            top = (1 - grey) * np.array([0.28, 0.48, 0.8]) + grey * np.array([0.6, 0.63, 0.67])
            low = (1 - grey) * np.array([0.78, 0.85, 0.92]) + grey * np.array([0.76, 0.77, 0.78])
            self.sky, self.haze, self.haze_m = np.stack([top, low]) * self.light, low * self.light, rng.uniform(70, 350)
        self.grass = np.array([[0.3, 0.38, 0.18], [0.42, 0.4, 0.22], [0.36, 0.33, 0.26]][rng.integers(3)])
        self.asphalt = np.array([0.36, 0.36, 0.37]) * rng.uniform(0.75, 1.15)

    # -- where the ego car is, and how fast ---------------------------------------------------------------------------

    def speed(self, times):
        """Ego speed, m/s, 0 to 12; stops included. times (t,), s -> (t,)."""
        return np.clip(self._mean + self._surge(np.asarray(times, float)), 0, MAX_SPEED)

    def way(self, times):
        """How far along the road the ego car is, m. times (t,) not negative -> (t,)."""
        times = np.asarray(times, float)
        if times.size and times.min() < 0:
            raise ValueError("a scene begins at time 0: give times that are not negative")
        grid = np.arange(0, (times.max() if times.size else 0) + 2 * TICK, TICK)
        speed = self.speed(grid)
        sums = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2)]) * TICK
        return self._start + np.interp(times, grid, sums)

    def steering(self, times):
        """Curvature of the road under the ego car, 1/m, positive to the right. -> (t,)."""
        s = self.way(times)
        return (self.heading(s + 1) - self.heading(s - 1)) / 2

    def labels(self, times):
        """What is true of each frame: night bool, cars int (in sight), speed m/s, steering 1/m; each (t,)."""
        cars = [len(in_sight(self.boxes(t))) for t in np.asarray(times, float)]
        return dict(night=np.full(len(cars), self.night), cars=np.array(cars, int), speed=self.speed(times),
                    steering=self.steering(times))

    def caption(self, time=0.0, wording=0):
        """The labels at a moment in words; `wording` chooses one of several ways to say them."""
        cars = int(self.labels([time])["cars"][0])
        when = ("at night", "in the dark", "after sunset") if self.night else ("by day", "in daylight", "before dusk")
        road = ("an empty road", "a road with one other car", "a road with a few cars", "a crowded road")[
            0 if cars == 0 else 1 if cars == 1 else 2 if cars < 5 else 3]
        ways = ("{road}, {when}", "a dash-cam view of {road} {when}", "driving on {road} {when}", "{when}: {road}")
        return ways[wording % len(ways)].format(road=road, when=when[wording % len(when)])

    def to_the_side(self, s, d, s0, ego):
        """Where a point of the road, d to the right of its middle at way s, is seen from s0: metres to the right."""
        return self.middle(s) - self.middle(s0) - self.heading(s0) * (s - s0) + d - ego

    # -- who else is there --------------------------------------------------------------------------------------------

    def cars(self, time):
        """Other cars in reach, far ones first: (n, 5) distance, m to the right, kind, paint, 1 if seen from ahead."""
        (s0,), speed = self.way([time]), float(self.speed(time))
        k = np.arange(self._leaders)
        gap = 5.5 + 0.5 * speed + float(self._gap(time)) * (1 + speed) / 8 + 13 * k
        found = [(s0 + gap, np.full(len(k), LANE / 2), *self._look(5, k), 0 * k)]
        flows = [(16, 0.85 * self.traffic, -LANE / 2, -self._oncoming * time, 6, 1),
                 (9, 0.7 * self.traffic * self._parked, KERB + 0.9, 0, 7, 0)]
        for cell, chance, d, moved, salt, ahead in flows:
            # cars of a flow drive at one speed: car k keeps its place in the flow, whenever one looks
            k = np.arange(np.floor((s0 - moved) / cell), np.ceil((s0 - moved + FAR) / cell)).astype(int)
            k = k[_hash(self.seed, salt, k) < chance]
            s = (k + 0.15 + 0.35 * _hash(self.seed, salt + 10, k)) * cell + moved
            found.append((s, np.full(len(k), d), *self._look(salt + 20, k), np.full(len(k), ahead)))
        s, d, kind, paint, ahead = (np.concatenate(column) for column in zip(*found))
        x = self.to_the_side(s, d, s0, LANE / 2 + float(self.wobble(time)))
        rows = np.stack([s - s0, x, kind, paint, ahead], -1)[np.argsort(s0 - s, kind="stable")]
        return rows[(rows[:, 0] > NEAR) & (rows[:, 0] < FAR)]

    def _look(self, salt, k):
        """Kind and paint of cars k (n,)."""
        return ((_hash(self.seed, salt, k) * 2.5).astype(int), (_hash(self.seed, salt + 1, k) * len(PAINT)).astype(int))

    def boxes(self, time):
        """The cars of a frame, far ones first: (n, 5) x0 y0 x1 y1 as shares of width and height, and the share of the
        box that is in the picture and not behind a nearer car."""
        cars = self.cars(time)
        full = _place(cars[:, 0], cars[:, 1], *np.array(CAR_SIZE)[cars[:, 2].astype(int)].T, self.pitch(time))
        return np.concatenate([full.clip(0, 1), _visible(full)[:, None]], 1) if len(full) else np.zeros((0, 5))

    def pitch(self, time):
        """How far the picture is shaken down, as a tangent."""
        return self.shake(np.asarray(time)) * self.speed(time) / MAX_SPEED

    # -- drawing ------------------------------------------------------------------------------------------------------

    def render(self, times, height=64, crop=None):
        """Frames of any height, twice as wide. crop: top, left, height, width in pixels of it. uint8 (t h w 3)."""
        top, left, h, w = crop or (0, 0, height, 2 * height)
        if height < 8 or top < 0 or left < 0 or h < 1 or w < 1 or top + h > height or left + w > 2 * height:
            raise ValueError(f"a frame is at least 8 high, and the crop lies inside {height} x {2 * height}: "
                             f"got {crop}")
        times, some = np.asarray(times, float), max(1, 8 * 64 * 128 // (h * w))                 # frames at a time
        way = self.way(times)
        films = [_Film(self, times[k:k + some], way[k:k + some], height, top, left, h, w).draw()
                 for k in range(0, len(times), some)]
        return np.concatenate(films) if films else np.zeros((0, h, w, 3), np.uint8)


def _place(z, x, width, height, pitch):
    """Things of that size at distance z and x to the right -> x0 y0 x1 y1 (..., 4), shares of the frame's sides."""
    foot, half = HORIZON + (CAMERA_HEIGHT / z + pitch) / VIEW, width / 2
    return np.stack([0.5 + (x - half) / z / (2 * VIEW), foot - height / z / VIEW,
                     0.5 + (x + half) / z / (2 * VIEW), foot], -1)


def _visible(boxes, n=24):
    """The share of each box (far ones first) inside the frame and outside nearer boxes, on an n x n grid."""
    at = (np.arange(n) + 0.5) / n
    x = boxes[:, 0, None] + (boxes[:, 2] - boxes[:, 0])[:, None] * at
    y = boxes[:, 1, None] + (boxes[:, 3] - boxes[:, 1])[:, None] * at
    within = lambda v, low, high: (v >= low) & (v <= high)                                              # noqa: E731
    seen = within(y, 0, 1)[:, :, None] & within(x, 0, 1)[:, None]
    for i in range(len(boxes)):
        for b in boxes[i + 1:]:
            seen[i] &= ~(within(y[i], b[1], b[3])[:, None] & within(x[i], b[0], b[2])[None])
    return seen.mean((1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Drawing: sky, ground, then what stands on it, far things first.

class _Film:
    """A window of h x w pixels of frames that are `height` high, at some times, at which the ego car is at s0."""

    def __init__(self, scene, times, s0, height, top, left, h, w):
        self.scene, self.times, self.s0, self.h, self.w = scene, times, s0, h, w
        self.pixel, self.height, self.top, self.left = VIEW / height, height, top, left
        self.pitch, self.ego = scene.pitch(times), LANE / 2 + scene.wobble(times)                               # (t,)
        # edges of rows and columns, as tangents
        self.y = (top + np.arange(h + 1)) * self.pixel - HORIZON * VIEW - self.pitch[:, None]               # (t, h + 1)
        self.x = (left + np.arange(w + 1)) * self.pixel - VIEW                                                # (w + 1,)

    def draw(self):
        """uint8 (t h w 3)."""
        image = self.ground(self.sky())
        for frame, things in zip(image, self.things()):
            for thing in things:
                self.stand(frame, *thing)
        return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def sky(self):
        """The panorama, shifted by where the car is heading; zero below it: there is ground. (t h w 3)."""
        sums = self.scene.horizon
        n, m = sums.shape[0] - 1, sums.shape[1] - 1
        heading = self.scene.heading(self.s0)
        return np.stack([mean_over(sums, (y + HIGH) / (HIGH + BELOW) * n, ((self.x + turn) / WIDE + 0.5) * m)
                         for y, turn in zip(self.y, heading)])

    def ground(self, image, fine=2):
        """Asphalt, marks, verge under the sky: each row at its distance, `fine` sub-rows a pixel."""
        edges = (self.y[:, :-1, None] + np.arange(fine) / fine * self.pixel).reshape(-1)        # of all frames' rows
        low, high = edges, edges + self.pixel / fine
        rows = np.nonzero(high > 1e-4)[0]
        if not len(rows):
            return image
        frame = rows // (self.h * fine)
        part = ((high - np.maximum(low, 0)) / (high - low)).clip(0, 1).astype(np.float32)     # of a row is ground
        far, near = (CAMERA_HEIGHT / np.maximum(v[rows], CAMERA_HEIGHT / 400) for v in (low, high))
        z = CAMERA_HEIGHT / np.maximum((np.maximum(low, 0) + high)[rows] / 2, CAMERA_HEIGHT / 400)
        full = np.zeros((len(edges), self.w, 3), np.float32)
        full[rows] = self.shade(self.s0[frame], self.ego[frame], near, far, z) * part[rows, None, None]
        image *= 1 - part.reshape(-1, self.h, fine, 1, 1).mean(2)
        image += full.reshape(-1, self.h, fine, self.w, 3).mean(2)
        return image

    def shade(self, s0, ego, near, far, z):
        """Colour of the ground in rows at distance z that reach from near to far. All (rows,) -> (rows w 3)."""
        scene, f32 = self.scene, lambda x: np.asarray(x, np.float32)
        centre = 0.5 * (self.x[1:] + self.x[:-1])
        # metres to the right of the middle of the road
        d = centre * z[:, None] - scene.to_the_side(s0 + z, 0, s0, ego)[:, None]
        width = self.pixel * z                                                          # of a pixel, on the ground
        asphalt, verge = np.split(ground().mean_over(s0 + z, far - near, d, width), 2, -1)
        # a pixel's height also covers some of the way across, since the lines on the ground lean
        lean = scene.to_the_side(s0 + far, 0, s0, ego) - scene.to_the_side(s0 + near, 0, s0, ego)
        lean = f32(centre) * f32(far - near)[:, None] - f32(lean)[:, None]
        d, off, width = f32(d), f32(np.abs(d)), np.sqrt(f32(width)[:, None] ** 2 + lean ** 2)
        inside = lambda edge: ((edge - off) / width + 0.5).clip(0, 1)[..., None]                        # noqa: E731
        stripe = lambda half, off: np.minimum(((half - off) / width + 0.5).clip(0, 1),                  # noqa: E731
                                              2 * half / width)[..., None]
        out = f32(scene.grass) * verge
        out += inside(KERB + 0.7) * (f32([0.5, 0.47, 0.42]) * (0.6 + 0.4 * verge) - out)                   # gravel
        out += inside(KERB) * (f32(scene.asphalt) * asphalt - out)
        dashes = f32(self.dashes(s0 + near, s0 + far))[:, None, None]
        white = stripe(0.1, np.abs(off - (KERB - 0.35))) + dashes * stripe(0.1, off)
        out += white * (f32([0.95, 0.95, 0.92]) * (0.7 + 0.3 * asphalt) - out)
        out *= f32(self.lit(z[:, None], centre * z[:, None]))
        fog = f32(1 - np.exp(-z / scene.haze_m))[:, None, None]
        return out + fog * (f32(scene.haze) - out)

    def dashes(self, near, far):
        """How much of the way from near to far the dashes of the middle line cover, (rows,): one dash in 13 m, its
        place and length at random."""
        k = np.floor(near / 13)[:, None] + np.arange(3)
        begin = (k + 0.4 * _hash(self.scene.seed, 1, k)) * 13
        end, far = begin + 3.5 + 3 * _hash(self.scene.seed, 2, k), np.maximum(far, near + 1e-3)
        covered = (np.minimum(far[:, None], end) - np.maximum(near[:, None], begin)).clip(0).sum(1)
        return (covered / (far - near)).clip(0, 1)

    def lit(self, z, x):
        """The light on something at z, x: daylight, or the glimmer of the night and one's own beam. -> (..., 3)."""
        if not self.scene.night:
            return self.scene.light
        across = (x / (1.1 + 0.26 * z)) ** 2                                        # a cone with an edge
        beam = np.exp(-((z - 7).clip(0) / 20) ** 2 - across * across)
        return self.scene.light + beam[..., None] * np.array([1.0, 0.95, 0.8])

    def things(self):
        """For each frame what there is to be drawn, far things first: [[(arguments of `stand`), ...], ...]."""
        beside = self.beside()
        return [self.project(time, s0, ego, pitch, beside)
                for time, s0, ego, pitch in zip(self.times, self.s0, self.ego, self.pitch)]

    def beside(self):
        """What stands beside the road in reach of any frame: names, pictures, and an array (n, 4) of way, metres to the
        right of the middle of the road, width, height."""
        seed, names, pictures, at = self.scene.seed, [], [], []
        first, last = self.s0.min() + NEAR, self.s0.max() + FAR
        for salt, (name, cell, chance, off, spread, tall) in enumerate(SCENERY):
            k = np.arange(np.floor(first / cell), np.floor(last / cell) + 1).astype(int)
            some = sprites()[name + " at night" if name == "house" and self.scene.night else name]
            for side in (-1, 1):
                u = [_hash(seed, 100 + 20 * salt + 2 * j + (side > 0), k) for j in range(5)]
                there = u[0] < chance
                number, high = (u[3] * len(some)).astype(int), tall * (0.75 + 0.5 * u[4] * (name != "post"))
                wide = high * np.array([sprite.shape[1] / sprite.shape[0] for sprite in some])[number]
                s, d = (k + 0.1 + 0.8 * u[1]) * cell, side * (KERB + off + spread * u[2])
                names += [name] * there.sum()
                pictures += [some[i] for i in number[there]]
                at.append(np.stack([s, d, wide, high], -1)[there])
        return names, pictures, np.concatenate(at)

    def project(self, time, s0, ego, pitch, beside):
        """What is in sight at a moment -> [(name, picture, its box in pixels, light, fog), ...], far things first."""
        scene, (names, pictures, at) = self.scene, beside
        cars = scene.cars(time)
        z, x = at[:, 0] - s0, scene.to_the_side(at[:, 0], at[:, 1], s0, ego)
        names = names + ["front" if ahead else "rear" for ahead in cars[:, 4]]
        pictures = pictures + [sprites()[name][int(kind) * len(PAINT) + int(paint)]
                               for name, (kind, paint) in zip(names[len(z):], cars[:, 2:4])]
        size = np.concatenate([at[:, 2:], np.array(CAR_SIZE)[cars[:, 2].astype(int)]])
        z, x = np.concatenate([z, cars[:, 0]]), np.concatenate([x, cars[:, 1]])
        boxes = _place(np.maximum(z, 0.1), x, *size.T, pitch)
        boxes = boxes * (2 * [2 * self.height, self.height]) - 2 * [self.left, self.top]
        # a glow reaches beyond its lamp; what covers less than a sixth of a pixel is left out
        reach = 0.5 * (boxes[:, 2] - boxes[:, 0])
        seen = (z > NEAR) & (z < FAR) & (boxes[:, 2] + reach > 0) & (boxes[:, 0] - reach < self.w) \
            & (boxes[:, 1] < self.h) & (boxes[:, 3] > 0) & ((boxes[:, 2:] - boxes[:, :2]).prod(1) > 1 / 6)
        light = np.broadcast_to(self.lit(z, x), (len(z), 3))
        if scene.night:
            light = light * np.array([AT_NIGHT.get(name, 1.0) for name in names])[:, None]
        fog = 1 - np.exp(-z / scene.haze_m)
        light, haze = light * (1 - fog)[:, None], fog[:, None] * scene.haze
        rgba = np.stack([light, haze], 1).astype(np.float32)
        return [(names[i], pictures[i], boxes[i].tolist(), rgba[i]) for i in np.argsort(-z).tolist() if seen[i]]

    def stand(self, image, name, sprite, box, colour):
        """Put a picture into the frame. box: x0 y0 x1 y1 in pixels; colour: what it is multiplied by, and the haze."""
        x0, y0, x1, y1 = box
        if name in ("rear", "front"):                                                       # the dark under a car
            weight, where = self.bump((x0 + x1) / 2, y1, 0.42 * (x1 - x0), 0.08 * (y1 - y0))
            image[where] *= 1 - 0.85 * weight
            if self.scene.night:                                            # its lamps shine on the road before it
                weight, where = self.bump((x0 + x1) / 2, y1 + 0.15 * (y1 - y0), 0.5 * (x1 - x0), 0.16 * (y1 - y0))
                image[where] += weight * GLEAM[name]
        i0, i1, j0, j1 = max(0, int(x0)), min(self.w, int(x1) + 1), max(0, int(y0)), min(self.h, int(y1) + 1)
        if i0 < i1 and j0 < j1:
            rgba = sprite.draw(np.arange(j0, j1 + 1) - y0, np.arange(i0, i1 + 1) - x0, y1 - y0, x1 - x0)
            part, cover = image[j0:j1, i0:i1], rgba[..., 3:]
            part *= 1 - cover
            part += rgba[..., :3] * colour[0] + cover * colour[1]
        if self.scene.night and name in LIT:
            *lamps, size, shine = LIT[name]
            for u, v in lamps:
                weight, where = self.bump(x0 + u * (x1 - x0), y0 + v * (y1 - y0), *[size * (x1 - x0)] * 2)
                image[where] += weight * (np.array(shine, np.float32) * (1 - colour[1].sum() / self.scene.haze.sum()))

    def bump(self, x, y, sx, sy):
        """A soft spot around (x, y), of sizes sx, sy and at least half a pixel: its weights (h' w' 1), and where."""
        fade, sx, sy = min(1, sx / 0.5) * min(1, sy / 0.5), max(sx, 0.5), max(sy, 0.5)
        j0, j1 = max(0, int(y - 3 * sy)), max(0, min(self.h, int(y + 3 * sy) + 1))
        i0, i1 = max(0, int(x - 3 * sx)), max(0, min(self.w, int(x + 3 * sx) + 1))
        row = np.exp(-0.5 * ((np.arange(j0, j1, dtype=np.float32) + (0.5 - y)) / sy) ** 2)
        column = np.exp(-0.5 * ((np.arange(i0, i1, dtype=np.float32) + (0.5 - x)) / sx) ** 2)
        return (fade * row[:, None] * column)[..., None], (slice(j0, j1), slice(i0, i1))
