"""A scene of the dash-cam world: which car is where at which time, in which light.

Everything is a function of (seed, time): a scene has no length and no frame rate of its own.
"""
from copy import deepcopy
from functools import cached_property

import numpy as np

from . import renderer
from .geometry import (
    CAR_SIZE,
    FAR,
    KERB,
    LANE,
    MAX_SPEED,
    NEAR,
    in_sight,
    project,
    random_at,
    visible_share,
)
from .sprites import PAINT
from .textures import Waves, panorama

TICK = 1 / 60                   # the ego car's speed is summed up on this grid, s

# Salts of `random_at`: each names one independent set of random numbers of a scene.
LEADERS, ONCOMING, PARKED = 5, 6, 7
SPACING, APPEARANCE = 10, 20    # added to the salt of a flow of cars

CAPTIONS = ("{road}, {when}", "a dash-cam view of {road} {when}", "driving on {road} {when}",
            "{when}: {road}")
DAY_WORDS = ("by day", "in daylight", "before dusk")
NIGHT_WORDS = ("at night", "in the dark", "after sunset")


class Scene:
    """A road, its light and its traffic, from one seed.

    night: bool; traffic: 0 (an empty road) to 1 (crowded). None takes what the seed gives.
    Raises ValueError if traffic lies outside [0, 1].
    """

    def __init__(self, seed: int, night: bool | None = None, traffic: float | None = None):
        if traffic is not None and not 0 <= traffic <= 1:
            raise ValueError(f"traffic lies in 0 (an empty road) to 1 (crowded), got {traffic}")
        rng = np.random.default_rng((17, seed))
        self.seed = int(seed)
        seed_night = rng.random() < 0.4
        seed_traffic = max(0.0, rng.uniform(-0.3, 1.0))
        self.night = bool(seed_night if night is None else night)
        self.traffic = float(seed_traffic if traffic is None else traffic)
        # the centre line, metres to the right of a straight line, against metres along the road
        self.centre_line = Waves(rng, (170, 410, 900), (0.9, 7, 18))
        self.lane_offset = Waves(rng, (4.3, 9.7), (0.1, 0.18))      # of the ego car, against time
        self.camera_shake = Waves(rng, (0.31, 0.73, 1.9), (0.0008, 0.0015, 0.002))
        self._mean_speed = rng.uniform(2, 11)
        self._speed_change = Waves(rng, (8, 19, 37), (0.9, 2.2, 3.6))
        self._start = rng.uniform(0, 5000)
        self._gap_change = Waves(rng, (7, 17), (1.0, 2.0))
        self._oncoming_speed = rng.uniform(5, 10)
        self._has_parked_cars = rng.random() < 0.5
        self._num_leaders = int((rng.random(2) < 1.6 * self.traffic).sum())
        self._set_colours(rng)
        self._panorama_rng = rng

    def _set_colours(self, rng: np.random.Generator) -> None:
        """Light, sky (top and horizon), haze, its range in metres, grass and asphalt."""
        if self.night:
            self.light = np.array([0.2, 0.21, 0.27])
            self.sky = np.array([[0.02, 0.03, 0.07], [0.09, 0.08, 0.13]])
            self.haze, self.haze_range = np.array([0.05, 0.05, 0.08]), rng.uniform(120, 300)
        else:
            warm, grey = rng.uniform(0, 1), rng.uniform(0, 1)
            self.light = np.array([1, 0.97, 0.93]) ** (1 + warm) * rng.uniform(0.85, 1.05)
            top = (1 - grey) * np.array([0.28, 0.48, 0.8]) + grey * np.array([0.6, 0.63, 0.67])
            low = (1 - grey) * np.array([0.78, 0.85, 0.92]) + grey * np.array([0.76, 0.77, 0.78])
            self.sky = np.stack([top, low]) * self.light
            self.haze, self.haze_range = low * self.light, rng.uniform(70, 350)
        meadows = [[0.3, 0.38, 0.18], [0.42, 0.4, 0.22], [0.36, 0.33, 0.26]]
        self.grass = np.array(meadows[rng.integers(3)])
        self.asphalt = np.array([0.36, 0.36, 0.37]) * rng.uniform(0.75, 1.15)

    @cached_property
    def panorama(self) -> np.ndarray:
        """The picture of what is far away, painted when it is first rendered: boxes need none."""
        rng = deepcopy(self._panorama_rng)      # two threads that paint at once paint the same
        return panorama(rng, self.night, self.sky, self.light, self.haze, self.grass)

    # -- the ego car ---------------------------------------------------------------------------

    def speed(self, times: np.ndarray) -> np.ndarray:
        """Ego speed at times (t,): (t,) m/s, 0 to MAX_SPEED; it may stop."""
        change = self._speed_change(np.asarray(times, float))
        return np.clip(self._mean_speed + change, 0, MAX_SPEED)

    def travelled(self, times: np.ndarray) -> np.ndarray:
        """The ego car's position along the road at times (t,): (t,) metres.

        Raises ValueError if a time is negative.
        """
        times = np.asarray(times, float)
        if times.size and times.min() < 0:
            raise ValueError("a scene begins at time 0: give times that are not negative")
        grid = np.arange(0, (times.max() if times.size else 0) + 2 * TICK, TICK)
        speed = self.speed(grid)
        sums = np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2)]) * TICK
        return self._start + np.interp(times, grid, sums)

    def steering(self, times: np.ndarray) -> np.ndarray:
        """Curvature of the road under the ego car at times (t,): 1/m, positive to the right."""
        s = self.travelled(times)
        return (self.centre_line.slope(s + 1) - self.centre_line.slope(s - 1)) / 2

    def pitch(self, time: np.ndarray | float) -> np.ndarray:
        """How far the picture is shaken down at a time, as a tangent; 0 at a stop."""
        return self.camera_shake(np.asarray(time)) * self.speed(time) / MAX_SPEED

    def lateral_offset(self, s: np.ndarray, d: np.ndarray, s0: np.ndarray,
                       ego: np.ndarray) -> np.ndarray:
        """Metres to the right at which the camera sees a point of the road.

        The point lies at s metres along the road and d to the right of the centre line; the camera
        at s0 and ego, and it looks along the road at s0. All broadcast to one shape.
        """
        ahead = self.centre_line.slope(s0) * (s - s0)
        return self.centre_line(s) - self.centre_line(s0) - ahead + d - ego

    # -- other cars ----------------------------------------------------------------------------

    def cars(self, time: float) -> np.ndarray:
        """The other cars within reach at a time, far ones first.

        Returns (n, 5): distance, metres to the right, kind (of CAR_SIZE), paint (of PAINT), and 1
        if the car is oncoming, 0 if it is seen from behind.
        """
        (s0,) = self.travelled([time])
        moved = -self._oncoming_speed * time
        groups = [self._leaders(time, s0),
                  self._flow(ONCOMING, s0, 16, 0.85 * self.traffic, -LANE / 2, moved, oncoming=1)]
        parked = 0.7 * self.traffic * self._has_parked_cars
        groups.append(self._flow(PARKED, s0, 9, parked, KERB + 0.9, moved=0, oncoming=0))
        s, d, kind, paint, oncoming = np.concatenate(groups, axis=1)
        ego = LANE / 2 + float(self.lane_offset(time))
        x = self.lateral_offset(s, d, s0, ego)
        far_first = np.argsort(s0 - s, kind="stable")
        rows = np.stack([s - s0, x, kind, paint, oncoming], -1)[far_first]
        return rows[(rows[:, 0] > NEAR) & (rows[:, 0] < FAR)]

    def _leaders(self, time: float, s0: float) -> np.ndarray:
        """Cars ahead in the ego car's lane, at a gap that depends on its speed: (5, n)."""
        speed = float(self.speed(time))
        k = np.arange(self._num_leaders)
        gap = 5.5 + 0.5 * speed + float(self._gap_change(time)) * (1 + speed) / 8 + 13 * k
        kind, paint = self._appearance(LEADERS, k)
        return np.stack([s0 + gap, np.full(len(k), LANE / 2), kind, paint, np.zeros(len(k))])

    def _flow(self, salt: int, s0: float, cell: float, chance: float, offset: float, moved: float,
              oncoming: int) -> np.ndarray:
        """Cars that stand in one line and move at one speed: (5, n).

        The line consists of cells, `cell` metres long, of which each holds a car with some chance.
        It lies `offset` metres to the right of the centre line and has moved by `moved` metres:
        car k of the flow is the same car at any time.
        """
        first, last = (s0 - moved) / cell, (s0 - moved + FAR) / cell
        k = np.arange(np.floor(first), np.ceil(last)).astype(int)
        k = k[random_at(self.seed, salt, k) < chance]
        s = (k + 0.15 + 0.35 * random_at(self.seed, salt + SPACING, k)) * cell + moved
        kind, paint = self._appearance(salt + APPEARANCE, k)
        return np.stack([s, np.full(len(k), offset), kind, paint, np.full(len(k), oncoming)])

    def _appearance(self, salt: int, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Kind and paint of the cars k (n,). Vans are half as frequent as the other kinds."""
        kind = (random_at(self.seed, salt, k) * 2.5).astype(int)
        paint = (random_at(self.seed, salt + 1, k) * len(PAINT)).astype(int)
        return kind, paint

    # -- what is known of a frame --------------------------------------------------------------

    def boxes(self, time: float) -> np.ndarray:
        """The boxes of the cars of a frame, far ones first.

        Returns (n, 5): x0, y0, x1, y1 in [0, 1], shares of the frame's width and height; and the
        share of the unclipped box that lies in the frame and behind no nearer car.
        """
        cars = self.cars(time)
        if not len(cars):
            return np.zeros((0, 5))
        width, height = np.array(CAR_SIZE)[cars[:, 2].astype(int)].T
        full = project(cars[:, 0], cars[:, 1], width, height, self.pitch(time))
        return np.concatenate([full.clip(0, 1), visible_share(full)[:, None]], 1)

    def labels(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """What is true of each frame, for times (t,), as arrays (t,).

        night: bool; cars: int, those in sight; speed: m/s; steering: 1/m, positive to the right.
        """
        cars = [len(in_sight(self.boxes(time))) for time in np.asarray(times, float)]
        return {"night": np.full(len(cars), self.night), "cars": np.array(cars, int),
                "speed": self.speed(times), "steering": self.steering(times)}

    def caption(self, time: float = 0.0, wording: int = 0) -> str:
        """The labels of a moment in words; `wording` chooses one of several ways to say them."""
        cars = int(self.labels([time])["cars"][0])
        if cars == 0:
            road = "an empty road"
        elif cars == 1:
            road = "a road with one other car"
        else:
            road = "a road with a few cars" if cars < 5 else "a crowded road"
        words = NIGHT_WORDS if self.night else DAY_WORDS
        when = words[wording % len(words)]
        return CAPTIONS[wording % len(CAPTIONS)].format(road=road, when=when)

    def render(self, times: np.ndarray, height: int = 64,
               crop: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Frames at times (t,), `height` pixels high and twice as wide: uint8 (t, h, w, 3).

        crop: top, left, height and width in pixels of the part of the frame to render.
        Raises ValueError if the frame is less than 8 high or the crop lies outside it.
        """
        return renderer.render(self, times, height, crop)
