"""What the driving world is put together from: trees, houses, cars, asphalt, horizon; and the filters that draw them.

Every picture is made once from fixed random numbers. Drawn at any size, a pixel is the mean over its square and not a
point: that of an upright picture from its integral (Crow 1984), that of a texture on the ground from its halvings
(Williams 1983), each side halved for itself, since a road far away is squeezed along and not across.
"""
from functools import lru_cache

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# Filters.

def integral(image):
    """The sums of a picture (h w c) over all rectangles that begin in its corner: (h + 1, w + 1, c)."""
    return np.pad(image, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)


def mean_over(sums, y, x):
    """The mean of a picture over each pixel, zero being outside it. y, x: edges of pixels, in texels -> (len(y) - 1,
    len(x) - 1, c) float32."""
    part = _difference(_between(sums, y)).swapaxes(0, 1)
    part = _difference(_between(part, x)).swapaxes(0, 1)
    return (part / ((y[1] - y[0]) * (x[1] - x[0]))).astype(np.float32)


def _difference(x):
    return x[1:] - x[:-1]


def _between(sums, at):
    """sums[at] for fractions, on the first axis: exact, for between whole texels an integral is a straight line."""
    at = np.minimum(np.maximum(at, 0), len(sums) - 1)
    low = np.minimum(at.astype(int), len(sums) - 2)
    part = sums[low]
    return part + (at - low)[:, None, None] * (sums[low + 1] - part)


class Sprite:
    """A picture (h w 4) that is drawn upright, RGBA. shape: (h, w)."""

    def __init__(self, rgba):
        self.shape = rgba.shape[:2]
        levels = [np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)]              # premultiplied
        while min(levels[-1].shape[:2]) >= 8 and not any(side % 2 for side in levels[-1].shape[:2]):
            h, w = levels[-1].shape[:2]
            levels.append(levels[-1].reshape(h // 2, 2, w // 2, 2, 4).mean((1, 3)))
        self.sums = [integral(level) for level in levels]

    def draw(self, y, x, height, width):
        """Drawn height x width pixels large. y, x: edges of pixels from its corner, evenly apart -> mean_over."""
        level = 0                                                       # at least two texels a pixel, or all there are
        while level + 1 < len(self.sums) and len(self.sums[level + 1]) > 2 * height:
            level += 1
        sums = self.sums[level]
        return mean_over(sums, y * ((sums.shape[0] - 1) / height), x * ((sums.shape[1] - 1) / width))


class Ground:
    """Textures (h w c) that lie on the ground and repeat, `metres` long and wide, with all their halvings."""

    def __init__(self, image, metres):
        self.metres, h, w = metres, *image.shape[:2]
        self.n, self.m = (2 ** np.arange(int(np.log2(side)), -1, -1) for side in (h, w))        # texels of each level
        levels = [[image.reshape(n, h // n, m, w // m, -1).mean((1, 3)).reshape(n * m, -1) for m in self.m]
                  for n in self.n]
        sizes = np.array([[len(level) for level in row] for row in levels])
        self.start = (sizes.ravel().cumsum() - sizes.ravel()).reshape(sizes.shape)
        self.texels = np.concatenate([level for row in levels for level in row]).astype(np.float32)

    def mean_over(self, s, ds, d, dd):
        """Rows of pixels: s, ds (rows,) the way along the road and how much of it a pixel covers, d (rows, w) and
        dd (rows,) the same across it, in metres -> (rows, w, c) float32."""
        i, j = (np.round(np.log2(np.maximum(size * n[0] / metres, 1))).astype(int).clip(max=len(n) - 1)
                for size, n, metres in zip((ds, dd), (self.n, self.m), self.metres))
        n, m, start = self.n[i], self.m[j], self.start[i, j]
        y, x = s / self.metres[0] * n - 0.5, d / self.metres[1] * m[:, None] - 0.5
        y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
        fy, fx = (y - y0).astype(np.float32)[:, None, None], (x - x0).astype(np.float32)[..., None]
        rows = [(start + (y0 + k) % n * m)[:, None] for k in (0, 1)]
        columns = [(x0 + k) & (m - 1)[:, None] for k in (0, 1)]                             # m is a power of two
        (a, b), (c, e) = ([self.texels[row + column] for column in columns] for row in rows)
        near, far = a + fx * (b - a), c + fx * (e - c)
        return near + fy * (far - near)


# ---------------------------------------------------------------------------------------------------------------------
# Random functions.

def waves(rng, periods, amplitudes):
    """A smooth random function and its derivative: a sum of sines. periods and amplitudes, one a wave."""
    phase, turn = rng.uniform(0, 2 * np.pi, len(periods)), 2 * np.pi / np.asarray(periods)
    a = np.asarray(amplitudes) * rng.uniform(0.6, 1.0, len(periods))
    value = lambda x: (a * np.sin(np.multiply.outer(x, turn) + phase)).sum(-1)                          # noqa: E731
    slope = lambda x: (a * turn * np.cos(np.multiply.outer(x, turn) + phase)).sum(-1)                   # noqa: E731
    return value, slope


def noise(rng, h, w, cell):
    """Tileable smooth noise of mean 0 and deviation 1; `cell` texels a bump."""
    spectrum = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]) * cell
    x = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((h, w))) * np.exp(-(spectrum * 1.5) ** 2), s=(h, w))
    return x / x.std()


