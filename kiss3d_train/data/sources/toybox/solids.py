"""Closed solids with outward normals, crisp creases and texture coordinates.

Every builder returns a `Solid` whose surface encloses its volume, seen counter-clockwise from
outside. Vertices are doubled along creases and texture seams; merged by position the surface is
watertight. Frame: right-handed, y up. Texture coordinates are in the solid's own units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kiss3d_train.data.sources.toybox.polygons import ear_clipped, signed_area

Array = NDArray[np.float64]

CREASE_COSINE = math.cos(math.radians(40))
"""Neighbouring faces that turn by more than this keep an edge between them."""


@dataclass(frozen=True)
class Solid:
    """A triangle mesh with per-vertex normals and texture coordinates."""

    vertices: Array  # [N, 3]
    normals: Array  # [N, 3] unit
    uv: Array  # [N, 2]
    faces: NDArray[np.int64]  # [F, 3]

    def moved(self, x: float = 0, y: float = 0, z: float = 0) -> Solid:
        """Translate."""
        return replace(self, vertices=self.vertices + np.array((x, y, z)))

    def turned(self, axis: str, degrees: float) -> Solid:
        """Rotate about a world axis ("x", "y" or "z"), counter-clockwise seen from its tip."""
        matrix = rotation(axis, degrees)
        return replace(self, vertices=self.vertices @ matrix.T, normals=self.normals @ matrix.T)

    def scaled(self, x: float = 1, y: float = 1, z: float = 1) -> Solid:
        """Stretch along the axes by positive factors."""
        factors = np.array((x, y, z), dtype=np.float64)
        return replace(self, vertices=self.vertices * factors, normals=unit(self.normals / factors))

    def mirrored(self) -> Solid:
        """Reflect left to right (x to -x)."""
        flip = np.array((-1.0, 1.0, 1.0))
        return replace(
            self,
            vertices=self.vertices * flip,
            normals=self.normals * flip,
            faces=self.faces[:, ::-1],
        )

    def bent(self, displacement: Callable[[Array], Array]) -> Solid:
        """Add `displacement(vertices)` to the vertices; normals follow by central differences."""
        step = 1e-4
        columns = [
            (displacement(self.vertices + offset) - displacement(self.vertices - offset))
            / (2 * step)
            for offset in np.eye(3) * step
        ]
        jacobian = np.stack(columns, axis=-1) + np.eye(3)  # [N, 3, 3]
        normals = np.einsum("nji,nj->ni", np.linalg.inv(jacobian), self.normals)
        return replace(
            self, vertices=self.vertices + displacement(self.vertices), normals=unit(normals)
        )


def merged(solids: Sequence[Solid]) -> Solid:
    """Several solids as one (they may overlap)."""
    offsets = np.cumsum([0] + [len(solid.vertices) for solid in solids[:-1]])
    return Solid(
        vertices=np.concatenate([solid.vertices for solid in solids]),
        normals=np.concatenate([solid.normals for solid in solids]),
        uv=np.concatenate([solid.uv for solid in solids]),
        faces=np.concatenate(
            [solid.faces + offset for solid, offset in zip(solids, offsets, strict=True)]
        ),
    )


def unit(vectors: Array) -> Array:
    """Scale vectors [..., 3] to length 1; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Array = vectors / np.where(lengths > 0, lengths, 1)
    return scaled


