"""The colours an object shows, measured on its render and named in words."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.masks import normal_masks

Floats = NDArray[np.float64]

ANCHORS: tuple[tuple[str, str], ...] = (
    ("red", "c81e1e"),
    ("red", "8c1414"),
    ("red", "b42846"),
    ("orange", "f07814"),
    ("yellow", "f5d72d"),
    ("yellow", "dcaa28"),
    ("green", "3c9632"),
    ("green", "1e5a28"),
    ("green", "8cbe46"),
    ("teal", "148c8c"),
    ("light blue", "78b9e6"),
    ("blue", "1e46be"),
    ("blue", "142864"),
    ("blue", "1c2440"),
    ("blue", "2d78d2"),
    ("purple", "7832aa"),
    ("purple", "501e6e"),
    ("pink", "f08cb4"),
    ("pink", "e650a0"),
    ("brown", "784b28"),
    ("brown", "46280f"),
    ("brown", "a06e41"),
    ("beige", "dcc8a0"),
    ("beige", "c8aa82"),
    ("grey", "8c8c8c"),
    ("grey", "5a5a5a"),
    ("black", "141414"),
    ("white", "f5f5f5"),
)
"""Names and sRGB values of unlit surfaces; a name may have several."""

_LIGHTS = (0.5, 0.7, 0.9)
"""Linear light that a surface receives: the renderer's darkest, middle and brightest."""
_LEAST_SHARE = 0.15
_MAX_COLORS = 2
_MAX_SIDE = 48
"""Pixels per tile that are looked at; more change nothing but the time."""


def measured_colors(bundle: Bundle) -> list[tuple[str, float]]:
    """The names of the colours that cover most of the object, with their shares, largest first.

    Each pixel of the RGB row takes the name of the anchor that is nearest in CIELAB under the light
    that suits it best; a name needs 15 % of the object, and there are at most two.

    Args:
        bundle: rendered, so that its normal row tells the object from the background.
    """
    names, palette = _palette()
    pixels = _inner_pixels(bundle)
    if not len(pixels):
        return []
    distances = ((_lab(pixels)[:, None] - palette) ** 2).sum(-1)
    counts = np.bincount(names[distances.argmin(1)], minlength=len(_names()))
    shares = counts / counts.sum()
    order = np.argsort(-shares)[:_MAX_COLORS]
    return [(_names()[i], float(shares[i])) for i in order if shares[i] >= _LEAST_SHARE]


@lru_cache(maxsize=1)
def _names() -> list[str]:
    return list(dict.fromkeys(name for name, _ in ANCHORS))


@lru_cache(maxsize=1)
def _palette() -> tuple[NDArray[np.intp], Floats]:
    """Name indices [P] and CIELAB values [P, 3] of every anchor under every light."""
    from skimage.color import rgb2xyz, xyz2lab

    srgb = np.array([list(bytes.fromhex(value)) for _, value in ANCHORS]) / 255
    lit = np.concatenate([rgb2xyz(srgb) * light for light in _LIGHTS])
    names = np.array([_names().index(name) for name, _ in ANCHORS] * len(_LIGHTS))
    return names, np.asarray(xyz2lab(lit))


def _lab(srgb: Floats) -> Floats:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(srgb))


def _inner_pixels(bundle: Bundle) -> Floats:
    """sRGB [N, 3] of the object, without the pixels at its edge that white shines through."""
    stride = max(1, bundle.tile // _MAX_SIDE)
    masks = normal_masks(bundle)
    inner = ndimage.binary_erosion(masks, np.ones((1, 3, 3)))
    inner = (inner if inner.any() else masks)[:, ::stride, ::stride]
    views = bundle.rgb[:, :, ::stride, ::stride].permute(0, 2, 3, 1).numpy()
    return np.asarray(views[inner], dtype=np.float64)
