"""A closed surface around any mesh: what can be seen of it from outside, with its gaps closed."""

import numpy as np
import torch
from torch.nn import functional

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.cleanup import simplified
from kiss3d_infer.reconstruct.topology import Float32, Int32, is_closed_manifold
from kiss3d_infer.reconstruct.volume import Grid, project, sample, signed_volumes, surface
from kiss3d_infer.scene.camera import Cameras, all_around
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import weld
from kiss3d_infer.scene.raster import rasterizer_for

_NUM_VOXELS = 112
_NUM_FACES = 6_000
_NUM_DIRECTIONS = 42
_DEPTH_SIZE = 320
_VIEWS_AT_ONCE = 14
_MARGIN_VOXELS = 0.75
"""Half the thickness that a sheet gets: thinner ones fall between the voxels."""
_MARGIN_PIXELS = 2
"""The same in a depth map, where a sheet seen edge-on is thinner than a pixel."""


def closed_surface(mesh: Mesh) -> tuple[Float32, Int32]:
    """The mesh's own triangles if they are closed and outward, else a shell around them.

    The shell holds every place that fewer than three directions see: files of real objects are
    sheets, parts that run into each other and surfaces with holes, none of which can be refined as
    they are. It is up to three voxels thicker than the surface.

    Args:
        mesh: in the frame of the bundle, see `framed`.

    Returns:
        vertices [N, 3] and faces [F, 3], closed and outward.

    Raises:
        InputError: the mesh is empty.
    """
    if len(mesh.faces) == 0:
        raise InputError("the start mesh is empty", fix="give a mesh with at least one triangle")
    points, index = weld(mesh.vertices)
    faces = index[mesh.faces.long()].int()
    used, faces = torch.unique(faces, return_inverse=True)
    vertices, triangles = points[used].numpy(), faces.int().numpy()
    if (
        is_closed_manifold(triangles, len(vertices))
        and signed_volumes(vertices, triangles).sum() > 0
    ):
        return vertices, triangles
    return _shell(mesh)


@torch.no_grad()
def _shell(mesh: Mesh) -> tuple[Float32, Int32]:
    low, high = (end.float().numpy() for end in (mesh.vertices.amin(0), mesh.vertices.amax(0)))
    margin = np.float32(3 * (high - low).max() / _NUM_VOXELS)
    grid = Grid.covering(low - margin, high + margin, _NUM_VOXELS)
    points = grid.points
    lowest, second, third = (np.full(grid.shape, np.inf, np.float32) for _ in range(3))
    azimuths, elevations = all_around(_NUM_DIRECTIONS)
    for first in range(0, _NUM_DIRECTIONS, _VIEWS_AT_ONCE):
        some = slice(first, first + _VIEWS_AT_ONCE)
        cameras = Cameras(azimuths[some], elevations[some])
        rasterizer = rasterizer_for("cpu")
        fragments = rasterizer.rasterize(
            cameras.clip(mesh.vertices), mesh.faces, (_DEPTH_SIZE, _DEPTH_SIZE)
        )
        nearness = functional.max_pool2d(
            cameras.nearness(fragments.depth), 2 * _MARGIN_PIXELS + 1, 1, _MARGIN_PIXELS
        )
        depths = (1 / nearness).numpy()
        for view, matrix in enumerate(cameras.world_to_clip.numpy()):
            toward = cameras.rotations[view, :, 2].numpy()
            own = np.float32(cameras.distance) - points @ toward
            seen = sample(depths[view], project(points, matrix, _DEPTH_SIZE), outside=cameras.far)
            hidden = own - seen  # how far behind the surface
            lowest, hidden = np.minimum(lowest, hidden), np.maximum(lowest, hidden)
            second, hidden = np.minimum(second, hidden), np.maximum(second, hidden)
            third = np.minimum(third, hidden)
    dense = surface(third + np.float32(_MARGIN_VOXELS * grid.spacing), grid)
    # Edges far shorter than the refinement's would crumple in its first steps.
    return simplified(*dense, _NUM_FACES)
