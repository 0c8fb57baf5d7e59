"""A dash-cam world that the package renders itself, standing in for the paper's in-house driving set (section 4.1).

    scene = Scene(seed=3)                                     # or Scene(3, night=True, traffic=0.8)
    frames = scene.render(times, height=64)                   # uint8 (t h 2h 3); times in seconds, any of them
    boxes = scene.boxes(times[0])                             # (n, 5): x0 y0 x1 y1 in [0, 1], share that is visible
    scene.labels(times)                                       # night, cars in sight, ego speed, steering; per frame

Everything is a function of (seed, time, place in the picture): a scene has no length, no frame rate and no resolution
of its own. Each pixel is the mean over its square, not a point: textures, edges, sprites are filtered to its size, so
that 32x64 and 256x512 are the same picture, and a `crop` is that part of it. Chapters 03 to 09 run on it.

MINI: the paper's clips are real. Here the truth is known: who drives where, in which light, at which speed.
"""
from functools import lru_cache

import numpy as np

# Metres, seconds, and tangents of angles: a pixel looks along (x, y, 1), x to the right, y down.
CAMERA_HEIGHT, HORIZON = 1.35, 0.42           # the horizon lies at this share of the height
VIEW = 0.6                                    # tangent of half the horizontal view; frames are twice as wide as high
NEAR, FAR = 2.5, 110.0                        # objects are drawn between these distances
LANE, KERB = 3.5, 4.1                         # width of a lane; edge of the asphalt from the middle of the road
MAX_SPEED = 12.0
TICK = 1 / 60                                 # the ego car's speed is summed up on this grid
MIN_BOX = 8 / 128                             # a car is "in sight" if it is so wide (share of the width) ...
MIN_VISIBLE = 0.5                             # ... and so much of it is not hidden


# MINI: worlds to train on and to judge by never meet: each split has its own million of seeds
SPLITS = {"train": 0, "held_out": 1_000_000, "judges": 2_000_000}


def seeds(split, n, first=0):
    """n seeds of a split: "train", "held_out", or "judges" (what the judges learn from). -> list of int."""
    if split not in SPLITS or not 0 <= first <= first + n <= 1_000_000:
        raise ValueError(f"splits are {', '.join(SPLITS)}, of a million seeds each; got {split!r}, "
                         f"{first} to {first + n}")
    return list(range(SPLITS[split] + first, SPLITS[split] + first + n))


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers that are a function of place: the same tree stands there whenever one drives by.

def _hash(seed, salt, k):
    """Uniform in [0, 1), an array like k (integers). splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(k, dtype=np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.uint64((seed * 0xD1B54A32D192ED03 + salt * 0x8CB92BA72F3D8DD7) % 2 ** 64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (x ^ (x >> np.uint64(31))) / 2.0 ** 64


def _waves(rng, periods, amplitudes):
    """A smooth random function and its derivative: a sum of sines. periods and amplitudes, one a wave."""
    phase, turn = rng.uniform(0, 2 * np.pi, len(periods)), 2 * np.pi / np.asarray(periods)
    a = np.asarray(amplitudes) * rng.uniform(0.6, 1.0, len(periods))
    value = lambda x: (a * np.sin(np.multiply.outer(x, turn) + phase)).sum(-1)                          # noqa: E731
    slope = lambda x: (a * turn * np.cos(np.multiply.outer(x, turn) + phase)).sum(-1)                   # noqa: E731
    return value, slope


# ---------------------------------------------------------------------------------------------------------------------
# Filtering: the mean of a texture over a pixel.

def _pyramid(image):
    """A picture (h w c), then each side halved in turn: levels[i][j] is (h / 2^i, w / 2^j, c)."""
    halve = lambda x, axis: 0.5 * (x.take(range(0, x.shape[axis], 2), axis)                             # noqa: E731
                                   + x.take(range(1, x.shape[axis], 2), axis))
    rows = [image]
    while rows[-1].shape[0] > 1:
        rows.append(halve(rows[-1], 0))
    levels = []
    for row in rows:
        levels.append([row])
        while levels[-1][-1].shape[1] > 1:
            levels[-1].append(halve(levels[-1][-1], 1))
    return levels


def _overlap(edges, n):
    """How much of each of n texels lies in each pixel: edges (pixels + 1,) in texels -> weights (pixels, n)."""
    low, high, texel = edges[:-1, None], edges[1:, None], np.arange(n)
    return np.clip(np.minimum(high, texel + 1) - np.maximum(low, texel), 0, None) / (high - low)


def _ground(levels, s, ds, d, dd, metres):
    """A texture on the ground, filtered to the pixel. s, ds (rows,): the way along the road and the length of a row;
    d (rows, w), dd (rows,) the same across. `metres`: the texture's length and width. -> (rows, w, c)."""
    out = np.empty((*d.shape, levels[0][0].shape[-1]))
    texel = (metres[0] / levels[0][0].shape[0], metres[1] / levels[0][0].shape[1])
    level = [np.clip(np.round(np.log2(np.maximum(size, 1e-9) / t)), 0, len(one) - 1).astype(int)
             for size, t, one in ((ds, texel[0], levels), (dd, texel[1], levels[0]))]
    for pair in set(zip(*level)):
        rows, tile = np.nonzero((level[0] == pair[0]) & (level[1] == pair[1]))[0], levels[pair[0]][pair[1]]
        n, m = tile.shape[:2]
        y, x = (s[rows, None] / metres[0] % 1) * n - 0.5, (d[rows] / metres[1] % 1) * m - 0.5
        j, i = np.floor(y).astype(int), np.floor(x).astype(int)
        fy, fx = (y - j)[..., None], (x - i)[..., None]
        flat = tile.reshape(n * m, -1)
        at = lambda a, b: flat[(a % n) * m + b % m]                                         # noqa: B023, E731
        out[rows] = ((at(j, i) * (1 - fx) + at(j, i + 1) * fx) * (1 - fy)
                     + (at(j + 1, i) * (1 - fx) + at(j + 1, i + 1) * fx) * fy)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Pictures that scenes are put together from. Made once, from fixed random numbers.

