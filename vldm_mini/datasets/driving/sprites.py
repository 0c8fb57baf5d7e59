"""The upright pictures of the dash-cam world: trees, houses, signs, lamps and cars.

Each is painted once from fixed random numbers and then resampled at any size (`filters.Sprite`).
"""
from functools import lru_cache

import numpy as np

from .filters import Sprite
from .geometry import CAR_SIZE
from .textures import noise

Colour = np.ndarray | tuple[float, float, float]
GLASS = (0.16, 0.2, 0.26)
PAINT = np.array([[0.95, 0.95, 0.96], [0.1, 0.11, 0.13], [0.75, 0.1, 0.09], [0.1, 0.26, 0.66],
                  [0.68, 0.7, 0.73], [0.9, 0.7, 0.12], [0.08, 0.42, 0.3]])
WALLS = np.array([[0.75, 0.70, 0.60], [0.62, 0.36, 0.28], [0.55, 0.58, 0.62], [0.82, 0.82, 0.78]])


@lru_cache
def sprites() -> dict[str, list[Sprite]]:
    """{name: its variants}. Of cars one for each kind and paint: see `car_sprite`."""
    rng = np.random.default_rng(2)
    pictures = {"tree": [_tree(rng) for _ in range(5)], "fir": [_fir(rng) for _ in range(3)],
                "lamp": [_lamp()], "house": [_house(rng) for _ in range(4)], "post": [_post()],
                "sign": [_sign(rng) for _ in range(4)]}
    kinds = range(len(CAR_SIZE))
    pictures["rear"] = [_car(False, kind, paint) for kind in kinds for paint in PAINT]
    pictures["front"] = [_car(True, kind, paint) for kind in kinds for paint in PAINT]
    pictures["house at night"] = [_lights_on(rgba, rng) for rgba in pictures["house"]]
    return {name: [Sprite(rgba) for rgba in variants] for name, variants in pictures.items()}


def car_sprite(oncoming: bool, kind: int, paint: int) -> Sprite:
    """A car seen from the front (oncoming) or from behind; kind and paint as in `Scene.cars`."""
    return sprites()["front" if oncoming else "rear"][kind * len(PAINT) + paint]


class _Canvas:
    """An RGBA picture (h, w, 4) to paint on; coordinates in [0, 1], y down."""

    def __init__(self, h: int, w: int):
        self.rgba = np.zeros((h, w, 4))
        self.y = (np.arange(h)[:, None] + 0.5) / h
        self.x = (np.arange(w)[None] + 0.5) / w

    def fill(self, mask: np.ndarray, colour: Colour) -> "_Canvas":
        """Paint, opaque, where mask (h, w) is positive; colour (3,) or (h, w, 3)."""
        inside = np.broadcast_to(mask > 0, self.rgba.shape[:2])[..., None]
        paint = np.ones(self.rgba.shape)
        paint[..., :3] = colour
        self.rgba = np.where(inside, paint, self.rgba)
        return self

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour,
            power: float = np.inf) -> "_Canvas":
        """A rectangle; a finite `power` rounds its corners (a superellipse)."""
        u = np.abs(2 * (self.x - x0) / (x1 - x0) - 1)
        v = np.abs(2 * (self.y - y0) / (y1 - y0) - 1)
        if np.isinf(power):
            return self.fill(np.maximum(u, v) <= 1, colour)
        return self.fill(u ** power + v ** power <= 1, colour)

    def trapezium(self, y0: float, y1: float, half0: float, half1: float,
                  colour: Colour) -> "_Canvas":
        """Centred, `half0` wide to each side at y0 and `half1` at y1."""
        half = half0 + (half1 - half0) * (self.y - y0) / (y1 - y0)
        inside = (self.y >= y0) & (self.y <= y1) & (np.abs(self.x - 0.5) <= half)
        return self.fill(inside, colour)


# --------------------------------------------------------------------------------------------------
# Beside the road.

