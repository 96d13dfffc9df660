"""Continuous remeshing: keep every edge near a target length while vertices move.

One pass collapses short edges, splits long ones and flips edges toward even valence, as in
continuous remeshing (Palfinger, "Continuous remeshing for inverse rendering", 2022). Vertices
carry a row of state (position first, optimiser moments after), which collapses and splits average.
A closed manifold stays one with the same genus: collapses obey the link condition, flips never
create an edge that exists, splits subdivide both faces of an edge alike.
"""

import math

import numpy as np
from numba import float32

from kiss3d_infer.reconstruct.topology import (
    Bool,
    Float32,
    Int32,
    Int64,
    compiled,
    edge_table,
    incident_faces,
)

_MIN_AREA_SHARE = 0.5
"""A face smaller than this share of a square of the least edge length is collapsed."""


def remesh(
    state: Float32, faces: Int32, *, length_column: int, tolerance: float = 0.5
) -> tuple[Float32, Int32]:
    """Collapse, split and flip once.

    Args:
        state: [N, D] vertex rows; columns 0-2 are the position.
        faces: [F, 3] a closed, consistently wound manifold.
        length_column: the column that holds each vertex's target edge length.
        tolerance: edges shorter than (1 - tolerance) or longer than (1 + tolerance) times the
            target are changed.

    Returns:
        New state [N', D] and faces [F', 3]; the arguments are left alone.
    """
    state, faces = np.array(state, np.float32, order="C"), np.array(faces, np.int32, order="C")
    faces = _collapse_short_edges(state, faces, state[:, length_column] * np.float32(1 - tolerance))
    longest = state[:, length_column] * np.float32(1 + tolerance)
    state, faces = _split_long_edges(state, faces, longest)
    state, faces = _drop_unused(state, faces)
    _flip_to_even_valence(state, faces)
    return state, faces


def _collapse_short_edges(state: Float32, faces: Int32, shortest: Float32) -> Int32:
    edges, face_edges, _, num_faces = edge_table(faces)
    urgency = _collapse_urgency(state, faces, edges, face_edges, shortest)
    candidates: Int64 = np.flatnonzero(urgency > 0).astype(np.int64)
    # Sorting inside a kernel would multiply its compile time; a stable order is deterministic.
    order = candidates[np.argsort(-urgency[candidates], kind="stable")]
    starts, incident = incident_faces(faces, len(state))
    return _collapse(state, faces, order, edges, num_faces, starts, incident)


@compiled
def _drop_unused(state: Float32, faces: Int32) -> tuple[Float32, Int32]:
    number = np.full(state.shape[0], -1, np.int32)
    for face in range(faces.shape[0]):
        for corner in range(3):
            number[faces[face, corner]] = 0
    kept = np.empty(state.shape, np.float32)
    count = 0
    for vertex in range(state.shape[0]):
        if number[vertex] == 0:
            number[vertex] = count
            for k in range(state.shape[1]):
                kept[count, k] = state[vertex, k]
            count += 1
    renumbered = np.empty(faces.shape, np.int32)
    for face in range(faces.shape[0]):
        for corner in range(3):
            renumbered[face, corner] = number[faces[face, corner]]
    return kept[:count].copy(), renumbered


@compiled
def _distance(state: Float32, u: int, v: int) -> float:
    x, y, z = state[u, 0] - state[v, 0], state[u, 1] - state[v, 1], state[u, 2] - state[v, 2]
    return math.sqrt(x * x + y * y + z * z)


@compiled
def _face_normal(state: Float32, a: int, b: int, c: int) -> tuple[float, float, float]:
    """(b - a) x (c - a), twice the area long."""
    x, y, z = state[b, 0] - state[a, 0], state[b, 1] - state[a, 1], state[b, 2] - state[a, 2]
    u, v, w = state[c, 0] - state[a, 0], state[c, 1] - state[a, 1], state[c, 2] - state[a, 2]
    return y * w - z * v, z * u - x * w, x * v - y * u


@compiled
def _collapse_urgency(
    state: Float32, faces: Int32, edges: Int32, face_edges: Int32, shortest: Float32
) -> Float32:
    """Per edge: how far below the least length it is, plus 1 per bad face it is shortest of."""
    lengths = np.empty(edges.shape[0], np.float32)
    urgency = np.zeros(edges.shape[0], np.float32)
    for edge in range(edges.shape[0]):
        u, v = edges[edge, 0], edges[edge, 1]
        lengths[edge] = _distance(state, u, v)
        least = float32(0.5) * (shortest[u] + shortest[v])
        if lengths[edge] < least:
            urgency[edge] = float32(1.0) - lengths[edge] / least
    face_normals = np.empty(faces.shape, np.float32)
    vertex_normals = np.zeros((state.shape[0], 3), np.float32)
    for face in range(faces.shape[0]):
        a, b, c = faces[face, 0], faces[face, 1], faces[face, 2]
        x, y, z = _face_normal(state, a, b, c)
        face_normals[face, 0], face_normals[face, 1], face_normals[face, 2] = x, y, z
        for corner in range(3):
            for k in range(3):
                vertex_normals[faces[face, corner], k] += face_normals[face, k]
    for face in range(faces.shape[0]):
        if _is_bad_face(faces, face, face_normals, vertex_normals, shortest):
            edge = face_edges[face, 0]
            for k in range(1, 3):
                if lengths[face_edges[face, k]] < lengths[edge]:
                    edge = face_edges[face, k]
            urgency[edge] += float32(1.0)
    return urgency


