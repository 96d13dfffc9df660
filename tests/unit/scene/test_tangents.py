"""Tangent frames follow the texture, whichever way it lies."""

import math

import pytest
import torch
import trimesh

from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.tangents import vertex_tangents


def square(uv: torch.Tensor) -> Mesh:
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), uv=uv)


@pytest.mark.parametrize("turn", [0, 30, 135, 250])
@pytest.mark.parametrize("mirrored", [False, True])
def test_tangents_point_along_growing_u_and_bitangents_along_growing_v(
    turn: float, mirrored: bool
) -> None:
    angle = math.radians(turn)
    along_u = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    along_v = torch.tensor([-math.sin(angle), math.cos(angle), 0.0]) * (-1 if mirrored else 1)
    corners = square(torch.zeros(4, 2)).vertices
    frames = vertex_tangents(square(torch.stack([corners @ along_u, corners @ along_v], 1)))
    tangents, handed = frames[:, :3], frames[:, 3:]
    torch.testing.assert_close(tangents, along_u.expand(4, 3))
    normals = torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3)
    bitangents = handed * torch.linalg.cross(normals, tangents)
    torch.testing.assert_close(bitangents, along_v.expand(4, 3))


def test_frames_on_a_ball_are_orthonormal_and_run_east() -> None:
    shape = trimesh.creation.uv_sphere(count=[16, 32])
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    kept = torch.tensor(shape.faces)
    longitude = torch.atan2(vertices[:, 1], vertices[:, 0])
    span = longitude[kept].amax(1) - longitude[kept].amin(1)
    near_pole = (vertices[kept][..., 2].abs() > 0.9).any(1)
    kept = kept[(span < 1) & ~near_pole]  # the seam and the poles have no direction
    uv = torch.stack([longitude / (2 * math.pi) + 0.5, vertices[:, 2] / 2 + 0.5], 1)
    mesh = Mesh(vertices, kept.int(), normals=vertices, uv=uv)
    used = torch.unique(kept)
    frames = vertex_tangents(mesh)[used]
    torch.testing.assert_close(frames[:, :3].norm(dim=1), torch.ones(len(used)))
    assert (frames[:, :3] * smooth_normals(mesh)[used]).sum(1).abs().max() < 1e-5
    east = torch.stack([-longitude.sin(), longitude.cos(), torch.zeros_like(longitude)], 1)[used]
    assert (frames[:, :3] * east).sum(1).min() > 0.98
    assert (frames[:, 3] == 1).all()


def test_a_texture_without_extent_still_gives_a_frame() -> None:
    frames = vertex_tangents(square(torch.zeros(4, 2)))
    torch.testing.assert_close(frames[:, :3].norm(dim=1), torch.ones(4))
    assert frames[:, 2].abs().max() < 1e-6
