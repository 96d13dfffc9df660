"""The CPU rasterizer's compiled kernels for silhouette edges; `edges` is their reference.

Shapes as in `kernels`; opposite [F, 3] and crossings [H, W, 2] int32 as in `edges`.
"""

import numpy as np

from kiss3d_infer.scene.raster.edges import MAX_WALK, START_SLACK, WALK_SLACK
from kiss3d_infer.scene.raster.kernels import Floats, Ints, kernel


@kernel
def opposite_edges(faces: Ints, num_vertices: int, opposite: Ints) -> None:
    """Same as `edges.opposite_edges`, by two counting sorts over the edges' ends."""
    num_edges = faces.size
    low = np.empty(num_edges, np.int32)
    high = np.empty(num_edges, np.int32)
    for e in range(num_edges):
        a, b = faces[e // 3, (e + 1) % 3], faces[e // 3, (e + 2) % 3]
        low[e], high[e] = min(a, b), max(a, b)
    order = np.arange(num_edges).astype(np.int32)
    order = _counting_sort(_counting_sort(order, high, num_vertices), low, num_vertices)
    opposite[:] = -1
    first = 0
    while first < num_edges:
        e = order[first]
        last = first + 1
        while last < num_edges and low[order[last]] == low[e] and high[order[last]] == high[e]:
            last += 1
        if last - first == 2 and low[e] != high[e]:
            g = order[first + 1]
            opposite[e // 3, e % 3] = g
            opposite[g // 3, g % 3] = e
        first = last


@kernel
def _counting_sort(order: Ints, keys: Ints, num_keys: int) -> Ints:
    """The items of `order` stably sorted by their keys in [0, num_keys)."""
    starts = np.zeros(num_keys + 1, np.int32)
    for key in keys:
        starts[key + 1] += 1
    for key in range(num_keys):
        starts[key + 1] += starts[key]
    placed = np.empty_like(order)
    for item in order:
        placed[starts[keys[item]]] = item
        starts[keys[item]] += 1
    return placed


@kernel
def find_crossings(
    screen: Floats, faces: Ints, opposite: Ints, face: Ints, depth: Floats, crossings: Ints
) -> None:
    """Same as `edges.find_crossings`, for one view."""
    height, width = face.shape
    crossings[:] = 0
    for i in range(height):
        for j in range(width):
            for axis in range(2):
                i1, j1 = i + axis, j + 1 - axis
                if i1 >= height or j1 >= width:
                    continue
                here, there = face[i, j], face[i1, j1]
                if here == there:
                    continue
                if there == 0 or (here != 0 and depth[i, j] <= depth[i1, j1]):
                    crossings[i, j, axis] = _walk(
                        screen, faces, opposite, here - 1, there - 1, j + 0.5, i + 0.5, axis, 1.0
                    )
                else:
                    crossings[i, j, axis] = -_walk(
                        screen, faces, opposite, there - 1, here - 1, j1 + 0.5, i1 + 0.5, axis, -1.0
                    )


@kernel
def _walk(
    screen: Floats,
    faces: Ints,
    opposite: Ints,
    f: int,
    target: int,
    x: float,
    y: float,
    axis: int,
    sign: float,
) -> int:
    """The silhouette edge (1 + 3 f + k) within one pixel along the axis from (x, y), else 0."""
    entered, travelled = -1, -START_SLACK
    for _ in range(MAX_WALK):
        k, distance = _exit_edge(screen, faces, f, entered, travelled, x, y, axis, sign)
        if k < 0 or distance > 1.0:
            return 0
        across = opposite[f, k]
        if across < 0 or _folds(screen, faces, f, k, across):
            return 1 + 3 * f + k if _is_steep(screen, faces, f, k, axis) else 0
        f = across // 3
        if f == target:  # the surface goes on to the other pixel
            return 0
        entered, travelled = across % 3, distance - WALK_SLACK
    return 0


@kernel
def _exit_edge(
    screen: Floats,
    faces: Ints,
    f: int,
    entered: int,
    travelled: float,
    x: float,
    y: float,
    axis: int,
    sign: float,
) -> tuple[int, float]:
    """The edge by which the ray leaves face f, and how far along the ray; -1 when there is none."""
    found, furthest = -1, 0.0
    for k in range(3):
        a, b = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
        distance = _crossing(screen, a, b, x, y, axis) * sign
        if k != entered and distance >= travelled and (found < 0 or distance > furthest):
            found, furthest = k, distance
    return found, furthest


@kernel
def _crossing(screen: Floats, a: int, b: int, x: float, y: float, axis: int) -> float:
    """Where edge ab crosses the line along the axis through (x, y), from there; NaN if nowhere."""
    ax, ay, bx, by = screen[a, 0] - x, screen[a, 1] - y, screen[b, 0] - x, screen[b, 1] - y
    if axis == 1:
        ax, ay, bx, by = ay, ax, by, bx
    if (ay < 0.0) == (by < 0.0):
        return np.nan
    return float((ax * by - bx * ay) / (by - ay))


@kernel
def _folds(screen: Floats, faces: Ints, f: int, k: int, across: int) -> bool:
    """Whether both faces at edge k of f lie on one side of it on the screen: a silhouette."""
    a, b = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
    p, q = faces[f, k], faces[across // 3, across % 3]
    ax, ay = np.float64(screen[a, 0]), np.float64(screen[a, 1])
    bx, by = screen[b, 0] - ax, screen[b, 1] - ay
    side_p = bx * (screen[p, 1] - ay) - by * (screen[p, 0] - ax)
    side_q = bx * (screen[q, 1] - ay) - by * (screen[q, 0] - ax)
    return not side_p * side_q < 0.0


@kernel
def _is_steep(screen: Floats, faces: Ints, f: int, k: int, axis: int) -> bool:
    """Whether pixel pairs along this axis are the ones that resolve the edge."""
    a, b = faces[f, (k + 1) % 3], faces[f, (k + 2) % 3]
    dx, dy = abs(screen[b, 0] - screen[a, 0]), abs(screen[b, 1] - screen[a, 1])
    return bool(dy >= dx if axis == 0 else dx > dy)


@kernel
def blend(image: Floats, screen: Floats, faces: Ints, crossings: Ints, out: Floats) -> None:
    """Blend pixel pairs by where their crossing lies; same as `edges.blend`."""
    height, width, channels = image.shape
    out[:] = image
    for i in range(height):
        for j in range(width):
            for axis in range(2):
                code = crossings[i, j, axis]
                if code == 0:
                    continue
                sign, i0, j0, i1, j1 = _inside_outside(code, i, j, axis)
                edge = abs(code) - 1
                a, b = faces[edge // 3, (edge + 1) % 3], faces[edge // 3, (edge + 2) % 3]
                excess = _crossing(screen, a, b, j0 + 0.5, i0 + 0.5, axis) * sign - 0.5
                for k in range(channels):
                    change = excess * (image[i0, j0, k] - image[i1, j1, k])
                    if excess > 0.0:
                        out[i1, j1, k] += change
                    else:
                        out[i0, j0, k] += change


@kernel
def _inside_outside(code: int, i: int, j: int, axis: int) -> tuple[float, int, int, int, int]:
    """Direction from the surface's pixel to the other, and both pixels' rows and columns."""
    if code > 0:
        return 1.0, i, j, i + axis, j + 1 - axis
    return -1.0, i + axis, j + 1 - axis, i, j


@kernel
def blend_backward(
    grad: Floats,
    image: Floats,
    screen: Floats,
    faces: Ints,
    crossings: Ints,
    grad_image: Floats,
    grad_screen: Floats,
) -> None:
    """Write the image's gradient of `blend` and add that of the screen positions [N, 2]."""
    height, width, channels = image.shape
    grad_image[:] = grad
    for i in range(height):
        for j in range(width):
            for axis in range(2):
                code = crossings[i, j, axis]
                if code == 0:
                    continue
                sign, i0, j0, i1, j1 = _inside_outside(code, i, j, axis)
                edge = abs(code) - 1
                a, b = faces[edge // 3, (edge + 1) % 3], faces[edge // 3, (edge + 2) % 3]
                where = _crossing(screen, a, b, j0 + 0.5, i0 + 0.5, axis)
                excess = where * sign - 0.5
                grad_excess = 0.0
                for k in range(channels):
                    g = grad[i1, j1, k] if excess > 0.0 else grad[i0, j0, k]
                    grad_excess += g * (image[i0, j0, k] - image[i1, j1, k])
                    grad_image[i0, j0, k] += excess * g
                    grad_image[i1, j1, k] -= excess * g
                _add_crossing(
                    grad_screen, screen, a, b, j0 + 0.5, i0 + 0.5, axis, where, grad_excess * sign
                )


@kernel
def _add_crossing(
    grad_screen: Floats,
    screen: Floats,
    a: int,
    b: int,
    x: float,
    y: float,
    axis: int,
    where: float,
    grad: float,
) -> None:
    """The derivative of `_crossing` with respect to both ends of the edge."""
    along, across = axis, 1 - axis
    centre = x if axis == 0 else y
    middle = y if axis == 0 else x
    a_across, b_across = screen[a, across] - middle, screen[b, across] - middle
    scale = grad / (b_across - a_across)
    grad_screen[a, along] += scale * b_across
    grad_screen[b, along] -= scale * a_across
    grad_screen[a, across] += scale * (where - (screen[b, along] - centre))
    grad_screen[b, across] += scale * (screen[a, along] - centre - where)
