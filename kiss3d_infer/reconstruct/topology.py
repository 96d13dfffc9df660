"""What is next to what on a triangle mesh: incidence tables and means, most of them compiled.

Edge k of a face is the one opposite its corner k, so it joins the corners k + 1 and k + 2.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile with numba: machine code cached on disk, the interpreter lock released."""
    kernel: _Function = numba.njit(function, cache=True, nogil=True)
    return kernel


@compiled
def incident_faces(faces: Int32, num_vertices: int) -> tuple[Int32, Int32]:
    """List the faces around every vertex.

    Returns:
        starts [N + 1] and incident [3 F]: vertex v touches the faces
        `incident[starts[v]:starts[v + 1]]`, in ascending order.
    """
    starts = np.zeros(num_vertices + 1, np.int32)
    for face in range(faces.shape[0]):
        for corner in range(3):
            starts[faces[face, corner] + 1] += 1
    for vertex in range(num_vertices):
        starts[vertex + 1] += starts[vertex]
    cursor = starts[:-1].copy()
    incident = np.empty(3 * faces.shape[0], np.int32)
    for face in range(faces.shape[0]):
        for corner in range(3):
            vertex = faces[face, corner]
            incident[cursor[vertex]] = face
            cursor[vertex] += 1
    return starts, incident


@compiled
def edge_table(faces: Int32) -> tuple[Int32, Int32, Int32, Int32]:
    """Number the undirected edges in the order in which the faces first name them.

    Returns:
        edges [E, 2]: end vertices, the smaller first.
        face_edges [F, 3]: the edge opposite each corner.
        edge_faces [E, 2]: the first two faces at each edge, -1 where there is none.
        num_faces [E]: how many faces meet at each edge; 2 everywhere on a closed manifold.
    """
    num_halfedges = 3 * faces.shape[0]
    bits = 1
    while (1 << bits) < 2 * num_halfedges:
        bits += 1
    # An open-addressed hash table, at most half full even if no two faces share an edge.
    table = np.full(1 << bits, -1, np.int32)
    edges = np.empty((num_halfedges, 2), np.int32)
    edge_faces = np.empty((num_halfedges, 2), np.int32)
    num_faces = np.empty(num_halfedges, np.int32)
    face_edges = np.empty(faces.shape, np.int32)
    count = 0
    for face in range(faces.shape[0]):
        for k in range(3):
            u = faces[face, k + 1 if k < 2 else 0]
            v = faces[face, k - 1 if k > 0 else 2]
            low, high = min(u, v), max(u, v)
            slot = _hashed(low, high, bits)
            edge = table[slot]
            while edge >= 0 and (edges[edge, 0] != low or edges[edge, 1] != high):
                slot = (slot + 1) & ((1 << bits) - 1)
                edge = table[slot]
            if edge < 0:
                edge = table[slot] = count
                edges[edge, 0], edges[edge, 1] = low, high
                edge_faces[edge, 0], edge_faces[edge, 1] = face, -1
                num_faces[edge] = 1
                count += 1
            else:
                if num_faces[edge] == 1:
                    edge_faces[edge, 1] = face
                num_faces[edge] += 1
            face_edges[face, k] = edge
    return edges[:count], face_edges, edge_faces[:count], num_faces[:count]


@compiled
def _hashed(low: int, high: int, bits: int) -> np.int64:
    """The upper bits of a sum of two odd multiples, which both numbers decide evenly."""
    mixed = np.uint64(low) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(high) * np.uint64(0xC2B2AE3D27D4EB4F)
    return np.int64(mixed >> np.uint64(64 - bits))


@compiled
def neighbour_means(vertices: Float32, faces: Int32) -> Float32:
    """Mean position of each vertex's neighbours on a closed mesh, [N, 3]."""
    sums = np.zeros(vertices.shape, np.float32)
    counts = np.zeros(vertices.shape[0], np.float32)
    for face in range(faces.shape[0]):
        for corner in range(3):
            # On a closed mesh every edge leaves its vertex in exactly one face.
            vertex, neighbour = faces[face, corner], faces[face, (corner + 1) % 3]
            for k in range(3):
                sums[vertex, k] += vertices[neighbour, k]
            counts[vertex] += 1
    for vertex in range(vertices.shape[0]):
        for k in range(3):
            sums[vertex, k] /= max(counts[vertex], np.float32(1))
    return sums


def directed_edges(faces: Int32) -> Int64:
    """The sides of all faces in the direction in which the faces run: start and end, [2, 3 F]."""
    sides = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges: Int64 = sides.T.astype(np.int64)
    return edges


def is_closed_manifold(faces: Int32, num_vertices: int) -> bool:
    """Whether two oppositely wound faces meet at every edge."""
    start, end = directed_edges(faces)
    forward, backward = np.sort(start * num_vertices + end), np.sort(end * num_vertices + start)
    once_each = bool(np.all(forward[1:] != forward[:-1]))
    return len(faces) > 0 and once_each and bool(np.array_equal(forward, backward))
