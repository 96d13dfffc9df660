"""Initial shapes: a sphere, the silhouettes' hull, or the hull carved by integrated normals."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from kiss3d_infer.reconstruct.integrate import integrate_normals, perspective_normals
from kiss3d_infer.reconstruct.settings import StartName
from kiss3d_infer.reconstruct.slices import inside_silhouettes, nearest_depths
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Bool, Float32, Float64, Int32, Int64
from kiss3d_infer.reconstruct.volume import (
    Grid,
    hull_grid,
    project,
    sample,
    silhouette_distance,
    surface,
    visual_hull,
)
from kiss3d_infer.scene.raster.threads import for_each_view

_NUM_VOXELS = 96
_DEPTH_SIZE = 128
_NUM_DEPTHS = 161
_ROW_SHARE = 0.97
_LEAST_SEGMENT = 4
_MARGIN = 0.01
_STEEPEST_VIEW = 30.0
"""Degrees of elevation up to which an image row is near enough to a horizontal slice."""
_LEAST_COVERAGE = 0.5
"""Share of the hull's silhouettes that a carved shape must still fill by itself."""
_REFILL_VOXELS = 2.0
"""How much worse than the best voxel behind a pixel another may be and still be given back."""


@dataclass(frozen=True)
class Start:
    """An initial shape.

    Attributes:
        vertices: [N, 3] world units.
        faces: [F, 3] closed and outward.
        name: what it is in the end, after falling back where the asked one made no sense.
    """

    vertices: Float32
    faces: Int32
    name: StartName | Literal["mesh", "lrm"]

    @property
    def is_rough(self) -> bool:
        """Whether nothing is lost by beginning with long edges."""
        return self.name not in ("mesh", "lrm")


def make_start(name: StartName, target: Target) -> Start:
    """Build the asked start; carve falls back to hull, and hull to sphere, when it comes out empty.

    Args:
        name: "carve" knows concavities and thin parts, "hull" only outlines, "sphere" nothing.
        target: on the CPU.
    """
    if name != "sphere":
        shapes = _HullAndDepth(target)
        if name == "carve" and (carved := shapes.carved()) is not None:
            return Start(*carved, "carve")
        vertices, faces = surface(shapes.hull, shapes.grid)
        if len(faces):
            return Start(vertices, faces, "hull")
    return Start(*_sphere(), "sphere")


def _sphere(radius: float = 0.5) -> tuple[Float32, Int32]:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32)