@compiled
def _is_bad_face(
    faces: Int32, face: int, face_normals: Float32, vertex_normals: Float32, shortest: Float32
) -> bool:
    """Whether a face is inverted against its surroundings or a sliver."""
    along, squared, least = float32(0.0), float32(0.0), float32(0.0)
    for corner in range(3):
        least += shortest[faces[face, corner]] / float32(3.0)
    for k in range(3):
        normal = face_normals[face, k]
        squared += normal * normal
        for corner in range(3):
            along += normal * vertex_normals[faces[face, corner], k]
    double_area = math.sqrt(squared)
    return bool(along < 0 or double_area < float32(2.0 * _MIN_AREA_SHARE) * least * least)


@compiled
def _collapse(
    state: Float32,
    faces: Int32,
    order: Int64,
    edges: Int32,
    num_faces: Int32,
    starts: Int32,
    incident: Int32,
) -> Int32:
    """Merge the ends of the edges in `order` at their mean; each face changes at most once."""
    locked = np.zeros(state.shape[0], np.bool_)
    target = np.arange(state.shape[0]).astype(np.int32)
    seen_at = np.full(state.shape[0], -1, np.int64)
    collapsed = False
    for turn in range(order.shape[0]):
        edge = order[turn]
        kept, removed = edges[edge, 0], edges[edge, 1]
        if num_faces[edge] != 2 or not _may_collapse(
            faces, kept, removed, starts, incident, locked, seen_at, turn
        ):
            continue
        for k in range(state.shape[1]):
            state[kept, k] = float32(0.5) * (state[kept, k] + state[removed, k])
        target[removed] = kept
        for end in (kept, removed):
            for i in range(starts[end], starts[end + 1]):
                for corner in range(3):
                    locked[faces[incident[i], corner]] = True
        collapsed = True
    if not collapsed:
        return faces
    remaining = np.empty(faces.shape, np.int32)
    count = 0
    for face in range(faces.shape[0]):
        a, b, c = target[faces[face, 0]], target[faces[face, 1]], target[faces[face, 2]]
        if a != b and b != c and c != a:
            remaining[count, 0], remaining[count, 1], remaining[count, 2] = a, b, c
            count += 1
    return remaining[:count].copy()


@compiled
def _may_collapse(
    faces: Int32,
    kept: int,
    removed: int,
    starts: Int32,
    incident: Int32,
    locked: Bool,
    seen_at: Int64,
    turn: int,
) -> bool:
    """Link condition: exactly two common neighbours, no locked one, and no tetrahedron."""
    for i in range(starts[kept], starts[kept + 1]):
        for corner in range(3):
            vertex = faces[incident[i], corner]
            if locked[vertex]:
                return False
            seen_at[vertex] = turn
    seen_at[kept] = seen_at[removed] = -1
    num_common = 0
    for i in range(starts[removed], starts[removed + 1]):
        for corner in range(3):
            vertex = faces[incident[i], corner]
            if locked[vertex]:
                return False
            if seen_at[vertex] == turn:
                num_common += 1
                seen_at[vertex] = -1
    valence = starts[kept + 1] - starts[kept] + starts[removed + 1] - starts[removed] - 4
    return num_common == 2 and valence >= 3


@compiled
def _split_long_edges(state: Float32, faces: Int32, longest: Float32) -> tuple[Float32, Int32]:
    """Put a vertex at the middle of every edge longer than the mean limit of its ends."""
    num_vertices = state.shape[0]
    edges, face_edges, _, num_faces = edge_table(faces)
    middle = np.full(edges.shape[0], -1, np.int32)
    num_new, num_pieces = 0, faces.shape[0]
    for edge in range(edges.shape[0]):
        u, v = edges[edge, 0], edges[edge, 1]
        if _distance(state, u, v) > float32(0.5) * (longest[u] + longest[v]):
            middle[edge] = num_vertices + num_new
            num_new += 1
            num_pieces += num_faces[edge]
    if num_new == 0:
        return state, faces
    grown = np.empty((num_vertices + num_new, state.shape[1]), np.float32)
    grown[:num_vertices] = state
    for edge in range(edges.shape[0]):
        if middle[edge] >= 0:
            u, v = edges[edge, 0], edges[edge, 1]
            for k in range(state.shape[1]):
                grown[middle[edge], k] = float32(0.5) * (state[u, k] + state[v, k])
    pieces = np.empty((num_pieces, 3), np.int32)
    count = 0
    for face in range(faces.shape[0]):
        count = _split_face(grown, faces[face], middle, face_edges[face], pieces, count)
    return grown, pieces[:count].copy()


