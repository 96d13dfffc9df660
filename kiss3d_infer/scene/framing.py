"""How large an object stands in the picture."""

from dataclasses import replace

import torch

from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.mesh import Mesh

FRAME = 0.97
"""Share of a tile's half that an object may reach."""


def framed(mesh: Mesh, cameras: Cameras) -> Mesh:
    """Normalize a mesh, then shrink it just enough that no view cuts it off.

    Most meshes stay at the longest half-extent 1; boxy ones, whose near edges perspective enlarges,
    do not fit the frame at that size. A point (x, y, z) in camera axes scaled by s lies inside if
    s |x| <= FRAME (d - s z) / f for the cameras' distance d and focal length f; likewise y.
    """
    mesh = mesh.normalized()
    is_used = torch.zeros(len(mesh.vertices), dtype=torch.bool)
    is_used[mesh.faces.flatten().long()] = True
    used = mesh.vertices[is_used]
    view = torch.einsum("vji,nj->vni", cameras.rotations, used)  # [V, N, 3] camera axes
    reach = view[..., :2].abs().amax(-1)
    edge = FRAME / cameras.focal
    scale = (edge * cameras.distance / (reach + edge * view[..., 2]).clamp_min(1e-6)).amin()
    return mesh if scale >= 1 else replace(mesh, vertices=mesh.vertices * scale)