def rotation(axis: str, degrees: float) -> Array:
    """The 3x3 rotation about "x", "y" or "z"."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return np.array(rows[axis], dtype=np.float64)


# ---------------------------------------------------------------------------- boxes and prisms


def box(width: float, height: float, depth: float, taper: float | tuple[float, float] = 1) -> Solid:
    """A box standing on y = 0, centred in x and z; `taper` scales its top in x and z."""
    taper_x, taper_z = taper if isinstance(taper, tuple) else (taper, taper)
    signs = np.array([(x, y, z) for y in (0, 1) for z in (-1, 1) for x in (-1, 1)], dtype=float)
    corners = signs * (width / 2, height, depth / 2)
    corners[4:, 0] *= taper_x
    corners[4:, 2] *= taper_z
    sides = ((2, 3, 7, 6), (1, 0, 4, 5), (3, 1, 5, 7), (0, 2, 6, 4), (6, 7, 5, 4), (0, 1, 3, 2))
    return _flat_polygons([corners[list(side)] for side in sides])


def slab(outline: ArrayLike, depth: float) -> Solid:
    """A simple polygon [K, 2] (x, y), counter-clockwise, extruded along z and centred on z = 0."""
    points = np.asarray(outline, dtype=np.float64)
    if signed_area(points) < 0:
        points = points[::-1]
    half = depth / 2
    triangles = ear_clipped(points)
    front = _cap(points, triangles, half, 1.0)
    back = _cap(points, triangles[:, ::-1], -half, -1.0)
    around = np.concatenate([points, points[:1]])
    edges = np.diff(around, axis=0)
    edge_normals = unit(np.stack([edges[:, 1], -edges[:, 0], np.zeros(len(edges))], axis=1))
    normal_pairs = _smoothed(edge_normals, closed=True)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(edges, axis=1))])
    strips = []
    for i in range(len(points)):
        a, b = around[i], around[i + 1]
        corners = np.array([(*a, half), (*a, -half), (*b, -half), (*b, half)])
        start, end = normal_pairs[i]
        strips.append(
            Solid(
                vertices=corners,
                normals=np.array([start, start, end, end]),
                uv=np.array(
                    [(lengths[i + j], z) for j, z in ((0, half), (0, -half))]
                    + [(lengths[i + 1], -half), (lengths[i + 1], half)]
                ),
                faces=np.array([(0, 1, 2), (0, 2, 3)]),
            )
        )
    return merged([front, back, *strips])


def rounded_box(width: float, height: float, depth: float, radius: float, steps: int = 3) -> Solid:
    """A box with rounded edges standing on y = 0; `radius` is cut to half the shortest side."""
    half = np.array((width, height, depth)) / 2
    radius = min(radius, float(half.min()) * 0.999)
    core = half - radius
    angles = np.linspace(-math.pi / 4, 0, steps + 1)
    tangents = np.concatenate([np.tan(angles), np.tan(-angles[::-1])])
    sides = np.repeat([-1.0, 1.0], steps + 1)
    u, v = (grid.ravel() for grid in np.meshgrid(tangents, tangents, indexing="ij"))
    side_u, side_v = (grid.ravel() for grid in np.meshgrid(sides, sides, indexing="ij"))
    faces = _grid_faces(len(tangents), len(tangents))
    parts = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            normals = np.empty((len(u), 3))
            corner = np.empty((len(u), 3))
            first, second = (axis + 1) % 3, (axis + 2) % 3
            normals[:, axis], corner[:, axis] = sign, sign
            normals[:, first], corner[:, first] = u * sign, side_u * sign
            normals[:, second], corner[:, second] = v, side_v
            normals = unit(normals)
            vertices = corner * core + radius * normals
            uv = vertices[:, [0, 1]] if axis == 2 else vertices[:, [2, 1]]
            uv = vertices[:, [0, 2]] if axis == 1 else uv
            parts.append(Solid(vertices, normals, uv.copy(), faces))
    return merged(parts).moved(y=height / 2)


# ---------------------------------------------------------------------------- round solids


def lathe(profile: Sequence[tuple[float, float]], segments: int = 24) -> Solid:
    """Turn a profile of (radius, y) points about the y axis.

    The profile runs from the bottom outside upwards; a hollow solid comes back down inside. It is
    closed to the axis at both ends.
    """
    points = np.array(profile, dtype=np.float64)
    if points[0, 0] > 0:
        points = np.concatenate([[(0.0, points[0, 1])], points])
    if points[-1, 0] > 0:
        points = np.concatenate([points, [(0.0, points[-1, 1])]])
    steps = np.diff(points, axis=0)
    flat = np.stack([steps[:, 1], -steps[:, 0], np.zeros(len(steps))], axis=1)
    pairs = _smoothed(unit(flat))
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(steps, axis=1))])
    angles = np.linspace(-math.pi, math.pi, segments + 1)
    circle = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    circle[-1] = circle[0]
    girth = 2 * math.pi * float(points[:, 0].max())
    rings = []
    for i in range(len(steps)):
        rows = [_ring(points[i + j], pairs[i][j], circle) for j in (0, 1)]
        u = np.tile(np.linspace(0, girth, segments + 1), 2)
        v = np.repeat(lengths[[i, i + 1]], segments + 1)
        faces = _grid_faces(2, segments + 1)[:, ::-1]
        vertices = np.concatenate([row[0] for row in rows])
        corners = vertices[faces]
        area = np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        normals = np.concatenate([row[1] for row in rows])
        rings.append(Solid(vertices, normals, np.stack([u, v], axis=1), faces[area > 1e-12]))
    return merged(rings)


def cylinder(radius: float, height: float, top: float | None = None, segments: int = 24) -> Solid:
    """A cylinder standing on y = 0, or a truncated cone when `top` is given (0 makes a cone)."""
    return lathe([(radius, 0), (radius if top is None else top, height)], segments)


def ball(radius: float, segments: int = 20) -> Solid:
    """A sphere about the origin."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, segments // 2 + 1)
    profile = [(max(0.0, radius * math.cos(a)), radius * math.sin(a)) for a in angles]
    profile[0], profile[-1] = (0.0, -radius), (0.0, radius)
    return lathe(profile, segments)