# ---------------------------------------------------------------------------------------------------------------------
# The ground and the horizon.

@lru_cache
def ground():
    """Asphalt and verge, 64 m along by 16 m across, as two channels of grey around 1."""
    rng = np.random.default_rng(1)
    h, w = 1024, 256                                                                    # 6 cm a texel
    asphalt = 1 + 0.05 * noise(rng, h, w, 2) + 0.05 * noise(rng, h, w, 24)
    for _ in range(46):                                                                 # patches; then cracks of tar
        y, x, a, b = rng.integers(h), rng.integers(w), rng.integers(6, 60), rng.integers(6, 40)
        asphalt[y:y + a, x:x + b] *= rng.choice([0.72, 0.82, 1.18])
    for _ in range(26):
        y, x = rng.integers(h), rng.integers(w)
        for _ in range(rng.integers(30, 140)):
            asphalt[y % h:y % h + 2, x % w:x % w + 2] *= 0.78
            y, x = y + rng.integers(0, 3), x + rng.integers(-2, 3)
    verge = 1 + 0.12 * noise(rng, h, w, 2) + 0.16 * noise(rng, h, w, 10) + 0.12 * noise(rng, h, w, 60)
    return Ground(np.stack([asphalt, verge], -1).clip(0.3, 1.7), (64, 16))


WIDE, HIGH, BELOW = 2.4, 0.3, 0.01            # the horizon: tangents across, above it, below it


@lru_cache
def _clouds():
    rng = np.random.default_rng(3)
    return noise(rng, 128, 1024, 60) + 0.5 * noise(rng, 128, 1024, 24) + 0.1 * noise(rng, 128, 1024, 8)


