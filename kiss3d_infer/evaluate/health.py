"""Whether a mesh is fit for use: closed, in one piece, facing outward, without broken faces."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.topology import Int32, edge_table
from kiss3d_infer.reconstruct.volume import signed_volumes
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import weld

_DEBRIS_AREA_SHARE = 0.002
_NO_HEIGHT = 1e-7  # of the mesh's extent: what float32 can just tell from 0
_NO_VOLUME = 1e-6  # of area^1.5: a closed sheet without thickness faces neither in nor out


def mesh_health(mesh: Mesh) -> dict[str, float]:
    """Count what is right and wrong with a mesh.

    Vertices at one place count as one, as files split them for their texture coordinates; faces
    with two corners at one place are left out of all but the counts.

    Returns:
        Counts `num_faces`, `num_vertices` (both as in the mesh), `num_components` (faces joined by
        edges), `num_debris` (components with less than 0.2 % of the area), `num_inverted` (closed
        components of negative volume), `num_duplicate_faces` (same corners as an earlier face),
        `num_degenerate_faces` (no wider than float32 can tell); 1 or 0 for `watertight` (two faces
        at every edge), `manifold` (at most two), `consistent_winding` (two faces at an edge run
        along it in opposite directions), `has_uv`, `has_normals`.

    Raises:
        InputError: the mesh has no face with three distinct corners.
    """
    welded, index = weld(mesh.vertices)
    vertices = welded.numpy()
    corners = index[mesh.faces.long()].int().numpy()
    collapsed = (corners == np.roll(corners, 1, axis=1)).any(1)
    faces = np.ascontiguousarray(corners[~collapsed])
    if len(faces) == 0:
        raise InputError("no face of the mesh has three distinct corners", fix="give a whole mesh")
    heights, areas = _heights_and_areas(vertices[faces].astype(np.float64))
    edges = _Edges.of(faces)
    component = edges.components()
    area = np.bincount(component, areas)
    volume = np.bincount(component, signed_volumes(vertices, faces))
    is_closed = np.bincount(component, (edges.balance[edges.of_faces] != 0).any(1)) == 0
    counts = {
        "num_faces": len(corners),
        "num_vertices": len(mesh.vertices),
        "num_components": len(area),
        "num_debris": np.count_nonzero(area < _DEBRIS_AREA_SHARE * area.sum()),
        "num_inverted": np.count_nonzero(is_closed & (volume < -_NO_VOLUME * area**1.5)),
        "num_duplicate_faces": len(faces) - len(np.unique(np.sort(faces, axis=1), axis=0)),
        "num_degenerate_faces": np.count_nonzero(collapsed)
        + np.count_nonzero(heights <= _NO_HEIGHT * np.ptp(vertices, axis=0).max()),
        "watertight": (edges.num_faces == 2).all(),
        "manifold": (edges.num_faces <= 2).all(),
        "consistent_winding": (edges.balance[edges.num_faces == 2] == 0).all(),
        "has_uv": mesh.uv is not None,
        "has_normals": mesh.normals is not None,
    }
    return {name: float(count) for name, count in counts.items()}


@dataclass(frozen=True)
class _Edges:
    """The edges of F faces.

    Attributes:
        of_faces: [F, 3] the edge opposite each corner.
        num_faces: [E] how many faces meet at each.
        balance: [E] faces that run along it from the smaller to the larger vertex, less the others.
    """

    of_faces: Int32
    num_faces: Int32
    balance: NDArray[np.int64]

    @classmethod
    def of(cls, faces: Int32) -> "_Edges":
        _, of_faces, _, num_faces = edge_table(faces)
        direction = np.sign(np.roll(faces, -2, axis=1) - np.roll(faces, -1, axis=1))
        balance = np.bincount(of_faces.ravel(), direction.ravel())
        return cls(of_faces, num_faces, balance.astype(np.int64))

    def components(self) -> NDArray[np.int64]:
        """Label [F] of the connected component of each face, from 0."""
        num_faces, num_edges = len(self.of_faces), len(self.num_faces)
        face = np.repeat(np.arange(num_faces), 3)
        ends = (face, num_faces + self.of_faces.ravel())  # faces and edges are the graph's nodes
        size = num_faces + num_edges
        graph = sparse.coo_matrix((np.ones(len(face), np.int8), ends), shape=(size, size))
        labels = csgraph.connected_components(graph, directed=False)[1][:num_faces]
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _heights_and_areas(
    corners: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least height and the area of each face [F, 3, 3]."""
    sides = np.roll(corners, -1, axis=1) - corners
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    return 2 * areas / np.linalg.norm(sides, axis=2).max(1), areas