def dome(radius: float, segments: int = 20) -> Solid:
    """The upper half of a sphere, standing on y = 0."""
    angles = np.linspace(0, math.pi / 2, segments // 4 + 2)
    profile = [(radius * math.cos(a), radius * math.sin(a)) for a in angles]
    profile[-1] = (0.0, radius)
    return lathe(profile, segments)


def limb(
    start: Sequence[float], end: Sequence[float], radius: float, end_radius: float | None = None
) -> Solid:
    """A round bar with hemispherical ends between two points."""
    tip = radius if end_radius is None else end_radius
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    length = float(np.linalg.norm(b - a))
    low = [(radius * math.cos(t), radius * math.sin(t)) for t in np.linspace(-math.pi / 2, 0, 5)]
    high = [(tip * math.cos(t), length + tip * math.sin(t)) for t in np.linspace(0, math.pi / 2, 5)]
    low[0], high[-1] = (0.0, -radius), (0.0, length + tip)
    matrix = _frame((b - a) / length)
    solid = lathe(low + high, 14)
    return replace(solid, vertices=solid.vertices @ matrix.T + a, normals=solid.normals @ matrix.T)


def tube(
    path: ArrayLike, radius: float | Sequence[float], closed: bool = False, segments: int = 12
) -> Solid:
    """A round tube along points [K, 3]; `closed` joins the last point to the first."""
    points = np.asarray(path, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), len(points))
    if closed:
        tangents = unit(np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0))
    else:
        tangents = unit(np.gradient(points, axis=0))
    frame = _frame(tangents[0])
    side = frame[:, 0]
    angles = np.linspace(0, 2 * math.pi, segments + 1)
    rows: list[Array] = []
    for tangent in tangents:
        side = unit(side - tangent * float(side @ tangent))
        up = np.cross(tangent, side)
        row = np.outer(np.cos(angles), side) + np.outer(np.sin(angles), up)
        row[-1] = row[0]
        rows.append(row)
    if closed:
        points, radii = np.concatenate([points, points[:1]]), np.append(radii, radii[0])
        rows.append(rows[0])
    normals = np.stack(rows)
    vertices = points[:, None] + normals * radii[:, None, None]
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    girth = np.linspace(0, 2 * math.pi * float(radii.max()), segments + 1)
    u, v = np.meshgrid(girth, lengths)
    body = Solid(
        vertices=vertices.reshape(-1, 3),
        normals=normals.reshape(-1, 3),
        uv=np.stack([u.ravel(), v.ravel()], axis=1),
        faces=_grid_faces(len(points), segments + 1)[:, ::-1],
    )
    if closed:
        return body
    ends = (vertices[0][::-1], -tangents[0]), (vertices[-1], tangents[-1])
    return merged([body, *(_disc(ring, normal) for ring, normal in ends)])