def _tree(rng: np.random.Generator) -> np.ndarray:
    """Trunk and clumps of leaves, lit from one side."""
    canvas = _Canvas(128, 96)
    shape = canvas.rgba.shape[:2]
    canvas.trapezium(0.45, 1, 0.025, 0.055, (0.27, 0.19, 0.13))
    green = np.array([0.16, 0.32, 0.12]) * rng.uniform(0.7, 1.2)
    green = green + np.array([rng.uniform(0, 0.18), 0, 0])
    for _ in range(26):
        radius, angle = rng.uniform(0.06, 0.13), rng.uniform(0, 2 * np.pi)
        x = 0.5 + 0.34 * np.cos(angle) * rng.uniform(0, 1) ** 0.5
        y = 0.33 + 0.27 * np.sin(angle) * rng.uniform(0, 1) ** 0.5
        light = 0.55 + 0.9 * (0.65 - y) + 0.25 * (x - 0.5) + rng.uniform(-0.15, 0.15)
        leaf = rng.uniform(0.8, 1.2, shape) * light
        ragged = radius * (1 + 0.25 * noise(rng, *shape, 4))
        inside = ragged - np.hypot(canvas.x - x, 0.8 * (canvas.y - y))
        canvas.fill(inside, np.clip(green * leaf[..., None], 0, 1))
    return canvas.rgba


def _fir(rng: np.random.Generator) -> np.ndarray:
    """A conifer: a stack of ragged skirts."""
    canvas = _Canvas(128, 64)
    canvas.trapezium(0.8, 1, 0.04, 0.05, (0.25, 0.18, 0.12))
    green = np.array([0.10, 0.24, 0.14]) * rng.uniform(0.8, 1.3)
    for k in range(6):
        top, bottom = 0.02 + 0.13 * k, 0.26 + 0.13 * k
        saw = 0.02 * np.abs((canvas.x * rng.integers(7, 12)) % 1 - 0.5)
        half = (0.1 + 0.065 * k) * (canvas.y - top) / (bottom - top)
        shade = 1.25 - 0.6 * (canvas.y - top) / (bottom - top) + 0.4 * (canvas.x - 0.5)
        inside = (canvas.y > top) & (canvas.y + saw < bottom) & (np.abs(canvas.x - 0.5) < half)
        canvas.fill(inside, green * np.clip(shade, 0, 2)[..., None])
    return canvas.rgba


def _house(rng: np.random.Generator) -> np.ndarray:
    """Walls, roof, rows of windows."""
    canvas = _Canvas(128, 128)
    wall = WALLS[rng.integers(4)]
    canvas.trapezium(0.0, 0.3, 0.25, 0.5, np.array([0.35, 0.16, 0.13]) * rng.uniform(0.7, 1.3))
    canvas.box(0.04, 0.27, 0.96, 1, wall)
    rows, columns = rng.integers(2, 4), rng.integers(3, 5)
    for i in range(rows):
        for j in range(columns):
            x0, y0 = 0.04 + 0.92 * (j + 0.25) / columns, 0.3 + 0.7 * (i + 0.2) / rows
            x1, y1 = x0 + 0.46 / columns, y0 + 0.36 / rows
            canvas.box(x0 - 0.015, y0 - 0.015, x1 + 0.015, y1 + 0.015, (0.92, 0.92, 0.9))
            canvas.box(x0, y0, x1, y1, GLASS)
    return canvas.rgba