def _noise(rng, h, w, cell):
    """Tileable smooth noise of mean 0 and deviation 1; `cell` texels a bump."""
    spectrum = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]) * cell
    x = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w))) * np.exp(-(spectrum * 1.5) ** 2), s=(h, w))
    return x / x.std()


@lru_cache
def _tiles():
    """Asphalt and verge, 64 m along by 16 m across, grey (h w 1), around 1; as pyramids."""
    rng = np.random.default_rng(1)
    h, w = 1024, 256                                                                    # 6 cm a texel
    asphalt = 1 + 0.05 * _noise(rng, h, w, 2) + 0.05 * _noise(rng, h, w, 24)
    for _ in range(46):                                                                 # patches; then cracks of tar
        y, x, a, b = rng.integers(h), rng.integers(w), rng.integers(6, 60), rng.integers(6, 40)
        asphalt[y:y + a, x:x + b] *= rng.choice([0.72, 0.82, 1.18])
    for _ in range(40):
        y, x = rng.integers(h), rng.integers(w)
        for _ in range(rng.integers(30, 140)):
            asphalt[y % h:y % h + 2, x % w:x % w + 2] *= 0.72
            y, x = y + rng.integers(0, 3), x + rng.integers(-2, 3)
    verge = 1 + 0.12 * _noise(rng, h, w, 2) + 0.16 * _noise(rng, h, w, 10) + 0.12 * _noise(rng, h, w, 60)
    return tuple(_pyramid(np.clip(x, 0.3, 1.7)[..., None]) for x in (asphalt, verge))


class _Canvas:
    """An RGBA picture to draw on; coordinates in [0, 1], y down."""

    def __init__(self, h, w):
        self.rgba = np.zeros((h, w, 4))
        self.y, self.x = (np.arange(h)[:, None] + 0.5) / h, (np.arange(w)[None] + 0.5) / w

    def fill(self, mask, colour):
        """Paint where mask (h w) is positive; colour (3,) or (h w 3)."""
        self.rgba = np.where(np.broadcast_to(mask > 0, self.rgba.shape[:2])[..., None],
                             np.concatenate([np.broadcast_to(colour, (*self.rgba.shape[:2], 3)),
                                             np.ones((*self.rgba.shape[:2], 1))], -1), self.rgba)
        return self

    def box(self, x0, y0, x1, y1, colour, power=np.inf):
        """A rectangle; with a finite `power` its corners are round."""
        u, v = np.abs(2 * (self.x - x0) / (x1 - x0) - 1), np.abs(2 * (self.y - y0) / (y1 - y0) - 1)
        inside = np.maximum(u, v) <= 1 if np.isinf(power) else u ** power + v ** power <= 1
        return self.fill(inside, colour)

    def trapezium(self, y0, y1, half0, half1, colour):
        """Centred, `half0` wide to each side at y0 and `half1` at y1."""
        half = half0 + (half1 - half0) * (self.y - y0) / (y1 - y0)
        return self.fill((self.y >= y0) & (self.y <= y1) & (np.abs(self.x - 0.5) <= half), colour)


