"""Named colours, materials and tileable patterns; every paint knows the word a caption uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Color = tuple[float, float, float]

COLORS: dict[str, Color] = {
    "red": (0.82, 0.17, 0.16),
    "orange": (0.94, 0.50, 0.13),
    "yellow": (0.97, 0.79, 0.20),
    "green": (0.25, 0.62, 0.31),
    "teal": (0.10, 0.56, 0.56),
    "light blue": (0.47, 0.73, 0.91),
    "blue": (0.16, 0.38, 0.78),
    "purple": (0.49, 0.30, 0.67),
    "pink": (0.94, 0.56, 0.69),
    "brown": (0.46, 0.29, 0.17),
    "beige": (0.86, 0.77, 0.62),
    "grey": (0.55, 0.57, 0.60),
    "black": (0.13, 0.13, 0.15),
    "white": (0.92, 0.91, 0.88),
}
"""sRGB values of the colour words."""

VIVID = ("red", "orange", "yellow", "green", "teal", "light blue", "blue", "purple", "pink")
"""Colours that stand out against a white background."""

SKIN: tuple[Color, ...] = (
    (0.96, 0.80, 0.69),
    (0.87, 0.66, 0.51),
    (0.66, 0.45, 0.32),
    (0.40, 0.26, 0.19),
)
HAIR: dict[str, Color] = {
    "black": (0.10, 0.09, 0.09),
    "brown": (0.36, 0.22, 0.13),
    "blond": (0.86, 0.69, 0.36),
    "red": (0.66, 0.27, 0.12),
}
WOODS: tuple[Color, ...] = ((0.76, 0.57, 0.36), (0.62, 0.42, 0.25), (0.45, 0.29, 0.18))

TEXTURE_SIZE = 64
"""Patterns are drawn as square tiles of this many pixels."""

Pattern = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Paint:
    """A surface: its caption word, its sRGB colour and perhaps a pattern in a second colour."""

    word: str
    color: Color
    second: Color | None = None
    pattern: str | None = None
    size: float = 0.5
    """Side of one pattern tile in the object's units."""


def plain(word: str) -> Paint:
    """A plain colour from `COLORS`."""
    return Paint(word, COLORS[word])


def wooden(shade: int = 0, size: float = 0.5) -> Paint:
    """Wood grain; `shade` runs from light to dark."""
    light = WOODS[shade % len(WOODS)]
    dark = (light[0] * 0.74, light[1] * 0.72, light[2] * 0.70)
    return Paint("wooden", light, dark, "grain", size)


def striped(first: str, second: str, size: float = 0.5) -> Paint:
    """Stripes of two colours along the texture's u direction."""
    return Paint(f"{first} and {second} striped", COLORS[first], COLORS[second], "stripes", size)


def checked(first: str, second: str, size: float = 0.5) -> Paint:
    """A chequerboard of two colours."""
    return Paint(f"{first} and {second} checked", COLORS[first], COLORS[second], "checks", size)


def dotted(first: str, second: str, size: float = 0.4) -> Paint:
    """Dots of the second colour on the first."""
    return Paint(f"{first} and {second} dotted", COLORS[first], COLORS[second], "dots", size)


METAL = Paint("metal", (0.66, 0.68, 0.71))
DARK_METAL = Paint("dark metal", (0.28, 0.29, 0.32))
GOLDEN = Paint("golden", (0.86, 0.66, 0.24))
GLASS = Paint("glass", (0.36, 0.50, 0.58))
RUBBER = Paint("black", (0.11, 0.11, 0.12))
LEAVES = Paint("green", (0.24, 0.52, 0.24), (0.33, 0.63, 0.28), "dots", 0.25)
BRICK = Paint("brick", (0.66, 0.30, 0.22), (0.82, 0.76, 0.70), "bricks", 0.6)
STONE = Paint("stone", (0.63, 0.62, 0.59), (0.47, 0.46, 0.44), "bricks", 0.8)
STRAW = Paint("straw", (0.83, 0.68, 0.36), (0.68, 0.52, 0.25), "grain", 0.3)

WORDS = (
    *COLORS,
    *(paint.word for paint in (METAL, DARK_METAL, GOLDEN, BRICK, STONE, STRAW)),
    "wooden",
)
"""Colours and materials that can stand before an object's name."""


def tiles(word: str, size: float = 0.5) -> Paint:
    """Roof tiles of a colour, with darker joints."""
    color = COLORS[word]
    return Paint(word, color, (color[0] * 0.68, color[1] * 0.68, color[2] * 0.68), "bricks", size)


# ---------------------------------------------------------------------------- patterns


@lru_cache(maxsize=256)
def texture(paint: Paint) -> NDArray[np.float32] | None:
    """The paint's pattern as an sRGB image [S, S, 3] in [0, 1] that tiles, or None when plain."""
    if paint.pattern is None or paint.second is None:
        return None
    steps = (np.arange(TEXTURE_SIZE) + 0.5) / TEXTURE_SIZE
    v, u = np.meshgrid(steps[::-1], steps, indexing="ij")
    weight = np.clip(PATTERNS[paint.pattern](u, v), 0, 1)[..., None]
    image = np.asarray(paint.color) * (1 - weight) + np.asarray(paint.second) * weight
    return image.astype(np.float32)


def _stripes(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    return (u >= 0.5).astype(np.float64)


def _checks(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((u >= 0.5) ^ (v >= 0.5)).astype(np.float64)


def _dots(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    centers = ((0.25, 0.25), (0.75, 0.75))
    nearest = np.minimum(*(np.hypot(u - x, v - y) for x, y in centers))
    edge: NDArray[np.float64] = (0.17 - nearest) * TEXTURE_SIZE / 2 + 0.5
    return edge


def _bricks(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    row = np.floor(v * 4)
    across = (u * 2 + 0.5 * (row % 2)) % 1
    joint = (across < 0.06) | ((v * 4) % 1 < 0.12)
    return joint.astype(np.float64)


def _grain(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = 2 * np.pi
    wobble = 0.35 * np.sin(turn * v) + 0.2 * np.sin(turn * (2 * v + u))
    rings = np.sin(turn * 4 * u + 3 * wobble) + 0.5 * np.sin(turn * 9 * u + 5 * wobble)
    weight: NDArray[np.float64] = 0.35 + 0.28 * rings
    return weight


PATTERNS: dict[str, Pattern] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "bricks": _bricks,
    "grain": _grain,
}
