"""UV atlas: the surface cut into regions that face one axis, each laid flat along that axis.

xatlas's own search for charts is most of the time of an unwrapping (2 to 12 s at 20,000 faces on
one core), and mostly finds more of them. A region whose normals all lie within some 80 degrees
of an axis needs no search: seen along the axis it lies flat, and four of the six axes are the
published views', so that charts end about where the best view changes. What lies behind other parts
of its own region is taken out as a layer of its own. xatlas packs the charts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from kiss3d_infer.reconstruct.topology import Bool, Float32, Float64, Int32, Int64, edge_table
from kiss3d_infer.scene.raster import rasterizer_for

_AXES = np.array([[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], float)
_ACROSS = np.array([[1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]], float)
_UP = np.cross(_AXES, _ACROSS)
"""What is right on the chart of an axis, and what is up; both so that no chart is mirrored."""
_LEAST_COSINE = 0.15
"""Between a face and its axis: at most seven times as large as its share of the texture."""
_SMOOTHING_PASSES, _MERGING_PASSES = 20, 8
_OWN_SAY = 0.4
"""What a face's own direction counts against its neighbours' labels, which count 1 together."""
_FEW_FACES = 40
"""A region of fewer joins a neighbour where it may."""
_PADDING = 2
"""Texels between charts, so that bilinear lookup never mixes them."""
_PEELINGS = 4
"""Layers at most that a region is taken apart into where it lies over itself."""


@dataclass(frozen=True)
class Atlas:
    """A mesh cut open and laid flat.

    Attributes:
        source: [M] the original vertex of each atlas vertex; seams duplicate vertices.
        faces: [F, 3] over the atlas vertices, in the original order.
        uv: [M, 2] in [0, 1], v up.
    """

    source: Tensor
    faces: Tensor
    uv: Tensor


def unwrap(vertices: Float32, faces: Int32, size: int) -> Atlas:
    """Cut a closed mesh into charts and pack them into a square.

    Args:
        vertices: [N, 3].
        faces: [F, 3] a closed manifold.
        size: side of the texture in texels.
    """
    labels = axis_labels(vertices, faces)
    layers = np.zeros(len(faces), np.int64)
    for _ in range(_PEELINGS):
        atlas = _packed(vertices, faces, labels, layers, size)
        hidden = _hidden_faces(vertices, atlas, labels, size)
        if not hidden.any():
            break
        layers += hidden
    return atlas


def _packed(
    vertices: Float32,
    faces: Int32,
    labels: Int64,
    layers: Int64,
    size: int,
) -> Atlas:
    """Let xatlas pack the connected regions of equal axis and layer, seen along the axis."""
    import xatlas

    atlas = xatlas.Atlas()
    parts, sources = [], []
    for key in np.unique(layers * len(_AXES) + labels):
        part = np.flatnonzero(layers * len(_AXES) + labels == key)
        used, corners = np.unique(faces[part], return_inverse=True)
        right, up = _ACROSS[key % len(_AXES)], _UP[key % len(_AXES)]
        flat = (vertices[used] @ np.stack([right, up], 1)).astype(np.float32, order="C")
        atlas.add_mesh(vertices[used], corners.reshape(-1, 3).astype(np.uint32), None, flat)
        parts.append(part)
        sources.append(used.astype(np.int64))
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.use_input_mesh_uvs = True
    packing.resolution = size
    packing.padding = _PADDING
    atlas.generate(charts, packing)
    laid = [atlas[index] for index in range(len(parts))]
    firsts = np.cumsum([0] + [len(kept) for kept, _, _ in laid])
    atlas_faces = np.empty(faces.shape, np.int32)
    for part, (_, corners, _), first in zip(parts, laid, firsts, strict=False):
        atlas_faces[part] = corners.astype(np.int32) + first
    source = [used[kept] for used, (kept, _, _) in zip(sources, laid, strict=True)]
    uv = np.concatenate([places for _, _, places in laid]).astype(np.float32)
    return Atlas(*(torch.from_numpy(t) for t in (np.concatenate(source), atlas_faces, uv)))


def _hidden_faces(vertices: Float32, atlas: Atlas, labels: Int64, size: int) -> Bool:
    """Faces [F] that lie behind others of their own chart: a region may fold over itself."""
    corners = atlas.faces.long()
    places = atlas.uv[corners] * 2 - 1  # [F, 3, 2]
    points = torch.from_numpy(vertices)[atlas.source[corners]]
    toward = torch.from_numpy(_AXES.astype(np.float32))[torch.from_numpy(labels)]
    depth = -(points * toward[:, None]).sum(-1, keepdim=True)
    depth = depth / (depth.abs().max() + 1e-6)
    sides = [torch.cat([places, sign * depth, torch.ones_like(depth)], -1) for sign in (1, -1)]
    clip = torch.stack(sides).reshape(2, -1, 4)
    faces = torch.arange(clip.shape[1], dtype=torch.int32).reshape(-1, 3)
    nearest, farthest = rasterizer_for("cpu").rasterize(clip, faces, (size, size)).face
    hidden = np.zeros(len(faces), np.bool_)
    hidden[farthest[farthest != nearest].numpy() - 1] = True
    return hidden


def axis_labels(vertices: Float32, faces: Int32) -> Int64:
    """Which of six axes each face is laid flat along [F]: one it faces, in large regions.

    Args:
        vertices: [N, 3].
        faces: [F, 3] a closed manifold.
    """
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-20
    facing = normals @ _AXES.T
    # A face without area lies along any axis.
    allowed = (facing >= _LEAST_COSINE) | (np.abs(facing).max(1, keepdims=True) < _LEAST_COSINE)
    neighbours = _neighbours(faces)
    labels: Int64 = facing.argmax(1)
    for _ in range(_SMOOTHING_PASSES):
        votes = neighbours @ _one_hot(labels) / 3 + _OWN_SAY * facing
        labels = np.where(allowed, votes, -np.inf).argmax(1)
    for _ in range(_MERGING_PASSES):
        is_small = _region_sizes(labels, neighbours) < _FEW_FACES
        votes = neighbours @ (_one_hot(labels) * ~is_small[:, None])
        votes = np.where(allowed, votes, 0)
        joins = is_small & (votes.max(1) > 0)
        if not joins.any():
            break
        labels = np.where(joins, votes.argmax(1), labels)
    return labels


def _one_hot(labels: Int64) -> Float64:
    return np.eye(len(_AXES))[labels]


def _neighbours(faces: Int32) -> sparse.csr_matrix:
    """[F, F] ones where two faces share an edge."""
    first, second = edge_table(faces)[2].T
    rows, columns = np.r_[first, second], np.r_[second, first]
    shape = (len(faces), len(faces))
    return sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()


def _region_sizes(labels: Int64, neighbours: sparse.csr_matrix) -> Int64:
    """Faces in the connected region of equal labels around each face [F]."""
    pairs = neighbours.tocoo()
    same = labels[pairs.row] == labels[pairs.col]
    joined = sparse.coo_matrix(
        (np.ones(int(same.sum()), np.int8), (pairs.row[same], pairs.col[same])),
        shape=pairs.shape,
    )
    regions = csgraph.connected_components(joined, directed=False)[1]
    sizes: Int64 = np.bincount(regions)[regions]
    return sizes