@compiled
def _split_face(
    state: Float32, face: Int32, middle: Int32, face_edges: Int32, pieces: Int32, count: int
) -> int:
    """Append the one to four triangles of a face whose edges got the given middle vertices."""
    num_split = 0
    for k in range(3):
        if middle[face_edges[k]] >= 0:
            num_split += 1
    turn = 0
    if num_split == 1:  # bring the split edge opposite corner a
        while middle[face_edges[turn]] < 0:
            turn += 1
    elif num_split == 2:  # bring the whole edge opposite corner a
        while middle[face_edges[turn]] >= 0:
            turn += 1
    a, b, c = face[turn], face[(turn + 1) % 3], face[(turn + 2) % 3]
    at_bc = middle[face_edges[turn]]
    at_ca = middle[face_edges[(turn + 1) % 3]]
    at_ab = middle[face_edges[(turn + 2) % 3]]
    if num_split == 0:
        return _append(pieces, count, a, b, c)
    if num_split == 1:
        count = _append(pieces, count, a, b, at_bc)
        return _append(pieces, count, a, at_bc, c)
    count = _append(pieces, count, a, at_ab, at_ca)
    if num_split == 3:
        count = _append(pieces, count, at_ab, b, at_bc)
        count = _append(pieces, count, at_bc, c, at_ca)
        return _append(pieces, count, at_ab, at_bc, at_ca)
    # The quad at_ab, b, c, at_ca is cut along its shorter diagonal.
    if _distance(state, b, at_ca) < _distance(state, c, at_ab):
        count = _append(pieces, count, at_ab, b, at_ca)
        return _append(pieces, count, b, c, at_ca)
    count = _append(pieces, count, at_ab, b, c)
    return _append(pieces, count, at_ab, c, at_ca)


@compiled
def _append(pieces: Int32, count: int, a: int, b: int, c: int) -> int:
    pieces[count, 0], pieces[count, 1], pieces[count, 2] = a, b, c
    return count + 1


@compiled
def _flip_to_even_valence(state: Float32, faces: Int32) -> None:
    """Flip, in place, each edge whose flip evens the valences and keeps both faces' orientation."""
    num_vertices = state.shape[0]
    edges, face_edges, edge_faces, num_faces = edge_table(faces)
    starts, incident = incident_faces(faces, num_vertices)
    valence = starts[1:] - starts[:-1]
    # Tables go stale around a flip, so every face that touches one of its corners is done.
    done = np.zeros(faces.shape[0], np.bool_)
    for edge in range(edges.shape[0]):
        left, right = edge_faces[edge, 0], edge_faces[edge, 1]
        if num_faces[edge] != 2 or done[left] or done[right]:
            continue
        i, j = 0, 0
        while face_edges[left, i] != edge:
            i += 1
        while face_edges[right, j] != edge:
            j += 1
        c, a, b = faces[left, i], faces[left, (i + 1) % 3], faces[left, (i + 2) % 3]
        d = faces[right, j]
        gain = valence[a] + valence[b] - valence[c] - valence[d] - 2
        if gain <= 0 or valence[a] <= 3 or valence[b] <= 3 or c == d:
            continue
        if _are_joined(faces, c, d, starts, incident) or not _flip_keeps_side(state, a, b, c, d):
            continue
        faces[left, 0], faces[left, 1], faces[left, 2] = c, a, d
        faces[right, 0], faces[right, 1], faces[right, 2] = d, b, c
        valence[a] -= 1
        valence[b] -= 1
        valence[c] += 1
        valence[d] += 1
        for vertex in (a, b, c, d):
            for k in range(starts[vertex], starts[vertex + 1]):
                done[incident[k]] = True


@compiled
def _are_joined(faces: Int32, u: int, v: int, starts: Int32, incident: Int32) -> bool:
    for i in range(starts[u], starts[u + 1]):
        for corner in range(3):
            if faces[incident[i], corner] == v:
                return True
    return False


@compiled
def _flip_keeps_side(state: Float32, a: int, b: int, c: int, d: int) -> bool:
    """Whether triangles (c, a, d) and (d, b, c) face the way that (c, a, b) and (d, b, a) do."""
    old, other = _face_normal(state, c, a, b), _face_normal(state, d, b, a)
    first, second = _face_normal(state, c, a, d), _face_normal(state, d, b, c)
    along_first, along_second = float32(0.0), float32(0.0)
    for k in range(3):
        along_first += (old[k] + other[k]) * first[k]
        along_second += (old[k] + other[k]) * second[k]
    return bool(along_first > 0 and along_second > 0)