def horizon(rng, night, sky, light, haze, grass, h=128, w=1024):
    """Sky, clouds, stars, hills and houses at infinity, in the colours of a scene: the integral of (h w 3)."""
    up = (HIGH - (np.arange(h) + 0.5) / h * (HIGH + BELOW))[:, None]                                       # tangent
    a = ((np.arange(w) + 0.5) / w - 0.5)[None] * WIDE
    x = sky[0] + (sky[1] - sky[0]) * np.clip(1 - up / HIGH, 0, 1)[..., None] ** 2
    x = np.broadcast_to(x, (h, w, 3)).copy()
    if night:
        x[rng.random((h, w)) < 0.002] += rng.uniform(0.3, 0.8)
    cloud = np.clip(0.45 * (np.roll(_clouds(), rng.integers(w), 1) - rng.uniform(-0.5, 2)), 0, 0.85)[..., None]
    x += cloud * (np.clip(1.15 * sky[1] + 0.02, 0, 1) - x)
    for layer, (height, tone) in enumerate(((0.05, 0.55), (0.025, 0.8))):
        wave = waves(rng, (1.1, 0.37, 0.13), (height * 0.5, height * 0.3, height * 0.15))[0](a[0])
        jag = rng.uniform(0, 0.012, w).repeat(1 + 3 * layer)[:w]                                        # tops of trees
        green = grass * np.array([0.5, 0.65, 0.6]) * (0.75 + 0.5 * rng.random((h, w, 1)))
        x = np.where((up < height + wave[None] + jag[None])[..., None], tone * green * light + (1 - tone) * haze, x)
    for _ in range(rng.integers(0, 14)):
        left, wide, tall = rng.integers(w), rng.integers(14, 48), rng.uniform(0.03, 0.09)
        rows = np.nonzero((up[:, 0] < tall) & (up[:, 0] > -BELOW))[0]
        block = rng.uniform(0.4, 0.75) * np.array([1, 0.95, 0.9]) * light * 0.7 + 0.3 * haze
        x[rows[0]:, left:left + wide] = block
        for y in range(rows[0] + 3, h - 6, 11):
            for c in range(left + 3, min(left + wide, w) - 6, 11):
                x[y:y + 6, c:c + 6] = np.array([0.95, 0.8, 0.45]) if night and rng.random() < 0.5 else block * 0.45
    return integral(x)


# ---------------------------------------------------------------------------------------------------------------------
# What stands upright: pictures with transparency.

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


GLASS = (0.16, 0.2, 0.26)


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
        ragged = radius * (1 + 0.25 * noise(rng, *canvas.rgba.shape[:2], 4))
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
    """Walls, roof, rows of windows."""
    canvas = _Canvas(128, 128)
    wall = np.array([[0.75, 0.70, 0.60], [0.62, 0.36, 0.28], [0.55, 0.58, 0.62], [0.82, 0.82, 0.78]][rng.integers(4)])
    canvas.trapezium(0.0, 0.3, 0.25, 0.5, np.array([0.35, 0.16, 0.13]) * rng.uniform(0.7, 1.3))
    canvas.box(0.04, 0.27, 0.96, 1, wall)
    rows, columns = rng.integers(2, 4), rng.integers(3, 5)
    for i in range(rows):
        for j in range(columns):
            x, y = 0.04 + 0.92 * (j + 0.25) / columns, 0.3 + 0.7 * (i + 0.2) / rows
            canvas.box(x - 0.015, y - 0.015, x + 0.46 / columns + 0.015, y + 0.36 / rows + 0.015, (0.92, 0.92, 0.9))
            canvas.box(x, y, x + 0.46 / columns, y + 0.36 / rows, GLASS)
    return canvas.rgba


def _post(rng):
    """A white delineator post with a black band and a reflector."""
    canvas = _Canvas(64, 12).box(0, 0, 1, 1, (0.93, 0.93, 0.91))
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
    pole = _Canvas(128, 32).box(0.06, 0.02, 0.18, 1, (0.35, 0.36, 0.38))
    return pole.box(0.08, 0.0, 0.95, 0.035, (0.75, 0.75, 0.7)).rgba


