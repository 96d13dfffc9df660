"""Triangles of flat outlines."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def signed_area(points: Array) -> float:
    """Of a simple polygon [K, 2]: positive if its points run counter-clockwise."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def ear_clipped(points: Array) -> NDArray[np.int64]:
    """Triangulate a simple counter-clockwise polygon [K, 2] by clipping ears.

    Returns:
        Indices [K - 2, 3] of its points, counter-clockwise too.

    Raises:
        ValueError: the outline crosses itself.
    """
    left = list(range(len(points)))
    triangles = []
    while len(left) > 3:
        for i in range(len(left)):
            trio = left[i - 1], left[i], left[(i + 1) % len(left)]
            corners = points[list(trio)]
            if signed_area(corners) <= 1e-12:
                continue
            others = points[[p for p in left if p not in trio]]
            if not _any_inside(others, corners):
                triangles.append(trio)
                del left[i]
                break
        else:
            raise ValueError("the outline crosses itself")
    triangles.append((left[0], left[1], left[2]))
    return np.array(triangles)


def _any_inside(points: Array, triangle: Array) -> bool:
    inside = np.ones(len(points), dtype=bool)
    for a, b in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
        edge, offset = b - a, points - a
        inside &= edge[0] * offset[:, 1] - edge[1] * offset[:, 0] >= 0
    return bool(inside.any())