def _tree(rng):
    """Trunk, branches and clumps of leaves, lit from one side."""
    canvas = _Canvas(128, 96)
    canvas.trapezium(0.45, 1, 0.025, 0.055, (0.27, 0.19, 0.13))
    green = np.array([0.16, 0.32, 0.12]) * rng.uniform(0.7, 1.2) + np.array([rng.uniform(0, 0.18), 0, 0])
    for _ in range(26):
        radius, angle = rng.uniform(0.06, 0.13), rng.uniform(0, 2 * np.pi)
        x = 0.5 + 0.34 * np.cos(angle) * rng.uniform(0, 1) ** 0.5
        y = 0.33 + 0.27 * np.sin(angle) * rng.uniform(0, 1) ** 0.5
        light = 0.55 + 0.9 * (0.65 - y) + 0.25 * (x - 0.5) + rng.uniform(-0.15, 0.15)
        leaf = rng.uniform(0.8, 1.2, canvas.rgba.shape[:2]) * light
        ragged = radius * (1 + 0.25 * _noise(rng, *canvas.rgba.shape[:2], 4))
        canvas.fill(ragged - np.hypot(canvas.x - x, 0.8 * (canvas.y - y)), np.clip(green * leaf[..., None], 0, 1))
    return canvas.rgba


def _fir(rng):
    """A conifer: a stack of ragged skirts."""
    canvas = _Canvas(128, 64)
    canvas.trapezium(0.8, 1, 0.04, 0.05, (0.25, 0.18, 0.12))
    green = np.array([0.10, 0.24, 0.14]) * rng.uniform(0.8, 1.3)
    for k in range(6):
        top, bottom = 0.02 + 0.13 * k, 0.26 + 0.13 * k
        saw = 0.02 * np.abs((canvas.x * rng.integers(7, 12)) % 1 - 0.5)
        half = (0.1 + 0.065 * k) * (canvas.y - top) / (bottom - top)
        shade = np.clip(1.25 - 0.6 * (canvas.y - top) / (bottom - top) + 0.4 * (canvas.x - 0.5), 0, 2)[..., None]
        canvas.fill((canvas.y > top) & (canvas.y + saw < bottom) & (np.abs(canvas.x - 0.5) < half), green * shade)
    return canvas.rgba


def _house(rng):
    """Walls, roof, rows of windows. Alpha 1; windows are told apart at night by their colour."""
    canvas = _Canvas(128, 128)
    wall = np.array([[0.75, 0.70, 0.60], [0.62, 0.36, 0.28], [0.55, 0.58, 0.62], [0.82, 0.82, 0.78]][rng.integers(4)])
    canvas.trapezium(0.0, 0.3, 0.25, 0.5, np.array([0.35, 0.16, 0.13]) * rng.uniform(0.7, 1.3))
    canvas.box(0.04, 0.27, 0.96, 1, wall)
    rows, columns = rng.integers(2, 4), rng.integers(3, 5)
    for i in range(rows):
        for j in range(columns):
            x, y = 0.04 + 0.92 * (j + 0.25) / columns, 0.3 + 0.7 * (i + 0.2) / rows
            canvas.box(x - 0.015, y - 0.015, x + 0.46 / columns + 0.015, y + 0.36 / rows + 0.015, (0.92, 0.92, 0.9))
            canvas.box(x, y, x + 0.46 / columns, y + 0.36 / rows, (0.16, 0.2, 0.26))
    return canvas.rgba


def _post(rng):
    """A white delineator post with a black band and a reflector."""
    canvas = _Canvas(64, 8).box(0, 0, 1, 1, (0.93, 0.93, 0.91))
    return canvas.box(0, 0.12, 1, 0.34, (0.07, 0.07, 0.07)).box(0.3, 0.16, 0.7, 0.3, (0.95, 0.55, 0.15)).rgba


def _sign(rng):
    """A round, triangular or square sign on a pole."""
    canvas, kind = _Canvas(128, 48), rng.integers(3)
    canvas.box(0.46, 0.2, 0.54, 1, (0.55, 0.56, 0.58))
    y, x = (canvas.y - 0.19) * 128 / 48, canvas.x - 0.5
    if kind == 0:
        return canvas.fill(0.48 - np.hypot(x, y), (0.8, 0.1, 0.1)).fill(0.33 - np.hypot(x, y), (0.95, 0.95, 0.95)).rgba
    if kind == 1:
        inside = lambda r: np.minimum(r - y, (y + r) - 2 * np.abs(x))                                   # noqa: E731
        return canvas.fill(inside(0.45), (0.8, 0.1, 0.1)).fill(inside(0.27), (0.95, 0.93, 0.9)).rgba
    return canvas.fill(0.45 - np.maximum(np.abs(x), np.abs(y)), (0.1, 0.25, 0.6)).fill(
        0.2 - np.maximum(np.abs(x), np.abs(y) * 0.7), (0.95, 0.95, 0.95)).rgba


