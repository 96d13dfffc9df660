"""Signed volumes on a voxel grid, seen through the views' cameras, and surfaces out of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kiss3d_infer.reconstruct.topology import Float32, Int32, neighbour_means
from kiss3d_infer.scene.camera import Cameras

_NOTHING = 1e-6
"""World units that a surface may lie beside a corner of its grid."""
_TAUBIN_SHRINK, _TAUBIN_GROW = 0.5, -0.53
"""Taubin's lambda and mu: smooths without shrinking (SIGGRAPH 1995)."""


@dataclass(frozen=True)
class Grid:
    """Voxel centres of an axis-aligned box.

    Attributes:
        lower: the box's least corner, world units.
        spacing: side of a voxel.
        shape: number of voxels along x, y, z.
    """

    lower: tuple[float, float, float]
    spacing: float
    shape: tuple[int, int, int]

    @classmethod
    def covering(cls, lower: Float32, upper: Float32, num_voxels: int) -> "Grid":
        """The grid over a box with `num_voxels` along its longest side."""
        spacing = float((upper - lower).max()) / num_voxels
        x, y, z = (int(n) for n in np.ceil((upper - lower) / spacing - 1e-6))
        return cls((float(lower[0]), float(lower[1]), float(lower[2])), spacing, (x, y, z))

    @property
    def points(self) -> Float32:
        """[X, Y, Z, 3] voxel centres."""
        axes = [
            start + (np.arange(n, dtype=np.float32) + np.float32(0.5)) * self.spacing
            for start, n in zip(self.lower, self.shape, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)


def project(points: Float32, world_to_clip: Float32, size: int) -> Float32:
    """Pixel coordinates (row, column) [2, ...] of points [..., 3]; row 0 is the top.

    The centre of the first pixel is (0, 0), as `scipy.ndimage` counts.
    """
    clip = points @ world_to_clip[:, :3].T + world_to_clip[:, 3]
    column = (clip[..., 0] / clip[..., 3] + 1) * (size / 2) - 0.5
    row = (1 - clip[..., 1] / clip[..., 3]) * (size / 2) - 0.5
    pixels: Float32 = np.stack([row, column]).astype(np.float32)
    return pixels


def sample(image: Float32, pixels: Float32, outside: float) -> Float32:
    """Bilinear values of an image [S, S] at (row, column) coordinates [2, ...]."""
    values: Float32 = ndimage.map_coordinates(
        image, pixels, order=1, mode="constant", cval=outside, output=np.float32
    )
    return values


def silhouette_distance(coverage: Float32) -> Float32:
    """Signed distance [S, S] in pixels to a silhouette's edge, positive inside."""
    inside = coverage > 0.5
    if inside.all() or not inside.any():
        return np.full(coverage.shape, len(coverage) if inside.all() else -len(coverage), "f4")
    within = ndimage.distance_transform_edt(inside) - 0.5
    beyond = ndimage.distance_transform_edt(~inside) - 0.5
    distance: Float32 = np.where(inside, within, -beyond).astype(np.float32)
    return distance


def pixel_pitch(cameras: Cameras, size: int) -> float:
    """Width in world units of a pixel at the origin's distance."""
    return 2 * cameras.distance / (cameras.focal * size)


def visual_hull(grid: Grid, distances: Float32, cameras: Cameras) -> Float32:
    """How deep each voxel lies within all silhouettes, [X, Y, Z] world units, positive inside.

    Args:
        grid: the voxels.
        distances: [V, S, S] of each view, from `silhouette_distance`.
        cameras: V of them.
    """
    points, matrices = grid.points, cameras.world_to_clip.numpy()
    size = len(distances[0])
    depth = np.full(grid.shape, np.inf, np.float32)
    for distance, matrix in zip(distances, matrices, strict=True):
        pixels = project(points, matrix, size)
        depth = np.minimum(depth, sample(distance, pixels, outside=-float(size)))
    return depth * np.float32(pixel_pitch(cameras, size))


def hull_grid(distances: Float32, cameras: Cameras, num_voxels: int) -> Grid:
    """A grid that fits the silhouettes' hull tightly; the whole field of view if it is empty."""
    half = 1.1 * cameras.distance / cameras.focal
    coarse = Grid.covering(np.full(3, -half, np.float32), np.full(3, half, np.float32), 48)
    inside = visual_hull(coarse, distances, cameras) > -coarse.spacing
    if not inside.any():
        return coarse
    occupied = coarse.points[inside]
    # Twice the spacing: a thin part may slip between the voxels.
    return Grid.covering(
        occupied.min(0) - 2 * coarse.spacing, occupied.max(0) + 2 * coarse.spacing, num_voxels
    )


def surface(values: Float32, grid: Grid, smoothing_rounds: int = 5) -> tuple[Float32, Int32]:
    """The zero level of a volume that is positive inside: a closed, outward mesh.

    Returns:
        vertices [N, 3] and faces [F, 3]; both empty when nothing is inside.
    """
    from skimage.measure import marching_cubes

    if not (values > 0).any():
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
    # A negative shell closes what touches the border.
    padded = np.pad(values, 1, constant_values=min(float(values.min()), -_NOTHING))
    # Where a corner of a cell is exactly zero, scikit-image (0.26) may leave a face out.
    padded[np.abs(padded) < _NOTHING] = -_NOTHING
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
    vertices = np.asarray((vertices - 0.5) * grid.spacing + grid.lower, np.float32)
    faces = np.ascontiguousarray(faces, np.int32)
    for _ in range(smoothing_rounds):
        for factor in (_TAUBIN_SHRINK, _TAUBIN_GROW):
            vertices += np.float32(factor) * (neighbour_means(vertices, faces) - vertices)
    return vertices, faces


def signed_volumes(vertices: Float32, faces: Int32) -> NDArray[np.float64]:
    """Signed volume of the tetrahedron that each face spans with the origin, [F]."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    volumes: NDArray[np.float64] = np.einsum("ij,ij->i", a, np.cross(b, c)) / 6
    return volumes