def _car(front, kind, paint):
    """A car from behind or from the front in its paint; kind 0 sedan, 1 estate, 2 van."""
    canvas = _Canvas(128, 144)
    roof, waist, skirt = (0.03, 0.02, 0.0)[kind], (0.42, 0.4, 0.44)[kind], 0.9
    top, bottom = (0.3, 0.35, 0.44)[kind], (0.42, 0.44, 0.47)[kind]
    canvas.box(0.1, 0.8, 0.9, 0.985, (0.02, 0.02, 0.025))                                      # the dark beneath
    for x in (0.03, 0.79):
        canvas.box(x, 0.74, x + 0.18, 1, (0.04, 0.04, 0.045), power=6)
    lit = np.broadcast_to(1.12 - 0.5 * canvas.y, canvas.rgba.shape[:2])[..., None] * np.asarray(paint)
    canvas.trapezium(roof, waist + 0.06, top, bottom, lit)
    for x in (0.03, 0.88):                                                                      # mirrors
        canvas.box(x, waist - 0.09, x + 0.09, waist - 0.01, 0.8 * lit, power=5)
    canvas.box(0.01, waist, 0.99, skirt, lit, power=(6, 7, 14)[kind])
    canvas.box(0.05, waist + 0.015, 0.95, waist + 0.045, np.minimum(1, 1.25 * lit + 0.06))      # light on the edge
    # the window: sky on its upper part
    sky = (0.5 - 1.1 * (canvas.y - roof - 0.06) / (waist - roof)).clip(0, 1)[..., None] * np.ones((1, 144, 1))
    glass = np.array([0.06, 0.08, 0.1]) + sky * (np.array([0.42, 0.5, 0.56]) if front else np.array([0.2, 0.25, 0.3]))
    canvas.trapezium(roof + 0.065, waist - 0.015, top - 0.045, bottom - 0.055, glass)
    canvas.box(0.02, 0.77, 0.98, 0.88, (0.13, 0.13, 0.14), power=8)                             # bumper
    if front:
        canvas.box(0.32, 0.54, 0.68, 0.66, (0.05, 0.05, 0.055), power=6)                        # grille
        canvas.box(0.36, 0.75, 0.64, 0.83, (0.95, 0.95, 0.9))                                   # plate
        for x in (0.04, 0.72):
            canvas.box(x - 0.01, 0.52, x + 0.25, 0.68, (0.1, 0.1, 0.11), power=5)
            canvas.box(x + 0.01, 0.54, x + 0.23, 0.66, (1.0, 1.0, 0.94), power=4)
        return canvas.rgba
    canvas.box(0.35, 0.6, 0.65, 0.7, (0.95, 0.95, 0.88))
    low = (0.62, 0.66, 0.72)[kind]
    for x in (0.03, 0.75):
        canvas.box(x, 0.48, x + 0.22, low + 0.01, (0.15, 0.03, 0.03), power=7)
        canvas.box(x + 0.015, 0.5, x + 0.205, low - 0.01, (1.0, 0.06, 0.04), power=5)
    return canvas.rgba


CAR_SIZE = ((1.75, 1.4), (1.8, 1.6), (2.0, 2.2))                                    # width and height, m, by kind
PAINT = np.array([[0.95, 0.95, 0.96], [0.1, 0.11, 0.13], [0.75, 0.1, 0.09], [0.1, 0.26, 0.66], [0.68, 0.7, 0.73],
                  [0.9, 0.7, 0.12], [0.08, 0.42, 0.3]])


@lru_cache
def sprites():
    """{name: [Sprite]}. Of cars one a kind and paint."""
    rng = np.random.default_rng(2)
    made = {"tree": [_tree(rng) for _ in range(5)], "fir": [_fir(rng) for _ in range(3)], "lamp": [_lamp(rng)],
            "house": [_house(rng) for _ in range(4)], "post": [_post(rng)], "sign": [_sign(rng) for _ in range(4)],
            "rear": [_car(False, kind, paint) for kind in range(3) for paint in PAINT],
            "front": [_car(True, kind, paint) for kind in range(3) for paint in PAINT]}
    made["house at night"] = [_lights_on(rgba, rng) for rgba in made["house"]]
    return {name: [Sprite(rgba) for rgba in some] for name, some in made.items()}


def _lights_on(rgba, rng):
    """A house with light in most windows, so bright that they shine in the dark."""
    glass = (np.abs(rgba[..., :3] - GLASS) < 1e-6).all(-1) & (noise(rng, *rgba.shape[:2], 40) > -0.5)
    return np.where(glass[..., None], [6.5, 5.2, 2.8, 1.0], rgba)