def _lamp(rng):
    """A street lamp: pole and head."""
    pole = _Canvas(128, 32).box(0.08, 0.02, 0.16, 1, (0.35, 0.36, 0.38))
    return pole.box(0.08, 0.0, 0.95, 0.035, (0.75, 0.75, 0.7)).rgba


def _car(rng, front, kind):
    """A car from behind or from the front, white where its colour goes; kind 0 sedan, 1 estate, 2 van."""
    canvas = _Canvas(96, 112)
    roof, waist, skirt = (0.06, 0.05, 0.0)[kind], (0.42, 0.4, 0.45)[kind], 0.9
    for x in (0.06, 0.78):
        canvas.box(x, 0.78, x + 0.16, 1, (0.05, 0.05, 0.06), power=6)
    shade = 1.05 - 0.45 * canvas.y[..., None] * np.ones((1, canvas.x.shape[1], 1))
    canvas.trapezium(roof, waist + 0.06, (0.3, 0.36, 0.44)[kind], (0.42, 0.44, 0.47)[kind], shade)
    canvas.box(0.01, waist, 0.99, skirt, shade, power=(5, 6, 12)[kind])
    canvas.trapezium(roof + 0.07, waist - 0.01, (0.25, 0.31, 0.38)[kind], (0.36, 0.39, 0.41)[kind], (0.12, 0.16, 0.2))
    canvas.box(0.03, 0.76, 0.97, 0.88, (0.22, 0.22, 0.23), power=8)                                         # bumper
    canvas.box(0.36, 0.68 if front else 0.62, 0.64, 0.76 if front else 0.72, (0.9, 0.9, 0.82))              # plate
    if front:
        canvas.box(0.3, 0.55, 0.7, 0.64, (0.1, 0.1, 0.1), power=6)
    colour = (0.98, 0.98, 0.93) if front else (0.72, 0.06, 0.05)
    for x in (0.05, 0.75):
        canvas.box(x, 0.5, x + 0.2, 0.63, colour, power=5)
    return canvas.rgba


CAR_SIZE = ((1.75, 1.4), (1.8, 1.6), (2.0, 2.2))                                    # width and height, m, by kind
PAINT = np.array([[0.85, 0.86, 0.88], [0.16, 0.17, 0.2], [0.62, 0.1, 0.1], [0.14, 0.24, 0.5], [0.5, 0.52, 0.55],
                  [0.75, 0.62, 0.18], [0.12, 0.34, 0.22]])


@lru_cache
def _sprites():
    """{name: [pyramids]}: premultiplied RGBA, sides padded to powers of two by resampling."""
    rng = np.random.default_rng(2)
    made = {"tree": [_tree(rng) for _ in range(5)], "fir": [_fir(rng) for _ in range(3)], "lamp": [_lamp(rng)],
            "house": [_house(rng) for _ in range(4)], "post": [_post(rng)], "sign": [_sign(rng) for _ in range(4)],
            "rear": [_car(rng, False, k) for k in range(3)], "front": [_car(rng, True, k) for k in range(3)]}
    for name in ("rear", "front"):                                                      # one a kind and paint
        made[name] = [_painted(rgba, paint) for rgba in made[name] for paint in PAINT]
    return {name: [_mips(rgba) for rgba in some] for name, some in made.items()}


def _painted(rgba, paint):
    """A car in its colour: paint covers what is grey and bright, and leaves lamps, glass and tyres as they are."""
    colour = rgba[..., :3]
    grey = 1 - (colour.max(-1) - colour.min(-1)) / np.maximum(colour.max(-1), 1e-6)
    cover = (grey * ((colour.mean(-1) - 0.3) / 0.2).clip(0, 1))[..., None]
    return np.concatenate([colour * (1 + cover * (paint - 1)), rgba[..., 3:]], -1)


def _mips(rgba):
    """RGBA (h w 4) -> premultiplied, and its halvings."""
    return _halvings(np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1))


def _halvings(x):
    """A picture (h w c), halved in both directions again and again while the sides are even."""
    levels = [x]
    while min(x.shape[:2]) >= 4 and not (x.shape[0] % 2 or x.shape[1] % 2):
        x = 0.25 * (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2])
        levels.append(x)
    return levels


# ---------------------------------------------------------------------------------------------------------------------
# A scene.

