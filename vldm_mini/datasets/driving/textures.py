"""Random functions, the texture of the ground, and the panorama at the horizon.

Every texture is made once from fixed random numbers; a panorama is made for a scene from its own.
"""
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .filters import GroundTexture, integral

# Extent of the panorama, as tangents: across, above the horizon, below it.
PANORAMA_WIDTH, PANORAMA_ABOVE, PANORAMA_BELOW = 2.4, 0.3, 0.01


class Waves:
    """A smooth random function: a sum of sines, one for each period and amplitude.

    Called on an array of any shape it returns its values in that shape; `slope`, its derivative.
    """

    def __init__(self, rng: np.random.Generator, periods: Sequence[float],
                 amplitudes: Sequence[float]):
        self.phase = rng.uniform(0, 2 * np.pi, len(periods))
        self.frequency = 2 * np.pi / np.asarray(periods)
        self.amplitude = np.asarray(amplitudes) * rng.uniform(0.6, 1.0, len(periods))

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        angle = np.multiply.outer(x, self.frequency) + self.phase
        return (self.amplitude * np.sin(angle)).sum(-1)

    def slope(self, x: np.ndarray | float) -> np.ndarray:
        """The derivative at x."""
        angle = np.multiply.outer(x, self.frequency) + self.phase
        return (self.amplitude * self.frequency * np.cos(angle)).sum(-1)


def noise(rng: np.random.Generator, h: int, w: int, cell: float) -> np.ndarray:
    """Smooth noise (h, w) that tiles, with mean 0 and deviation 1; bumps are `cell` texels wide."""
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None]) * cell
    spectrum = np.fft.rfft2(rng.standard_normal((h, w))) * np.exp(-(frequency * 1.5) ** 2)
    x = np.fft.irfft2(spectrum, s=(h, w))
    return x / x.std()


# --------------------------------------------------------------------------------------------------
# The ground.

@lru_cache
def ground() -> GroundTexture:
    """Asphalt and verge, 64 m along by 16 m across: two channels of grey around 1."""
    rng = np.random.default_rng(1)
    h, w = 1024, 256                                                # 6 cm a texel
    asphalt = 1 + 0.05 * noise(rng, h, w, 2) + 0.05 * noise(rng, h, w, 24)
    _add_patches(rng, asphalt, 46)
    _add_cracks(rng, asphalt, 26)
    verge = 1 + 0.12 * noise(rng, h, w, 2) + 0.16 * noise(rng, h, w, 10)
    verge = verge + 0.12 * noise(rng, h, w, 60)
    return GroundTexture(np.stack([asphalt, verge], -1).clip(0.3, 1.7), (64, 16))


def _add_patches(rng: np.random.Generator, asphalt: np.ndarray, n: int) -> None:
    """Rectangles of newer or older asphalt, in place."""
    h, w = asphalt.shape
    for _ in range(n):
        y, x = rng.integers(h), rng.integers(w)
        long, wide = rng.integers(6, 60), rng.integers(6, 40)
        asphalt[y:y + long, x:x + wide] *= rng.choice([0.72, 0.82, 1.18])


def _add_cracks(rng: np.random.Generator, asphalt: np.ndarray, n: int) -> None:
    """Cracks filled with tar: random walks along the road, in place."""
    h, w = asphalt.shape
    for _ in range(n):
        y, x = rng.integers(h), rng.integers(w)
        for _ in range(rng.integers(30, 140)):
            asphalt[y % h:y % h + 2, x % w:x % w + 2] *= 0.78
            y, x = y + rng.integers(0, 3), x + rng.integers(-2, 3)


# --------------------------------------------------------------------------------------------------
# The panorama: what is so far away that it only turns with the car.

@lru_cache
def _clouds() -> np.ndarray:
    """Noise (128, 1024) that all scenes shift and cut into clouds."""
    rng = np.random.default_rng(3)
    coarse, middle = noise(rng, 128, 1024, 60), noise(rng, 128, 1024, 24)
    return coarse + 0.5 * middle + 0.1 * noise(rng, 128, 1024, 8)


def panorama(rng: np.random.Generator, night: bool, sky: np.ndarray, light: np.ndarray,
             haze: np.ndarray, grass: np.ndarray, h: int = 128, w: int = 1024) -> np.ndarray:
    """Sky, clouds, stars, hills and houses at infinity, in the colours of a scene.

    sky: (2, 3), its colours at the top and at the horizon; light, haze, grass: (3,), all in [0, 1].
    Returns the `integral` (h + 1, w + 1, 3) of the picture.
    """
    rows = np.arange(h) + 0.5
    up = (PANORAMA_ABOVE - rows / h * (PANORAMA_ABOVE + PANORAMA_BELOW))[:, None]     # tangent
    angle = ((np.arange(w) + 0.5) / w - 0.5)[None] * PANORAMA_WIDTH                   # tangent
    x = _sky(rng, night, sky, up, w)
    for layer, (height, tone) in enumerate(((0.05, 0.55), (0.025, 0.8))):
        amplitudes = (height * 0.5, height * 0.3, height * 0.15)
        ridge = Waves(rng, (1.1, 0.37, 0.13), amplitudes)(angle[0])
        treetops = rng.uniform(0, 0.012, w).repeat(1 + 3 * layer)[:w]
        shade = 0.75 + 0.5 * rng.random((h, w, 1))
        green = grass * np.array([0.5, 0.65, 0.6]) * shade
        below = (up < height + ridge[None] + treetops[None])[..., None]
        x = np.where(below, tone * green * light + (1 - tone) * haze, x)
    for _ in range(rng.integers(0, 14)):
        _add_building(rng, x, up[:, 0], night, light, haze)
    return integral(x)


def _sky(rng: np.random.Generator, night: bool, sky: np.ndarray, up: np.ndarray,
         w: int) -> np.ndarray:
    """Gradient, stars and clouds: (h, w, 3)."""
    gradient = np.clip(1 - up / PANORAMA_ABOVE, 0, 1)[..., None] ** 2
    x = sky[0] + (sky[1] - sky[0]) * gradient
    x = np.broadcast_to(x, (len(up), w, 3)).copy()
    if night:
        stars = rng.random((len(up), w)) < 0.002
        x[stars] += rng.uniform(0.3, 0.8)
    shifted = np.roll(_clouds(), rng.integers(w), 1)
    cover = np.clip(0.45 * (shifted - rng.uniform(-0.5, 2)), 0, 0.85)[..., None]
    x += cover * (np.clip(1.15 * sky[1] + 0.02, 0, 1) - x)
    return x


def _add_building(rng: np.random.Generator, x: np.ndarray, up: np.ndarray, night: bool,
                  light: np.ndarray, haze: np.ndarray) -> None:
    """A block with windows, lit at random by night, into the panorama x (h, w, 3) in place."""
    h, w = x.shape[:2]
    left, wide, tall = rng.integers(w), rng.integers(14, 48), rng.uniform(0.03, 0.09)
    top = np.nonzero((up < tall) & (up > -PANORAMA_BELOW))[0][0]
    wall = rng.uniform(0.4, 0.75) * np.array([1, 0.95, 0.9]) * light * 0.7 + 0.3 * haze
    x[top:, left:left + wide] = wall
    for row in range(top + 3, h - 6, 11):
        for column in range(left + 3, min(left + wide, w) - 6, 11):
            lit = night and rng.random() < 0.5
            window = np.array([0.95, 0.8, 0.45]) if lit else wall * 0.45
            x[row:row + 6, column:column + 6] = window
