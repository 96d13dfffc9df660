"""From an optimised mesh to a light, watertight one without debris."""

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from kiss3d_infer.reconstruct.topology import Float32, Int32, Int64, is_closed_manifold
from kiss3d_infer.reconstruct.volume import signed_volumes

_LEAST_AREA_SHARE = 0.002
"""Of the whole area, below which a component is debris."""
_FIRST_TOLERANCE, _LAST_TOLERANCE = 1e-4, 0.05
"""World units by which simplification may move the surface."""
_TOLERANCE_GROWTH = 1.3
_HAIR = 1e-4
"""World units between two vertices that shared a place."""


def clean(vertices: Float32, faces: Int32, num_faces: int) -> tuple[Float32, Int32]:
    """Drop debris and inner shells, then simplify to at most about `num_faces` faces.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3] closed and outward.
        num_faces: the budget, see `simplified`.

    Returns:
        Closed, outward vertices and faces.
    """
    vertices, faces = simplified(*without_debris(vertices, faces), num_faces)
    vertices, faces = without_debris(vertices, faces)  # simplification parts what hung by a thread
    return without_contacts(vertices, faces), faces


def without_debris(vertices: Float32, faces: Int32) -> tuple[Float32, Int32]:
    """Keep the components that have a real share of the area and face outward.

    A component of negative volume is the inside of a hollow that no view can see. If nothing
    qualifies, the largest component stays.
    """
    component = _components(faces, len(vertices))
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.bincount(component, np.linalg.norm(normals, axis=1) / 2)
    volume = np.bincount(component, signed_volumes(vertices, faces))
    kept = (area > _LEAST_AREA_SHARE * area.sum()) & (volume > 0)
    if not kept.any():
        kept[np.argmax(np.abs(volume))] = True
    faces = faces[kept[component]]
    used, renumbered = np.unique(faces, return_inverse=True)
    faces = renumbered.reshape(-1, 3).astype(np.int32)
    vertices = vertices[used]
    if signed_volumes(vertices, faces).sum() < 0:
        faces = faces[:, ::-1]
    return np.ascontiguousarray(vertices), np.ascontiguousarray(faces)


def simplified(vertices: Float32, faces: Int32, num_faces: int) -> tuple[Float32, Int32]:
    """Collapse edges within a growing tolerance until the budget is met; the mesh stays closed.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3] closed and outward.
        num_faces: the budget; exceeded if the shape would move by more than 0.05, or if manifold3d
            does not take the mesh: then it comes back as it is.
    """
    import manifold3d

    solid = manifold3d.Manifold(
        manifold3d.Mesh(
            vert_properties=np.ascontiguousarray(vertices, np.float32),
            tri_verts=np.ascontiguousarray(faces, np.uint32),
        )
    )
    if solid.status() != manifold3d.Error.NoError:
        return vertices, faces
    tolerance = _FIRST_TOLERANCE
    while solid.num_tri() > num_faces and tolerance < _LAST_TOLERANCE:
        solid = solid.simplify(tolerance)
        tolerance *= _TOLERANCE_GROWTH
    mesh = solid.to_mesh()
    light_vertices = np.array(mesh.vert_properties[:, :3], np.float32, order="C")
    light_faces = np.array(mesh.tri_verts, np.int32, order="C")
    if not is_closed_manifold(light_faces, len(light_vertices)):
        return vertices, faces
    return light_vertices, light_faces


def without_contacts(vertices: Float32, faces: Int32) -> Float32:
    """Move vertices that share a place apart by a hair, each into its own part.

    Programs that weld a file's vertices by place would join two sheets that merely touch, and find
    edges with four faces there.
    """
    _, place = np.unique(vertices, axis=0, return_inverse=True)
    place = place.reshape(-1)
    order = np.argsort(place, kind="stable")
    starts = np.r_[0, np.cumsum(np.bincount(place))[:-1]]
    rank = np.empty(len(vertices), np.int64)
    rank[order] = np.arange(len(vertices)) - starts[place[order]]
    moved = np.flatnonzero(rank)
    if len(moved) == 0:
        return vertices
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    normals = np.zeros(vertices.shape)
    np.add.at(normals, faces.ravel(), np.repeat(np.cross(b - a, c - a), 3, axis=0))
    lengths = np.linalg.norm(normals[moved], axis=1, keepdims=True)
    inward = -normals[moved] / np.maximum(lengths, 1e-12)
    vertices = vertices.copy()
    vertices[moved] += (_HAIR * rank[moved, None] * inward).astype(np.float32)
    return vertices


def _components(faces: Int32, num_vertices: int) -> Int64:
    """Label [F] of the connected component of each face."""
    start, end = np.concatenate([faces[:, :2], faces[:, 1:]]).T
    joined = sparse.coo_matrix(
        (np.ones(len(start), np.int8), (start, end)), shape=(num_vertices, num_vertices)
    )
    labels = csgraph.connected_components(joined, directed=False)[1][faces[:, 0]]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
