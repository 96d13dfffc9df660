"""What an object's silhouettes and normals tell of its shape, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.bundle.masks import normal_masks
from kiss3d_infer.bundle.normals import decode

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]

_SLENDER = 3.0
"""The longest side over the middle one, from which an object is slender."""
_FLAT = 0.2
"""The shortest side over the middle one, up to which an object is flat or thin."""
_ROUND_ERROR = 0.12
_MIRROR_ERROR = 0.05
_STEEPEST_VIEW = 15.0
"""Degrees; from higher up, a silhouette says little about height."""


@dataclass(frozen=True)
class Shape:
    """Measurements of an object's shape.

    Attributes:
        width: extent along x, in tiles; depth and height likewise.
        round_error: how far horizontal normals are from those of a solid of revolution, [0, 2].
        mirror_error: how far the front view is from its mirror image, [0, 1].
    """

    width: float
    depth: float
    height: float
    round_error: float
    mirror_error: float

    @property
    def attributes(self) -> list[str]:
        """The words that hold, at most one of proportion and one of symmetry."""
        return [word for word in (self._proportion(), self._symmetry()) if word]

    def _proportion(self) -> str:
        shortest, middle, longest = sorted((self.width, self.depth, self.height))
        if longest >= _SLENDER * middle:
            return "tall and slender" if self.height == longest else "long and slender"
        if shortest <= _FLAT * middle:
            return "flat" if self.height == shortest else "thin"
        return ""

    def _symmetry(self) -> str:
        if self.round_error <= _ROUND_ERROR:
            return "round"
        return "symmetric" if self.mirror_error <= _MIRROR_ERROR else ""


def measured_shape(bundle: Bundle) -> Shape | None:
    """Measure the views from the front and from a side.

    None where the layout has no such views near the horizon: nothing is said then.
    """
    front, side = _view(bundle.layout, 0), _view(bundle.layout, 90)
    if front is None or side is None:
        return None
    masks = normal_masks(bundle)
    if not (masks[front].any() and masks[side].any()):
        return None
    normals = [decode(bundle.normal_colors[view]).numpy() for view in (front, side)]
    width, height = _extent(masks[front])
    depth, _ = _extent(masks[side])
    # A camera above the horizon sees the top, too.
    elevation = math.radians(abs(bundle.layout.elevations[front]))
    height = max(0.0, height - depth * math.sin(elevation)) / math.cos(elevation)
    return Shape(
        width=width,
        depth=depth,
        height=height,
        round_error=max(
            _round_error(masks[view], normal)
            for view, normal in zip((front, side), normals, strict=True)
        ),
        mirror_error=_mirror_error(masks[front], normals[0]),
    )


def _view(layout: BundleLayout, azimuth: int) -> int | None:
    """The lowest view from this azimuth or from opposite."""
    found = [
        view
        for view in range(layout.num_views)
        if (layout.azimuths[view] - azimuth) % 180 == 0
        and abs(layout.elevations[view]) <= _STEEPEST_VIEW
    ]
    return min(found, key=lambda view: abs(layout.elevations[view]), default=None)


def _extent(mask: Mask) -> tuple[float, float]:
    """Columns and rows that a mask [T, T] spans, as shares of the tile."""
    rows, columns = np.nonzero(mask)
    size = len(mask)
    return (np.ptp(columns) + 1) / size, (np.ptp(rows) + 1) / size


def _round_error(mask: Mask, normals: Floats) -> float:
    """Mean difference of sideways normals [3, T, T] from those of a solid of revolution.

    On one, the horizontal part of a normal points away from the axis: at the share s of the
    silhouette's half width, its x is s. Rows weigh as their pixels; faces that look up or down
    say nothing.
    """
    rows = np.nonzero(mask.any(1))[0]
    from_axis = np.arange(mask.shape[1]) + 0.5 - mask.shape[1] / 2
    half = np.abs(mask[rows] * from_axis).max(1)
    share = from_axis / half[:, None]
    sideways = np.hypot(normals[0], normals[2])[rows]
    counted = mask[rows] & (sideways > 0.3)
    if not counted.any():
        return 2.0
    across = normals[0][rows] / np.maximum(sideways, 1e-6)
    return float(np.abs(across - share)[counted].mean())


def _mirror_error(mask: Mask, normals: Floats) -> float:
    """Share of the front view that differs from its mirror image, in outline or in normals.

    What is one pixel wide does not count: edges fall on pixels differently on either side.
    """
    flipped = normals[:, :, ::-1] * np.array([-1, 1, 1])[:, None, None]
    both = mask & mask[:, ::-1]
    bent = np.linalg.norm(normals - flipped, axis=0) > 0.5
    differs = (mask ^ mask[:, ::-1]) | (both & bent)
    differs = ndimage.binary_opening(differs, np.ones((2, 2)))
    return float(differs.sum() / (mask | mask[:, ::-1]).sum())
