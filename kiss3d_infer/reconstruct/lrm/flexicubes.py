"""Isosurfaces by FlexiCubes (Shen et al., SIGGRAPH 2023, arXiv 2308.05371), for inference.

Dual marching cubes with weights per cube: alpha moves the crossings along the edges, beta the dual
vertex among them, gamma chooses the diagonal of a quad. The field is negative inside, faces wind
counter-clockwise seen from outside, where the field is positive.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.lrm.cube_tables import (
    CORNERS,
    EDGE_AXES,
    EDGES,
    FACE_STEPS,
    cube_tables,
)
from kiss3d_infer.reconstruct.topology import Float32, Int32, Int64

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceCubes:
    """The cubes of a grid that the surface crosses.

    Attributes:
        cells: [K, 3] grid indices of each cube's least corner.
        values: [K, 8] the field at its corners.
        patch: [K, 12] patch of each edge within its cube, -1 where the surface does not cross it.
    """

    cells: Int64
    values: Float32
    patch: Int64

    @property
    def corners(self) -> Int64:
        """Grid indices [K, 8, 3] of the corners."""
        return self.cells[:, None] + CORNERS


@dataclass(frozen=True)
class CubeWeights:
    """Positive weights per cube.

    Attributes:
        alpha: [K, 8] of the corners.
        beta: [K, 12] of the edges.
        gamma: [K].
    """

    alpha: Float32
    beta: Float32
    gamma: Float32

    @classmethod
    def ones(cls, num_cubes: int) -> "CubeWeights":
        """Weights that change nothing: plain dual marching cubes."""
        return cls(*(np.ones((num_cubes, *rest), np.float32) for rest in ((8,), (12,), ())))


def surface_cubes(field: Float32) -> SurfaceCubes:
    """Find the cubes that hold the surface.

    What touches the grid's border is closed there: the outermost values count as not inside.

    Args:
        field: [X, Y, Z] at the grid's vertices, negative inside.

    Raises:
        InputError: the field has one sign throughout, or is not finite.
    """
    if not np.isfinite(field).all():
        raise InputError("the LRM's field is not finite", fix="fetch or convert its weights again")
    inner = field[1:-1, 1:-1, 1:-1] < 0
    if inner.all() or not inner.any():
        sign = "inside" if inner.all() else "outside"
        raise InputError(
            f"the LRM's field has no surface: it is {sign} everywhere",
            fix="use another start, such as carve",
        )
    closed = np.maximum(field, 0)
    closed[1:-1, 1:-1, 1:-1] = field[1:-1, 1:-1, 1:-1]
    num_inside = sum(c.astype(np.int8) for c in _corner_views(closed < 0))
    cells = np.argwhere((num_inside > 0) & (num_inside < 8))
    values = closed[tuple(np.moveaxis(cells[:, None] + CORNERS, 2, 0))]
    case = ((values < 0) << np.arange(8)).sum(1)
    rule = _joins_inside(cells, case, inner.shape).astype(np.int64)
    return SurfaceCubes(cells, values, cube_tables().patch[rule, case])


def dual_surface(
    cubes: SurfaceCubes,
    positions: Float32,  # [K, 8, 3]
    weights: CubeWeights,
) -> tuple[Float32, Int32]:
    """Place a vertex per patch and a quad, cut in two, per crossed grid edge.

    Args:
        cubes: from `surface_cubes`.
        positions: [K, 8, 3] of the cubes' corners; shared corners must have the same position.
        weights: one row per cube.

    Returns:
        vertices [N, 3] and faces [F, 3], a closed manifold.
    """
    cube, edge = np.nonzero(cubes.patch >= 0)
    num_patches = cubes.patch.max(1) + 1
    first = np.cumsum(num_patches) - num_patches
    vertex = first[cube] + cubes.patch[cube, edge]
    crossings = _crossings(cubes.values, positions, weights.alpha, cube, edge)
    share = weights.beta[cube, edge].astype(np.float64)
    total = np.bincount(vertex, share)
    sums = [np.bincount(vertex, share * crossings[:, k]) for k in range(3)]
    vertices = np.stack(sums, 1) / total[:, None]
    quads = _quads(cubes, cube, edge, vertex)
    gamma = np.repeat(weights.gamma, num_patches)
    return vertices.astype(np.float32), _split(quads, gamma)


def _corner_views(grid: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The grid's values at corner 0, 1, ... 7 of every cube, each [X - 1, Y - 1, Z - 1]."""
    spans = (slice(None, -1), slice(1, None))
    return [grid[spans[x], spans[y], spans[z]] for x, y, z in CORNERS]


def _joins_inside(cells: Int64, case: Int64, inner: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which cubes join their inside corners: pairs that are pinched on the face they share."""
    face = cube_tables().pinched[case]
    pinched = np.full([n + 3 for n in inner], -1, np.int8)  # a cell of margin on every side
    pinched[tuple(cells.T + 1)] = face
    beyond = pinched[tuple((cells + FACE_STEPS[face]).T + 1)]
    opposite = face ^ 1  # faces come in pairs -x, +x
    joins: NDArray[np.bool_] = (face >= 0) & (beyond == opposite)
    return joins


def _crossings(
    values: Float32, positions: Float32, alpha: Float32, cube: Int64, edge: Int64
) -> Float64:
    """Where the surface crosses each edge of each cube [M, 3] (equation 4)."""
    scaled = values.astype(np.float64) * alpha
    low, high = EDGES[edge].T
    at_low, at_high = scaled[cube, low, None], scaled[cube, high, None]
    across = at_high * positions[cube, low] - at_low * positions[cube, high]
    crossings: Float64 = across / (at_high - at_low)
    return crossings


def _quads(cubes: SurfaceCubes, cube: Int64, edge: Int64, vertex: Int64) -> Int64:
    """The vertices of the four cubes around each crossed grid edge [Q, 4], counter-clockwise."""
    axis = EDGE_AXES[edge]
    offset = CORNERS[EDGES[edge, 0]]
    rows = np.arange(len(edge))
    u, v = offset[rows, (axis + 1) % 3], offset[rows, (axis + 2) % 3]
    quarter = np.where(v == 0, u, 3 - u)  # round the axis: the cube lies on the far side
    place = cubes.cells[cube] + offset
    size = int(place.max()) + 1
    grid_edge = ((axis * size + place[:, 0]) * size + place[:, 1]) * size + place[:, 2]
    order = np.argsort(grid_edge * 4 + quarter)
    quads = vertex[order].reshape(-1, 4)
    # Outward is the direction in which the field grows along the edge.
    leaves = cubes.values[cube, EDGES[edge, 0]][order[::4]] < 0
    return np.where(leaves[:, None], quads, quads[:, ::-1])


def _split(quads: Int64, gamma: Float32) -> Int32:
    """Two triangles per quad, along the diagonal whose ends have the larger product of gamma."""
    a, b, c, d = gamma[quads].T
    first = np.where((a * c > b * d)[:, None], quads, np.roll(quads, -1, 1))
    faces = np.stack([first[:, [0, 1, 2]], first[:, [0, 2, 3]]], 1)
    return np.ascontiguousarray(faces.reshape(-1, 3), np.int32)
