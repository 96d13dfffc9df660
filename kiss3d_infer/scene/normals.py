"""Normals of a mesh as it is drawn: smooth where the surface is, flat at creases."""

import numpy as np
import torch
from torch import Tensor

from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.raster import vertex_normals

_CREASE_DEGREES = 25.0


def smooth_normals(mesh: Mesh) -> Tensor:
    """The mesh's own vertex normals, or area-weighted ones across coinciding vertices: [N, 3].

    Vertices that a file splits for its texture coordinates share one normal.
    """
    if mesh.normals is not None:
        return mesh.normals
    welded, index = weld(mesh.vertices)
    return vertex_normals(welded, index[mesh.faces.long()].int())[index]


def corner_normals(
    mesh: Mesh, *, smooth: bool = True, device: torch.device | str = "cpu"
) -> Tensor:
    """The unit normal at each corner of each face: [F, 3, 3].

    A face whose vertex normals are on average more than 25 degrees off its own plane's is drawn
    flat: at the edges of a box averaged normals mean nothing, and normals in files are sometimes
    wrong. Normals that point to the back of their face (a file with mixed winding) count as turned.

    Args:
        mesh: with N vertices and F faces.
        smooth: False draws every face flat.
        device: where the result lies.
    """
    faces = mesh.faces.long().to(device)
    a, b, c = mesh.vertices.to(device)[faces].unbind(1)
    flat = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-20)
    flat = flat.unsqueeze(1).expand(-1, 3, 3)
    if not smooth:
        return flat.contiguous()
    corners = smooth_normals(mesh).to(device)[faces]
    cosine = (corners * flat).sum(-1)
    corners = corners * torch.where(cosine < 0, -1.0, 1.0).unsqueeze(-1)
    degrees = cosine.abs().clamp(max=1).acos().rad2deg().mean(1)
    return torch.where((degrees > _CREASE_DEGREES)[:, None, None], flat, corners)


def weld(vertices: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct positions [M, 3] and, for each vertex [N], which of them it stands on (int64)."""
    points = vertices.numpy() + np.float32(0.0)  # -0 becomes 0
    order = np.lexsort(points.T)
    is_new = np.ones(len(points), bool)
    is_new[1:] = (points[order[1:]] != points[order[:-1]]).any(1)
    index = np.empty(len(points), np.int64)
    index[order] = np.cumsum(is_new) - 1
    return torch.from_numpy(points[order[is_new]]), torch.from_numpy(index)
