"""The tangent frame in which a mesh's normal map is written and read."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import smooth_normals

_LEAST = 1e-20


def vertex_tangents(mesh: Mesh) -> Tensor:
    """The direction of growing u at each vertex and the handedness of the frame: [N, 4].

    The rule is MikkTSpace's (Mikkelsen 2008, "Simulation of Wrinkled Surfaces Revisited"), which
    glTF names as the default: each face's own direction, laid into the plane of the vertex normal
    and weighted by the face's angle there. The bitangent is `w * cross(normal, tangent)`. Unlike
    MikkTSpace, this joins faces by vertex only: a vertex that a file or an atlas has split stays
    split, and one where mirrored faces meet takes the majority's handedness.

    Args:
        mesh: with texture coordinates.
    """
    if mesh.uv is None:
        raise ValueError("a mesh without texture coordinates has no tangents")
    faces = mesh.faces.long()
    normals = smooth_normals(mesh).double()
    place, uv = mesh.vertices.double()[faces], mesh.uv.double()[faces]
    (ab, ac), (st, su) = ((t[:, 1] - t[:, 0], t[:, 2] - t[:, 0]) for t in (place, uv))
    area = st[:, 0] * su[:, 1] - st[:, 1] * su[:, 0]  # twice, signed: negative = mirrored
    along = normalize((su[:, 1:] * ab - st[:, 1:] * ac) * area.sign()[:, None], dim=1, eps=_LEAST)
    tangents, handed = torch.zeros_like(normals), normals.new_zeros(len(normals))
    for corner in range(3):
        vertex = faces[:, corner]
        normal = normals[vertex]
        sides = [place[:, (corner + k) % 3] - place[:, corner] for k in (1, 2)]
        first, second = (_laid(side, normal) for side in sides)
        angle = (first * second).sum(1).clamp(-1, 1).acos()
        tangents.index_add_(0, vertex, _laid(along, normal) * angle[:, None])
        handed.index_add_(0, vertex, area.sign() * angle)
    tangents = _laid(tangents, normals)
    lost = tangents.square().sum(1) < 0.5
    tangents[lost] = _any_across(normals[lost])
    sign = torch.where(handed < 0, -1.0, 1.0).to(tangents)
    return torch.cat([tangents, sign[:, None]], 1).float()


def _laid(vectors: Tensor, normals: Tensor) -> Tensor:
    """Vectors [P, 3] in the planes across the unit normals, of length 1 (or 0)."""
    flat = vectors - normals * (vectors * normals).sum(1, keepdim=True)
    return normalize(flat, dim=1, eps=_LEAST)


def _any_across(normals: Tensor) -> Tensor:
    """Some unit vector across each normal."""
    axes = torch.eye(3).to(normals)[torch.from_numpy(np.argmin(normals.abs().numpy(), 1))]
    return _laid(axes, normals)