def _lights_on(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A house with light in most windows, so bright that they shine in the dark."""
    glass = (np.abs(rgba[..., :3] - GLASS) < 1e-6).all(-1)
    lit = glass & (noise(rng, *rgba.shape[:2], 40) > -0.5)
    return np.where(lit[..., None], [6.5, 5.2, 2.8, 1.0], rgba)


def _post() -> np.ndarray:
    """A white delineator post with a black band and a reflector."""
    canvas = _Canvas(64, 12).box(0, 0, 1, 1, (0.93, 0.93, 0.91))
    canvas.box(0, 0.12, 1, 0.34, (0.07, 0.07, 0.07))
    return canvas.box(0.3, 0.16, 0.7, 0.3, (0.95, 0.55, 0.15)).rgba


def _sign(rng: np.random.Generator) -> np.ndarray:
    """A round, triangular or square sign on a pole."""
    canvas, kind = _Canvas(128, 48), rng.integers(3)
    canvas.box(0.46, 0.2, 0.54, 1, (0.55, 0.56, 0.58))
    y, x = (canvas.y - 0.19) * 128 / 48, canvas.x - 0.5
    red = (0.8, 0.1, 0.1)
    if kind == 0:
        canvas.fill(0.48 - np.hypot(x, y), red)
        canvas.fill(0.33 - np.hypot(x, y), (0.95, 0.95, 0.95))
    elif kind == 1:
        for half, colour in ((0.45, red), (0.27, (0.95, 0.93, 0.9))):
            canvas.fill(np.minimum(half - y, (y + half) - 2 * np.abs(x)), colour)
    else:
        canvas.fill(0.45 - np.maximum(np.abs(x), np.abs(y)), (0.1, 0.25, 0.6))
        canvas.fill(0.2 - np.maximum(np.abs(x), np.abs(y) * 0.7), (0.95, 0.95, 0.95))
    return canvas.rgba


def _lamp() -> np.ndarray:
    """A street lamp: pole and head."""
    pole = _Canvas(128, 32).box(0.06, 0.02, 0.18, 1, (0.35, 0.36, 0.38))
    return pole.box(0.08, 0.0, 0.95, 0.035, (0.75, 0.75, 0.7)).rgba


# --------------------------------------------------------------------------------------------------
# Cars.

def _car(front: bool, kind: int, paint: np.ndarray) -> np.ndarray:
    """A car from the front or from behind; kind 0 sedan, 1 estate, 2 van."""
    canvas = _Canvas(128, 144)
    roof, waist = (0.03, 0.02, 0.0)[kind], (0.42, 0.4, 0.44)[kind]
    top, bottom = (0.3, 0.35, 0.44)[kind], (0.42, 0.44, 0.47)[kind]     # half widths of the cabin
    canvas.box(0.1, 0.8, 0.9, 0.985, (0.02, 0.02, 0.025))               # the dark below the body
    for x in (0.03, 0.79):
        canvas.box(x, 0.74, x + 0.18, 1, (0.04, 0.04, 0.045), power=6)  # wheels
    shape = canvas.rgba.shape[:2]
    body = np.broadcast_to(1.12 - 0.5 * canvas.y, shape)[..., None] * np.asarray(paint)
    canvas.trapezium(roof, waist + 0.06, top, bottom, body)
    for x in (0.03, 0.88):
        canvas.box(x, waist - 0.09, x + 0.09, waist - 0.01, 0.8 * body, power=5)        # mirrors
    canvas.box(0.01, waist, 0.99, 0.9, body, power=(6, 7, 14)[kind])
    edge = np.minimum(1, 1.25 * body + 0.06)
    canvas.box(0.05, waist + 0.015, 0.95, waist + 0.045, edge)          # light on the body's edge
    # the upper part of the window mirrors the sky
    sky = (0.5 - 1.1 * (canvas.y - roof - 0.06) / (waist - roof)).clip(0, 1)[..., None]
    mirrored = np.array([0.42, 0.5, 0.56] if front else [0.2, 0.25, 0.3])
    glass = np.array([0.06, 0.08, 0.1]) + sky * np.ones((1, shape[1], 1)) * mirrored
    canvas.trapezium(roof + 0.065, waist - 0.015, top - 0.045, bottom - 0.055, glass)
    canvas.box(0.02, 0.77, 0.98, 0.88, (0.13, 0.13, 0.14), power=8)     # bumper
    if front:
        _add_front(canvas)
    else:
        _add_rear(canvas, lights_end=(0.62, 0.66, 0.72)[kind])
    return canvas.rgba


def _add_front(canvas: _Canvas) -> None:
    """Grille, number plate and headlights."""
    canvas.box(0.32, 0.54, 0.68, 0.66, (0.05, 0.05, 0.055), power=6)
    canvas.box(0.36, 0.75, 0.64, 0.83, (0.95, 0.95, 0.9))
    for x in (0.04, 0.72):
        canvas.box(x - 0.01, 0.52, x + 0.25, 0.68, (0.1, 0.1, 0.11), power=5)
        canvas.box(x + 0.01, 0.54, x + 0.23, 0.66, (1.0, 1.0, 0.94), power=4)


def _add_rear(canvas: _Canvas, lights_end: float) -> None:
    """Number plate and rear lights, which reach down to lights_end."""
    canvas.box(0.35, 0.6, 0.65, 0.7, (0.95, 0.95, 0.88))
    for x in (0.03, 0.75):
        canvas.box(x, 0.48, x + 0.22, lights_end + 0.01, (0.15, 0.03, 0.03), power=7)
        canvas.box(x + 0.015, 0.5, x + 0.205, lights_end - 0.01, (1.0, 0.06, 0.04), power=5)