def ring(radius: float, thickness: float, segments: int = 32) -> Solid:
    """A torus about the y axis, centred on the origin."""
    angles = np.linspace(0, 2 * math.pi, segments, endpoint=False)
    path = np.stack([np.sin(angles), np.zeros(segments), np.cos(angles)], axis=1) * radius
    return tube(path, thickness, closed=True)


def arc(
    radius: float, start: float, end: float, steps: int = 12, center: tuple[float, float] = (0, 0)
) -> Array:
    """Points [steps, 2] on a circle from `start` to `end` degrees, counter-clockwise from +x."""
    angles = np.radians(np.linspace(start, end, steps))
    points: Array = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + center
    return points


# ---------------------------------------------------------------------------- shared pieces


def _flat_polygons(polygons: Sequence[Array]) -> Solid:
    parts = []
    for corners in polygons:
        normal = unit(np.cross(corners[1] - corners[0], corners[2] - corners[0]))
        right = unit(corners[1] - corners[0])
        up = np.cross(normal, right)
        local = corners - corners[0]
        parts.append(
            Solid(
                vertices=corners,
                normals=np.tile(normal, (len(corners), 1)),
                uv=np.stack([local @ right, local @ up], axis=1),
                faces=np.array([(0, i, i + 1) for i in range(1, len(corners) - 1)]),
            )
        )
    return merged(parts)


def _ring(point: Array, normal: Array, circle: Array) -> tuple[Array, Array]:
    radius, y = point
    height = np.full(len(circle), y)
    lift = np.full(len(circle), normal[1])
    vertices = np.stack([circle[:, 0] * radius, height, circle[:, 1] * radius], axis=1)
    normals = np.stack([circle[:, 0] * normal[0], lift, circle[:, 1] * normal[0]], axis=1)
    return vertices, normals


def _grid_faces(rows: int, columns: int) -> NDArray[np.int64]:
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    quads = [np.stack(corner, axis=-1).reshape(-1, 3) for corner in ((a, b, c), (a, c, d))]
    return np.concatenate(quads)


def _smoothed(normals: Array, closed: bool = False) -> list[tuple[Array, Array]]:
    """The normals at both ends of each segment: averaged with the neighbour unless creased."""
    count = len(normals)

    def joined(i: int, j: int) -> Array:
        own: Array = normals[i]
        if not (closed or 0 <= j < count):
            return own
        other = normals[j % count]
        return own if float(own @ other) < CREASE_COSINE else unit(own + other)

    return [(joined(i, i - 1), joined(i, i + 1)) for i in range(count)]


def _frame(direction: Array) -> Array:
    """A rotation whose second column is `direction`."""
    helper = np.array((0.0, 0.0, 1.0)) if abs(direction[2]) < 0.9 else np.array((1.0, 0.0, 0.0))
    x = unit(np.cross(direction, helper))
    return np.stack([x, direction, np.cross(x, direction)], axis=1)


def _disc(rim: Array, normal: Array) -> Solid:
    points = np.concatenate([rim.mean(axis=0, keepdims=True), rim])
    faces = np.array([(0, i, i + 1) for i in range(1, len(rim))])
    local = points - points[0]
    frame = _frame(normal)
    return Solid(points, np.tile(normal, (len(points), 1)), local @ frame[:, [0, 2]], faces)


def _cap(points: Array, triangles: NDArray[np.int64], z: float, facing: float) -> Solid:
    vertices = np.column_stack([points, np.full(len(points), z)])
    normals = np.tile((0.0, 0.0, facing), (len(points), 1))
    return Solid(vertices, normals, points.copy(), triangles)