class _HullAndDepth:
    """The hull of a target's silhouettes, and the depth of what its normal maps show."""

    def __init__(self, target: Target) -> None:
        self._target = target.resized(min(_DEPTH_SIZE, target.size))
        self._cameras = target.cameras
        self._distances = np.stack([silhouette_distance(a[..., 0].numpy()) for a in target.alpha])
        self.grid: Grid = hull_grid(self._distances, self._cameras, _NUM_VOXELS)
        self.hull = visual_hull(self.grid, self._distances, self._cameras)

    def carved(self) -> tuple[Float32, Int32] | None:
        """The hull without what lies before a visible surface; None if that eats the object."""
        values = self.hull.copy()
        points, matrices = self.grid.points, self._cameras.world_to_clip.numpy()
        views = [v for v, e in enumerate(self._cameras.elevations) if abs(e) <= _STEEPEST_VIEW]
        depths = for_each_view(lambda i: self._surface_depth(views[i]), len(views)) if views else []
        for view, depth in zip(views, depths, strict=True):
            toward = self._cameras.rotations[view, :, 2].numpy()
            own_depth = np.float32(self._cameras.distance) - points @ toward
            pixels = project(points, matrices[view], self._target.size)
            values = np.minimum(values, own_depth - sample(depth, pixels, outside=0.0))
        return surface(values, self.grid) if self._refill(values) else None

    def _refill(self, values: Float32) -> bool:
        """Give back, in place, what a view shows and no voxel is left for, where it fits best.

        Thin parts whose depth was misjudged would otherwise vanish. Returns False when more is
        missing than a few parts.
        """
        inside = np.flatnonzero(self.hull > 0)
        points, flat = self.grid.points.reshape(-1, 3)[inside], values.reshape(-1)
        size, is_sound = _NUM_VOXELS, True
        for matrix in self._cameras.world_to_clip.numpy():
            row, column = np.rint(project(points, matrix, size)).astype(np.int64)
            pixel = row.clip(0, size - 1) * size + column.clip(0, size - 1)
            best = np.full(size * size, -np.inf, np.float32)
            np.maximum.at(best, pixel, flat[inside])
            missing = (best <= 0) & np.isfinite(best)
            is_sound &= missing.sum() < (1 - _LEAST_COVERAGE) * np.isfinite(best).sum()
            nearly = flat[inside] > best[pixel] - _REFILL_VOXELS * self.grid.spacing
            flat[inside[missing[pixel] & nearly]] = self.grid.spacing / 2
        return is_sound

    def _surface_depth(self, view: int) -> Float32:
        """Depth [S, S] of the surface a view sees, a margin nearer; 0 where it is unknown."""
        target, cameras = self._target, self._cameras
        coverage = target.alpha[view, ..., 0].numpy()
        mask = coverage > 0.5
        if not mask.any():
            return np.zeros(coverage.shape, np.float32)
        world = target.normals[view].double().numpy() / np.maximum(coverage, 1e-6)[..., None]
        normals = world @ cameras.rotations[view].double().numpy()
        focal = cameras.focal * target.size / 2
        height, segments = integrate_normals(perspective_normals(normals, focal), mask)
        rays = self._rays(view)[mask]
        labels, rows = segments[mask], np.nonzero(mask)[0]
        shape = np.exp(-height[mask] / focal)
        shape /= ndimage.median(shape, labels, np.arange(labels.max() + 1))[labels]
        depth = (shape * self._segment_depths(view, shape, rays, labels, rows)[labels]).astype("f4")
        points = cameras.positions[view].numpy() + rays * depth[:, None]
        # Two surfaces merged by mistake put one of them outside the other views' silhouettes.
        depth[~inside_silhouettes(points, *self._others(view, slack=4.0))] = np.nan
        return _spread_depth(mask, depth)

    def _rays(self, view: int) -> Float32:
        """World vectors [S, S, 3] from the camera to each pixel's point at depth 1."""
        size, focal = self._target.size, self._cameras.focal
        x = ((np.arange(size) + 0.5) / size * 2 - 1) / focal
        across, down = np.meshgrid(x, x)
        local = np.stack([across, -down, -np.ones_like(across)], -1)
        rays: Float32 = (local @ self._cameras.rotations[view].numpy().T).astype(np.float32)
        return rays

    def _segment_depths(
        self,
        view: int,
        shape: Float64,
        rays: Float32,
        labels: Int64,
        rows: Int64,
    ) -> Float64:
        """Absolute median depth of each segment [K], nan where no depth is consistent.

        Under a near-horizontal camera a row of pixels sees a horizontal slice, whose front must
        touch the outline that the other views give it: so each row votes for the least depth that
        keeps it inside the other silhouettes, and the segment takes the median vote.
        """
        cameras, size = self._cameras, self._target.size
        keys, groups = np.unique(labels * size + rows, return_inverse=True)
        counts = np.bincount(groups)
        half = float(np.abs(self.grid.points.reshape(-1, 3)).max()) * 1.5
        ends = cameras.distance + half, max(cameras.distance - half, 0.1)
        nearest = nearest_depths(
            cameras.positions[view].numpy(),
            rays * shape[:, None].astype(np.float32),
            groups.astype(np.int32),
            counts.astype(np.int32),
            np.linspace(*ends, _NUM_DEPTHS, dtype=np.float32),
            *self._others(view, slack=1.5),
            _ROW_SHARE,
        )
        depths = np.full(labels.max() + 1, np.nan)
        sizes = np.bincount(labels)[keys // size]
        voted = ~np.isnan(nearest) & (sizes >= _LEAST_SEGMENT)
        for label in np.unique(keys[voted] // size):
            votes = voted & (keys // size == label)
            depths[label] = _weighted_median(nearest[votes], counts[votes])
        return depths

    def _others(self, view: int, slack: float) -> tuple[Float32, Float32, float]:
        """Cameras and silhouettes of all other views, give or take `slack` depth-map pixels."""
        other = [k for k in range(len(self._cameras)) if k != view]
        limit = -slack * self._distances.shape[1] / self._target.size
        return self._cameras.world_to_clip.numpy()[other], self._distances[other], limit


def _spread_depth(mask: Bool, depth: Float32) -> Float32:
    """Depths of the masked pixels as an image that carves nothing where they are unknown."""
    image = np.full(mask.shape, np.nan, np.float32)
    image[mask] = depth
    unknown = np.isnan(image)
    if unknown.all():
        return np.zeros(mask.shape, np.float32)
    gap, (row, column) = ndimage.distance_transform_edt(unknown, return_indices=True)
    spread: Float32 = image[row, column] - np.float32(_MARGIN)
    spread[(gap > 1.5) & mask] = 0
    return spread


def _weighted_median(values: Float64, weights: Int64) -> float:
    order = np.argsort(-values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])
