"""Bilateral normal integration: a depth map, broken at its discontinuities, from a normal map.

Cao et al., "Bilateral normal integration" (ECCV 2022), written from the paper's equations: every
pixel believes its normal on both sides of an axis and learns which side is continuous. Written
over the pixel graph's edges, each iteration is one weighted graph Laplacian.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.special import expit

from kiss3d_infer.reconstruct.topology import Bool, Float64, Int64, compiled

_LEAST_FACING = 0.08
"""Grazing normals count as turned to the viewer by this much."""
_RELIABLE_FACING = 0.2
"""Below this a small error of the normal is a large one of the slope: no basis to join pixels."""


@dataclass(frozen=True)
class _PixelGraph:
    """The masked pixels and the edges between horizontal and vertical neighbours.

    Attributes:
        mask: [H, W] pixels that take part; N of them, numbered row by row.
        ends: per axis (right, down), pixel numbers [2, E] from the earlier to the later pixel.
    """

    mask: Bool
    ends: tuple[Int64, Int64]

    @classmethod
    def of(cls, mask: Bool) -> "_PixelGraph":
        number = np.full(mask.shape, -1, np.int64)
        number[mask] = np.arange(int(mask.sum()))
        right = np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
        down = np.stack([number[:-1].ravel(), number[1:].ravel()])
        return cls(mask, (right[:, (right >= 0).all(0)], down[:, (down >= 0).all(0)]))

    @property
    def num_pixels(self) -> int:
        return int(self.mask.sum())


def perspective_normals(normals: Float64, focal: float) -> Float64:
    """Turn camera normals into those of the log-depth surface -f log(depth), which is orthographic.

    With that unknown, perspective integration has the orthographic form if the normal's z becomes
    n_z - (n_x u + n_y v) / f, where u, v are the pixel's offsets from the centre.

    Args:
        normals: [H, W, 3] camera normals (x right, y up, z toward the viewer), row 0 at the top.
        focal: focal length in pixels.
    """
    height, width = normals.shape[:2]
    u = np.arange(width) + 0.5 - width / 2
    v = height / 2 - np.arange(height)[:, None] - 0.5
    adapted = normals.copy()
    adapted[..., 2] -= (normals[..., 0] * u + normals[..., 1] * v) / focal
    return adapted


def integrate_normals(
    normals: Float64, mask: Bool, *, sharpness: float = 2.0, max_iterations: int = 15
) -> tuple[Float64, Int64]:
    """Integrate a normal map and cut it where the depth jumps.

    Args:
        normals: [H, W, 3] (x right, y up, z toward the viewer), row 0 at the top; orthographic, or
            from `perspective_normals`.
        mask: [H, W] pixels of the object.
        sharpness: how fast the two sides of a pixel are told apart (k in the paper).
        max_iterations: of the reweighted least squares.

    Returns:
        height: [H, W] in pixels toward the viewer, each segment up to a constant; 0 outside.
        segments: [H, W] labels of connected pieces of surface; -1 outside.
    """
    graph = _PixelGraph.of(mask)
    facing = np.maximum(normals[mask][:, 2], _LEAST_FACING)
    # Image rows run downward while y points up.
    slopes = (-normals[mask][:, 0], normals[mask][:, 1])
    surface = _solve(graph, facing, slopes, sharpness, max_iterations)
    height = np.zeros(mask.shape)
    height[mask] = surface
    segments = np.full(mask.shape, -1, np.int64)
    segments[mask] = _segment(graph, surface, facing, slopes)
    return height, segments


def _solve(
    graph: _PixelGraph,
    facing: Float64,
    slopes: tuple[Float64, Float64],
    sharpness: float,
    max_iterations: int,
) -> Float64:
    """Minimise sum over edge ends p of w_p (facing_p (z_q - z_p) - slope_p)^2, reweighting w."""
    size = graph.num_pixels
    starts, ends = np.concatenate(graph.ends, axis=1)
    surface = np.zeros(size)
    # Weight of each pixel's edge to the later (right, lower) pixel; the earlier side has the rest.
    later = [np.full(size, 0.5), np.full(size, 0.5)]
    energy = np.inf
    for _ in range(max_iterations):
        conductances, drops = [], []
        for (start, end), slope, weight in zip(graph.ends, slopes, later, strict=True):
            at_start = facing[start] * weight[start]
            at_end = facing[end] * (1 - weight[end])
            conductances.append(facing[start] * at_start + facing[end] * at_end)
            drops.append(at_start * slope[start] + at_end * slope[end])
        relax(starts, ends, np.concatenate(conductances), np.concatenate(drops), surface)
        previous, energy = energy, 0.0
        for axis in range(2):
            start, end = graph.ends[axis]
            jump = surface[end] - surface[start]
            to_later, to_earlier = np.zeros(size), np.zeros(size)
            to_later[start] = (facing[start] * jump - slopes[axis][start]) ** 2
            to_earlier[end] = (facing[end] * jump - slopes[axis][end]) ** 2
            energy += float(later[axis] @ to_later + (1 - later[axis]) @ to_earlier)
            later[axis] = expit(sharpness * (to_earlier - to_later))
        if np.isfinite(previous) and previous - energy <= 1e-3 * previous:
            break
    return surface


@compiled
def relax(
    starts: Int64,
    ends: Int64,
    conductances: Float64,
    drops: Float64,
    surface: Float64,
    shift: float = 1e-5,
    tolerance: float = 1e-4,
    max_iterations: int = 400,
) -> None:
    """Solve, in place, a graph's Laplacian system by conjugate gradients.

    For every node p: shift z_p + sum over its edges of c (z_p - z_q) = what the drops put there.
    Compiled: scipy's solver spends five times as long around each product as in it.

    Args:
        starts: [E] first node of each edge.
        ends: [E] second node.
        conductances: [E] c, not negative.
        drops: [E] added at the second node and subtracted at the first.
        surface: [N] the guess, which becomes the solution.
        shift: keeps the system definite where nothing ties a piece down.
        tolerance: of the residual's length against the right side's.
        max_iterations: at most.
    """
    diagonal = np.full(surface.shape, shift)
    residual = np.zeros(surface.shape)
    for e in range(len(starts)):
        diagonal[starts[e]] += conductances[e]
        diagonal[ends[e]] += conductances[e]
        residual[starts[e]] -= drops[e]
        residual[ends[e]] += drops[e]
    enough = tolerance * tolerance * np.dot(residual, residual)
    applied = np.empty(surface.shape)
    _apply(starts, ends, conductances, shift, surface, applied)
    residual -= applied
    direction = residual / diagonal
    along = np.dot(residual, direction)
    for _ in range(max_iterations):
        if np.dot(residual, residual) <= enough:
            return
        _apply(starts, ends, conductances, shift, direction, applied)
        step = along / np.dot(direction, applied)
        surface += step * direction
        residual -= step * applied
        preconditioned = residual / diagonal
        previous, along = along, np.dot(residual, preconditioned)
        direction = preconditioned + (along / previous) * direction


@compiled
def _apply(
    starts: Int64, ends: Int64, conductances: Float64, shift: float, values: Float64, out: Float64
) -> None:
    out[:] = shift * values
    for e in range(len(starts)):
        flow = conductances[e] * (values[ends[e]] - values[starts[e]])
        out[starts[e]] -= flow
        out[ends[e]] += flow


def _segment(
    graph: _PixelGraph,
    surface: Float64,
    facing: Float64,
    slopes: tuple[Float64, Float64],
    tolerance: float = 3.0,
) -> Int64:
    """Label the pixels connected by jumps that the normals at both ends explain, in pixels."""
    joined = []
    for (start, end), slope in zip(graph.ends, slopes, strict=True):
        expected = np.stack([slope[start] / facing[start], slope[end] / facing[end]])
        jump = surface[end] - surface[start]
        explained = (jump > expected.min(0) - tolerance) & (jump < expected.max(0) + tolerance)
        explained &= np.minimum(facing[start], facing[end]) > _RELIABLE_FACING
        joined.append(np.stack([start, end])[:, explained])
    start, end = np.concatenate(joined, axis=1)
    size = graph.num_pixels
    adjacency = sparse.coo_matrix((np.ones(len(start)), (start, end)), shape=(size, size))
    labels: Int64 = csgraph.connected_components(adjacency, directed=False)[1].astype(np.int64)
    return labels
