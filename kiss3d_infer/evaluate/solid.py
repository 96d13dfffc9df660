"""Volumes that closed meshes share."""

import numpy as np

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.topology import Bool, Float64, Int32, compiled, directed_edges
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import weld


def volume_iou(made: Mesh, truth: Mesh, resolution: int = 64) -> float:
    """Intersection over union of the insides, counted in voxels of the box around both meshes.

    A voxel is inside a mesh whose winding number about the voxel's centre is not 0, so parts may
    overlap and a shell that faces inward makes a hollow.

    Args:
        made: closed.
        truth: closed.
        resolution: voxels along each axis of the box.

    Raises:
        InputError: a mesh is open, or neither mesh holds the centre of a voxel.
    """
    solids = [_closed(mesh, name) for mesh, name in ((made, "made"), (truth, "true"))]
    low = np.minimum(*(vertices.min(0) for vertices, _ in solids))
    extent = np.maximum(*(vertices.max(0) for vertices, _ in solids)) - low
    if extent.min() > 0:
        first, second = (
            _inside((vertices - low) / extent * resolution, faces, resolution)
            for vertices, faces in solids
        )
        if (union := np.count_nonzero(first | second)) > 0:
            return float(np.count_nonzero(first & second) / union)
    raise InputError("the meshes are too thin for the voxels", fix="take more voxels")


def _closed(mesh: Mesh, name: str) -> tuple[Float64, Int32]:
    """Vertices and faces, welded; as many faces run along each edge one way as the other."""
    vertices, index = weld(mesh.vertices)
    faces = index[mesh.faces.long()].int().numpy()
    start, end = directed_edges(faces)
    forward, backward = np.sort(start * len(vertices) + end), np.sort(end * len(vertices) + start)
    if len(faces) == 0 or not np.array_equal(forward, backward):
        raise InputError(
            f"the {name} mesh has no inside: it is open, or its faces are not wound consistently",
            fix="close it, or leave the volume out",
        )
    return vertices.double().numpy(), faces


def _inside(points: Float64, faces: Int32, resolution: int) -> Bool:
    """Which voxels [X, Y, Z] lie inside, of vertices in units of voxels."""
    steps = np.zeros((resolution, resolution, resolution + 1), np.int32)
    _add_crossings(points, faces, steps)
    winding = np.cumsum(steps, axis=2)[:, :, :-1]
    inside: Bool = winding != 0
    return inside


@compiled
def _add_crossings(points: Float64, faces: Int32, steps: Int32) -> None:
    """Add, at the first voxel above each face in each column, how the winding number changes."""
    num_x, num_y, num_z = steps.shape[0], steps.shape[1], steps.shape[2] - 1
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        left = max(0, int(np.ceil(min(points[a, 0], points[b, 0], points[c, 0]) - 0.5)))
        right = min(num_x - 1, int(np.floor(max(points[a, 0], points[b, 0], points[c, 0]) - 0.5)))
        near = max(0, int(np.ceil(min(points[a, 1], points[b, 1], points[c, 1]) - 0.5)))
        far = min(num_y - 1, int(np.floor(max(points[a, 1], points[b, 1], points[c, 1]) - 0.5)))
        for i in range(left, right + 1):
            for j in range(near, far + 1):
                u, side_u = _side(points, b, c, i + 0.5, j + 0.5)
                v, side_v = _side(points, c, a, i + 0.5, j + 0.5)
                w, side_w = _side(points, a, b, i + 0.5, j + 0.5)
                if side_u == side_v == side_w and side_u != 0:
                    height = (u * points[a, 2] + v * points[b, 2] + w * points[c, 2]) / (u + v + w)
                    k = min(max(int(np.ceil(height - 0.5)), 0), num_z)
                    steps[i, j, k] -= side_u  # a face that looks down is where a column enters


@compiled
def _side(points: Float64, start: int, end: int, x: float, y: float) -> tuple[float, int]:
    """Twice the area between an edge and (x, y), and on which side of the edge that lies (+1 left).

    Both faces at an edge must agree, or a column would pass between them or meet both: the ends
    are taken in one order, and a tie is broken as if (x, y) lay a trifle further along x, then y.
    """
    turned = 1
    if start > end:
        start, end, turned = end, start, -1
    run, rise = points[end, 0] - points[start, 0], points[end, 1] - points[start, 1]
    area = run * (y - points[start, 1]) - rise * (x - points[start, 0])
    deciding = area
    if deciding == 0.0:
        deciding = -rise
    if deciding == 0.0:
        deciding = run
    side = 1 if deciding > 0.0 else (-1 if deciding < 0.0 else 0)
    return turned * area, turned * side