class Scene:
    """One drive, from one seed. night: bool, traffic: 0 (an empty road) to 1 (crowded); None: as the seed has it."""

    def __init__(self, seed, night=None, traffic=None):
        if traffic is not None and not 0 <= traffic <= 1:
            raise ValueError(f"traffic lies in 0 (an empty road) to 1 (crowded), got {traffic}")
        rng, self.seed = np.random.default_rng((17, seed)), int(seed)
        dark, busy = rng.random() < 0.4, max(0.0, rng.uniform(-0.3, 1.0))
        self.night, self.traffic = bool(dark if night is None else night), float(busy if traffic is None else traffic)
        # the middle of the road, m to the right of a straight line, as a function of the way s; the ego car's course
        self.middle, self.heading = _waves(rng, (170, 410, 900), (0.9, 7, 18))
        self.wobble, _ = _waves(rng, (4.3, 9.7), (0.1, 0.18))
        self.shake, _ = _waves(rng, (0.31, 0.73, 1.9), (0.0008, 0.0015, 0.002))
        self._mean, (self._surge, _) = rng.uniform(2, 11), _waves(rng, (8, 19, 37), (0.9, 2.2, 3.6))
        self._start, self._gap = rng.uniform(0, 5000), _waves(rng, (7, 17), (1.0, 2.0))[0]
        self._oncoming, self._parked = rng.uniform(5, 10), rng.random() < 0.5
        self._leaders = int((rng.random(2) < 1.6 * self.traffic).sum())
        self._colours(rng)
        self._scenery = _halvings(_panorama(self, rng))

    def _colours(self, rng):
        """Light, sky and haze."""
        if self.night:
            self.light, self.sky = np.array([0.10, 0.11, 0.16]), np.array([[0.02, 0.03, 0.07], [0.09, 0.08, 0.13]])
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
        boxes = [self.boxes(t) for t in np.asarray(times, float)]
        cars = [int(((b[:, 2] - b[:, 0] >= MIN_BOX) & (b[:, 4] >= MIN_VISIBLE)).sum()) for b in boxes]
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
        (s0,), found = self.way([time]), []
        ego = LANE / 2 + float(self.wobble(time))
        speed = float(self.speed(time))
        for k in range(self._leaders):
            gap = 7 + 0.9 * speed + float(self._gap(time)) * (1 + speed) / 8 + 13 * k
            found.append((s0 + gap, LANE / 2, *self._look(5, k), 0))
        flows = [(16, 0.85 * self.traffic, -LANE / 2, -self._oncoming * time, 6, 1),
                 (9, 0.7 * self.traffic * self._parked, KERB + 1.1, 0, 7, 0)]
        for cell, chance, d, moved, salt, ahead in flows:
            # cars of a flow drive at one speed: car k keeps its place in the flow, whenever one looks
            k = np.arange(np.floor((s0 - moved) / cell), np.ceil((s0 - moved + FAR) / cell)).astype(int)
            there = k[_hash(self.seed, salt, k) < chance]
            for i, at in zip(there, (there + 0.15 + 0.35 * _hash(self.seed, salt + 10, there)) * cell + moved):
                found.append((at, d, *self._look(salt + 20, i), ahead))
        rows = [(s - s0, float(self.to_the_side(s, d, s0, ego)), *look) for s, d, *look in found]
        rows = [row for row in rows if NEAR < row[0] < FAR]
        return np.array(sorted(rows, reverse=True)).reshape(-1, 5)

    def _look(self, salt, k):
        """Kind and paint of car k."""
        return (int(_hash(self.seed, salt, k) * 2.5), int(_hash(self.seed, salt + 1, k) * len(PAINT)))

    def boxes(self, time):
        """The cars of a frame, far ones first: (n, 5) x0 y0 x1 y1 as shares of width and height, and the share of the
        box that is in the picture and not behind a nearer car."""
        cars = self.cars(time)
        full = np.array([_place(z, x, *CAR_SIZE[int(kind)], float(self.pitch(time))) for z, x, kind, _, _ in cars])
        full = full.reshape(-1, 4)
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
        times = np.asarray(times, float)
        frames = [_Frame(self, t, s0, height, top, left, h, w).draw() for t, s0 in zip(times, self.way(times))]
        return (np.stack(frames).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _place(z, x, width, height, pitch):
    """A thing of that size at distance z and x to the right -> x0 y0 x1 y1, shares of width and height of the frame."""
    foot = HORIZON + (CAMERA_HEIGHT / z + pitch) / VIEW
    left, right = (0.5 + (x + side * width / 2) / z / (2 * VIEW) for side in (-1, 1))
    return left, foot - height / z / VIEW, right, foot


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


# -- what is far away -------------------------------------------------------------------------------------------------

WIDE, HIGH, BELOW = 2.4, 0.3, 0.01            # the panorama: tangents across, above the horizon, below it


def _panorama(scene, rng, h=128, w=1024):
    """Sky, clouds, stars, hills and houses at infinity: (h w 3)."""
    up = (HIGH - (np.arange(h) + 0.5) / h * (HIGH + BELOW))[:, None]                        # tangent above the horizon
    a = ((np.arange(w) + 0.5) / w - 0.5)[None] * WIDE
    x = scene.sky[0] + (scene.sky[1] - scene.sky[0]) * np.clip(1 - up / HIGH, 0, 1)[..., None] ** 2
    x = np.broadcast_to(x, (h, w, 3)).copy()
    if scene.night:
        x[rng.random((h, w)) < 0.002] += rng.uniform(0.3, 0.8)
    cloud = np.clip(0.45 * (np.roll(_clouds(), rng.integers(w), 1) - rng.uniform(-0.5, 2)), 0, 0.85)[..., None]
    x += cloud * (np.clip(1.15 * scene.sky[1] + 0.02, 0, 1) - x)
    for layer, (height, tone) in enumerate(((0.05, 0.55), (0.025, 0.8))):
        wave = _waves(rng, (1.1, 0.37, 0.13), (height * 0.5, height * 0.3, height * 0.15))[0](a[0])
        jag = rng.uniform(0, 0.012, w).repeat(1 + 3 * layer)[:w]                                        # tops of trees
        green = scene.grass * np.array([0.5, 0.65, 0.6]) * (0.75 + 0.5 * rng.random((h, w, 1)))
        colour = tone * green * scene.light + (1 - tone) * scene.haze
        x = np.where((up < height + wave[None] + jag[None])[..., None], colour, x)
    for _ in range(rng.integers(0, 14)):
        left, wide, tall = rng.integers(w), rng.integers(10, 34), rng.uniform(0.02, 0.09)
        rows = np.nonzero((up[:, 0] < tall) & (up[:, 0] > -BELOW))[0]
        block = (rng.uniform(0.4, 0.75) * np.array([1, 0.95, 0.9]) * scene.light * 0.7 + 0.3 * scene.haze)
        x[rows[0]:, left:left + wide] = block
        for y in range(rows[0] + 2, h - 3, 5):
            for c in range(left + 2, min(left + wide, w) - 3, 5):
                lit = np.array([0.95, 0.8, 0.45]) if scene.night and rng.random() < 0.5 else block * 0.45
                x[y:y + 3, c:c + 3] = lit
    return x


@lru_cache
def _clouds():
    rng = np.random.default_rng(3)
    return _noise(rng, 128, 1024, 60) + 0.5 * _noise(rng, 128, 1024, 16) + 0.25 * _noise(rng, 128, 1024, 5)


# -- one frame --------------------------------------------------------------------------------------------------------

# what stands beside the road: name, metres a cell, chance that one is there, distance from the kerb, spread, height
SCENERY = (("tree", 9, 0.55, 3.0, 6, 7.0), ("fir", 11, 0.4, 5.0, 9, 8.0), ("post", 18, 0.8, 0.6, 0.2, 1.0),
           ("sign", 45, 0.6, 0.9, 0.4, 2.6), ("house", 34, 0.45, 8.0, 6, 7.0), ("lamp", 38, 0.5, 0.8, 0.1, 6.5))
# what shines at night: where in the picture, how wide (share of it), which colour
LIT = {"rear": ((0.14, 0.56), (0.86, 0.56), 0.07, (0.9, 0.08, 0.05)),
       "front": ((0.14, 0.56), (0.86, 0.56), 0.13, (1.0, 0.95, 0.8)), "lamp": ((0.6, 0.03), 0.35, (1.0, 0.8, 0.45))}


class _Frame:
    """One picture at one moment: a window of h x w pixels of a frame that is `height` high."""

    def __init__(self, scene, time, s0, height, top, left, h, w):
        self.scene, self.time, self.s0, self.h, self.w = scene, time, s0, h, w
        self.pixel, self.height, self.top, self.left = VIEW / height, height, top, left
        self.pitch = float(scene.pitch(time))
        self.ego = LANE / 2 + float(scene.wobble(time))
        # edges of rows and columns, as tangents
        self.y = (top + np.arange(h + 1)) * self.pixel - HORIZON * VIEW - self.pitch
        self.x = (left + np.arange(w + 1)) * self.pixel - VIEW

    def draw(self):
        self.image = self.sky()
        self.ground()
        for z, *thing in sorted([*self.things(), *self.others()], key=lambda it: -it[0]):
            self.stand(z, *thing)
        return self.image

    def sky(self):
        """The panorama, shifted by where the car is heading."""
        level = min(int(max(0, np.log2(self.pixel / (WIDE / 1024)))), len(self.scene._scenery) - 1)
        tile = self.scene._scenery[level]
        n, m = tile.shape[:2]
        rows = _overlap((self.y + HIGH) / (HIGH + BELOW) * n, n)                        # zero below it: there is ground
        columns = _overlap(((self.x + float(self.scene.heading(self.s0))) / WIDE + 0.5) * m, m)
        part = (rows @ tile.reshape(n, -1)).reshape(-1, m, 3)
        return (columns @ part.transpose(1, 0, 2).reshape(m, -1)).reshape(self.w, -1, 3).transpose(1, 0, 2).copy()

    def ground(self, fine=2):
        """Asphalt, marks, verge: each row at its distance, `fine` sub-rows a pixel."""
        edges = np.interp(np.arange(self.h * fine + 1) / fine, np.arange(self.h + 1), self.y)
        low, high = edges[:-1], edges[1:]
        part = ((high - np.maximum(low, 0)) / (high - low)).clip(0, 1)                  # how much of a row is ground
        rows = np.nonzero(high > 1e-4)[0]
        if not len(rows):
            return
        far, near = (CAMERA_HEIGHT / np.maximum(v[rows], CAMERA_HEIGHT / 400) for v in (low, high))
        colour = self.shade(near, far, CAMERA_HEIGHT / np.maximum((np.maximum(low, 0) + high)[rows] / 2, 1e-4))
        cover = np.zeros((self.h * fine, 1, 1))
        cover[rows] = part[rows, None, None]
        full = np.zeros((self.h * fine, self.w, 3))
        full[rows] = colour * cover[rows]
        self.image *= 1 - cover.reshape(self.h, fine, 1, 1).mean(1)
        self.image += full.reshape(self.h, fine, self.w, 3).mean(1)

    def shade(self, near, far, z):
        """Colour of the ground in rows at distance z that reach from near to far. -> (rows w 3)."""
        scene, z = self.scene, z.clip(max=400)
        centre = 0.5 * (self.x[1:] + self.x[:-1])
        # metres to the right of the middle of the road
        d = centre * z[:, None] - scene.to_the_side(self.s0 + z, 0, self.s0, self.ego)[:, None]
        width = self.pixel * z                                                          # of a pixel, on the ground
        asphalt, verge = (_ground(tile, self.s0 + z, far - near, d, width, (64, 16)) for tile in _tiles())
        inside = lambda edge: ((edge - np.abs(d)) / width[:, None] + 0.5).clip(0, 1)[..., None]         # noqa: E731
        stripe = lambda at, half: (((half - np.abs(d - at)) / width[:, None] + 0.5).clip(0, 1)          # noqa: E731
                                   * np.minimum(1, 2 * half / width[:, None]))[..., None]
        out = scene.grass * verge
        out = out + inside(KERB + 0.7) * (np.array([0.5, 0.47, 0.42]) * (0.6 + 0.4 * verge) - out)         # gravel
        out = out + inside(KERB) * (scene.asphalt * asphalt - out)
        white = np.array([0.88, 0.88, 0.85]) * (0.55 + 0.45 * asphalt)
        for at in (-KERB + 0.35, KERB - 0.35):
            out = out + stripe(at, 0.075) * (white - out)
        out = out + stripe(0, 0.08) * self.dashes(near, far)[:, None, None] * (white - out)
        fog = 1 - np.exp(-z / scene.haze_m)[:, None, None]
        return out * self.lit(z[:, None], centre * z[:, None]) * (1 - fog) + scene.haze * fog

    def dashes(self, near, far):
        """How much of [near, far] the dashes of the middle line cover, (rows,): one dash in 17 m, its place and length
        at random."""
        k = np.floor((self.s0 + near) / 17)[:, None] + np.arange(3)
        begin = (k + 0.5 * _hash(self.scene.seed, 1, k)) * 17
        end = begin + 3 + 5 * _hash(self.scene.seed, 2, k)
        low, high = (self.s0 + near)[:, None], (self.s0 + np.maximum(far, near + 1e-3))[:, None]
        return ((np.minimum(high, end) - np.maximum(low, begin)).clip(0) / (high - low)).sum(1).clip(0, 1)

    def lit(self, z, x):
        """The light on something at z, x: daylight, or the glimmer of the night and one's own beam. -> (..., 3)."""
        z, x = np.broadcast_arrays(np.asarray(z, float), np.asarray(x, float))
        if not self.scene.night:
            return np.broadcast_to(self.scene.light, (*z.shape, 3))
        beam = np.exp(-((z - 8).clip(0) / 15) ** 2 - (x / (2.2 + 0.3 * z)) ** 2)
        return self.scene.light + beam[..., None] * np.array([0.85, 0.82, 0.7])

    def things(self):
        """What stands beside the road and is in reach: (z, name, number, x, width, height)."""
        seed, found = self.scene.seed, []
        for salt, (name, cell, chance, off, spread, tall) in enumerate(SCENERY):
            k = np.arange(np.floor((self.s0 + NEAR) / cell), np.floor((self.s0 + FAR) / cell) + 1).astype(int)
            for side in (-1, 1):
                u = [_hash(seed, 100 + 20 * salt + 2 * j + (side > 0), k) for j in range(5)]
                s, d = (k + 0.1 + 0.8 * u[1]) * cell, side * (KERB + off + spread * u[2])
                x, z = self.scene.to_the_side(s, d, self.s0, self.ego), s - self.s0
                for i in np.nonzero((u[0] < chance) & (z > NEAR) & (z < FAR) & (np.abs(x) < VIEW * z + tall))[0]:
                    some = _sprites()[name]
                    number, high = int(u[3][i] * len(some)), tall * (0.75 + 0.5 * u[4][i] * (name != "post"))
                    shape = some[number][0].shape
                    found.append((z[i], name, number, x[i], high * shape[1] / shape[0], high))
        return found

    def others(self):
        """The other cars, as `things` are."""
        return [(z, "front" if ahead else "rear", int(kind) * len(PAINT) + int(paint), x, *CAR_SIZE[int(kind)])
                for z, x, kind, paint, ahead in self.scene.cars(self.time)]

    def stand(self, z, name, number, x, width, height):
        """Put a picture into the frame, upright at distance z."""
        x0, y0, x1, y1 = _place(z, x, width, height, self.pitch)
        x0, x1 = (v * 2 * self.height - self.left for v in (x0, x1))
        y0, y1 = (v * self.height - self.top for v in (y0, y1))
        if name in ("rear", "front"):
            self.shadow(x0, x1, y1, (y1 - y0) * 0.1)
        light = self.lit(z, x) * (self.scene.night * 0.35 + 1)
        fog = 1 - np.exp(-z / self.scene.haze_m)
        rgba, where = self.resample(_sprites()[name][number], x0, y0, x1, y1)
        if rgba is not None:
            image, alpha = self.image[where], rgba[..., 3:]
            image *= 1 - alpha
            image += rgba[..., :3] * (light * (1 - fog)) + self.scene.haze * fog * alpha
        if self.scene.night:
            *lamps, size, colour = LIT.get(name, (0, 0))
            for u, v in lamps:
                self.glow(x0 + u * (x1 - x0), y0 + v * (y1 - y0), size * (x1 - x0), np.array(colour) * (1 - fog))

    def resample(self, levels, x0, y0, x1, y1):
        """The mean of a picture that fills x0..x1, y0..y1 over each pixel it meets -> (h' w' 4) and where, or None."""
        i0, i1, j0, j1 = max(0, int(np.floor(x0))), min(self.w, int(np.ceil(x1))), max(0, int(np.floor(y0))), \
            min(self.h, int(np.ceil(y1)))
        if i1 <= i0 or j1 <= j0:
            return None, None
        tile = levels[min(int(max(0, np.log2(max(levels[0].shape[0] / (y1 - y0), 1)))), len(levels) - 1)]
        n, m = tile.shape[:2]
        rows = _overlap((np.arange(j0, j1 + 1) - y0) / (y1 - y0) * n, n)
        columns = _overlap((np.arange(i0, i1 + 1) - x0) / (x1 - x0) * m, m)
        part = (rows @ tile.reshape(n, -1)).reshape(-1, m, 4).transpose(1, 0, 2).reshape(m, -1)
        return (columns @ part).reshape(i1 - i0, -1, 4).transpose(1, 0, 2), (slice(j0, j1), slice(i0, i1))

    def shadow(self, x0, x1, y, tall):
        """The dark under a car."""
        self._soft((x0 + x1) / 2, y, 0.42 * (x1 - x0), tall,
                   lambda image, weight: np.multiply(image, 1 - 0.75 * weight, out=image))

    def glow(self, x, y, size, colour):
        """A lamp at night."""
        self._soft(x, y, size, size, lambda image, weight: np.add(image, weight * colour, out=image))

    def _soft(self, x, y, sx, sy, change):
        """Apply change(image, weight) around (x, y), weight a bump of sizes sx, sy, of at least half a pixel."""
        fade, (sx, sy) = min(1, sx / 0.5) * min(1, sy / 0.5), (max(v, 0.5) for v in (sx, sy))
        j0, j1 = max(0, int(y - 3 * sy)), min(self.h, int(y + 3 * sy) + 1)
        i0, i1 = max(0, int(x - 3 * sx)), min(self.w, int(x + 3 * sx) + 1)
        if i1 <= i0 or j1 <= j0:
            return
        bump = lambda at, c, s: np.exp(-0.5 * ((at + 0.5 - c) / s) ** 2)                                # noqa: E731
        weight = fade * np.outer(bump(np.arange(j0, j1), y, sy), bump(np.arange(i0, i1), x, sx))[..., None]
        change(self.image[j0:j1, i0:i1], weight)

