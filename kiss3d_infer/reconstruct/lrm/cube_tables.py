"""How a surface can pass through a cube whose corners lie inside or outside: dual marching cubes.

A cube's case has bit c set where corner c is inside. The edges that the surface crosses fall into
closed loops, linked through the cube's faces; each loop is a patch and gets one dual vertex.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CORNERS: NDArray[np.int64] = np.array([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)])
"""Offsets [8, 3] of the corners, x fastest."""
EDGES: NDArray[np.int64] = np.array(
    [
        *[[0, 1], [1, 5], [4, 5], [0, 4]],
        *[[2, 3], [3, 7], [6, 7], [2, 6]],
        *[[0, 2], [1, 3], [5, 7], [4, 6]],
    ]
)
"""Corners [12, 2] of the edges, the lower first, in the order that trained weights follow."""
EDGE_AXES: NDArray[np.int64] = (CORNERS[EDGES[:, 1]] - CORNERS[EDGES[:, 0]]).argmax(1)

FACE_STEPS: NDArray[np.int64] = np.array(
    [[side if axis == k else 0 for k in range(3)] for axis in range(3) for side in (-1, 1)]
)
"""Steps [6, 3] to the neighbours across the faces -x, +x, -y, +y, -z, +z."""
_FACE_CORNERS = [
    [c for c in range(8) if CORNERS[c, axis] == side] for axis in range(3) for side in (0, 1)
]


@dataclass(frozen=True)
class CubeTables:
    """Patches by [rule, case]; rule 0 keeps inside corners apart on ambiguous faces, 1 joins them.

    A face is ambiguous when its inside corners lie on a diagonal. One rule for all faces makes
    neighbours agree, so the surface is closed.

    Attributes:
        patch: [2, 256, 12] the patch of each edge, -1 where the surface does not cross it.
        num_patches: [2, 256].
        pinched: [256] the ambiguous face whose four crossed edges all lie in one patch under rule
            0, else -1. Two such cubes across that face would share two dual edges between the
            same two vertices, an edge with four faces: the pairs of C16 and C19 that the
            supplement of FlexiCubes (section 1.3) inverts. Under rule 1 they are not pinched, and
            they have no other ambiguous face, so nobody else notices.
    """

    patch: NDArray[np.int64]
    num_patches: NDArray[np.int64]
    pinched: NDArray[np.int64]


@cache
def cube_tables() -> CubeTables:
    """Derive the tables."""
    patch = np.array([[_patches(case, rule) for case in range(256)] for rule in (0, 1)])
    pinched = np.array([_pinched_face(case, patch[0, case]) for case in range(256)])
    return CubeTables(patch, patch.max(2) + 1, pinched)


def _patches(case: int, rule: int) -> list[int]:
    """The patch of each edge, numbered by each patch's first edge."""
    inside = [case >> c & 1 for c in range(8)]
    patch = [e if inside[a] != inside[b] else -1 for e, (a, b) in enumerate(EDGES)]
    for face in range(6):
        for first, second in _links(face, inside, rule):
            low, high = sorted((patch[first], patch[second]))
            patch = [low if label == high else label for label in patch]
    numbers = {label: k for k, label in enumerate(sorted(set(patch) - {-1}))}
    return [numbers.get(label, -1) for label in patch]


def _links(face: int, inside: list[int], rule: int) -> list[list[int]]:
    """The pairs of edges that the surface connects across a face."""
    crossed = _crossed_edges(face, inside)
    if len(crossed) < 4:
        return [crossed] if crossed else []
    # The surface goes round the corners that it separates.
    lone = [c for c in _FACE_CORNERS[face] if inside[c] != rule]
    return [[e for e in crossed if c in EDGES[e]] for c in lone]


def _crossed_edges(face: int, inside: list[int]) -> list[int]:
    corners = _FACE_CORNERS[face]
    return [
        e
        for e, (a, b) in enumerate(EDGES)
        if a in corners and b in corners and inside[a] != inside[b]
    ]


def _pinched_face(case: int, patch: NDArray[np.int64]) -> int:
    inside = [case >> c & 1 for c in range(8)]
    for face in range(6):
        crossed = _crossed_edges(face, inside)
        if len(crossed) == 4 and len(set(patch[crossed])) == 1:
            return face
    return -1
