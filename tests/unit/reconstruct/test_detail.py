"""Normal maps bring a dense mesh's shading back onto a coarse one."""

import numpy as np
import pytest
import torch
import trimesh
from torch.nn.functional import normalize

from kiss3d_infer.reconstruct.atlas import unwrap
from kiss3d_infer.reconstruct.detail import normal_map
from kiss3d_infer.scene.color import to_bytes
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.raster import vertex_normals
from kiss3d_infer.scene.raster.texture import sample_texture
from kiss3d_infer.scene.tangents import vertex_tangents


def ball(subdivisions, bumps=0.0):
    shape = trimesh.creation.icosphere(subdivisions)
    wave = np.sin(14 * shape.vertices).prod(1, keepdims=True)
    return (shape.vertices * (1 + bumps * wave)).astype("f4"), shape.faces.astype("i4")


def bumpy_normals(points, bumps):
    """The bumpy ball's exact normals in the directions of the points [P, 3]."""
    points = points.clone().requires_grad_()
    direction = normalize(points, dim=1)
    outside = points.norm(dim=1) - bumps * torch.sin(14 * direction).prod(1)
    return normalize(torch.autograd.grad(outside.sum(), points)[0], dim=1)


def unwrapped(vertices, faces, size):
    atlas = unwrap(vertices, faces, size)
    normals = vertex_normals(torch.from_numpy(vertices), torch.from_numpy(faces))
    places = torch.from_numpy(vertices)[atlas.source]
    return Mesh(places, atlas.faces, normals=normals[atlas.source], uv=atlas.uv)


def shading_normals(mesh, texture, faces, weights):
    """What a viewer shades with at points of the faces [P], given barycentric weights [P, 3]."""

    def at(values):
        return (values[mesh.faces[faces].long()] * weights[..., None]).sum(1)

    normal, tangent = normalize(at(mesh.normals), dim=1), at(vertex_tangents(mesh))
    bitangent = torch.linalg.cross(normal, tangent[:, :3]) * tangent[:, 3:].sign()
    x, y, z = (sample_texture(texture, at(mesh.uv)) * 2 - 1).split(1, 1)
    return normalize(x * tangent[:, :3] + y * bitangent + z * normal, dim=1)


def degrees(first, second):
    return torch.rad2deg((first * second).sum(1).clamp(-1, 1).acos())


def test_the_map_shades_a_smooth_ball_like_the_bumpy_one():
    mesh = unwrapped(*ball(3), 512)
    vertices, faces = ball(6, bumps=0.02)
    texture = normal_map(mesh, vertices, faces, 512)
    generator = torch.Generator().manual_seed(0)
    face = torch.randint(len(mesh.faces), (2000,), generator=generator)
    weights = -torch.rand(2000, 3, generator=generator).log()
    weights = weights / weights.sum(1, keepdim=True)
    points = (mesh.vertices[mesh.faces[face].long()] * weights[..., None]).sum(1)

    wanted = bumpy_normals(points, 0.02)
    shown = degrees(shading_normals(mesh, texture, face, weights), wanted)
    plain = degrees(normalize(points, dim=1), wanted)
    assert plain.mean() > 6
    assert shown.mean() < plain.mean() / 20
    assert shown.quantile(0.99) < plain.quantile(0.99) / 20


def test_a_mesh_gets_a_flat_map_of_itself():
    vertices, faces = ball(3)
    pixels = to_bytes(normal_map(unwrapped(vertices, faces, 256), vertices, faces, 256))
    assert (pixels == (128, 128, 255)).all()


def plane(tilt=(0.0, 0.0), height=0.0):
    """The square [-1, 1]^2 that faces +Z, its z falling by `tilt` per unit of x and y."""
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    vertices[:, 2] = height - vertices[:, :2] @ np.array(tilt, np.float32)
    return vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32)


@pytest.mark.parametrize("mirrored", [False, True])
def test_red_is_along_u_and_green_along_v(mirrored):
    vertices, faces = plane()
    uv = torch.from_numpy(vertices[:, :2]) / 2 + 0.5
    if mirrored:
        uv[:, 0] = 1 - uv[:, 0]
    normals = torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3)
    mesh = Mesh(torch.from_numpy(vertices), torch.from_numpy(faces), normals=normals, uv=uv)
    right = normal_map(mesh, *plane(tilt=(0.5, 0)), 8) * 2 - 1
    up = normal_map(mesh, *plane(tilt=(0, 0.5)), 8) * 2 - 1
    slope = 0.5 / 1.25**0.5
    along_u = torch.tensor([-slope if mirrored else slope, 0, 2 * slope])
    torch.testing.assert_close(right, along_u.expand(8, 8, 3), atol=1e-5, rtol=0)
    along_v = torch.tensor([0, slope, 2 * slope])
    torch.testing.assert_close(up, along_v.expand(8, 8, 3), atol=1e-5, rtol=0)


def test_a_thin_wall_does_not_show_its_other_side():
    front, faces = plane(height=0.0)
    uv = torch.from_numpy(front[:, :2]) / 2 + 0.5
    mesh = Mesh(torch.from_numpy(front), torch.from_numpy(faces), uv=uv)
    # The dense front lies farther from the coarse one than the dense back does.
    sides = [plane(tilt=(0.2, 0), height=0.05), plane(height=-0.02)]
    vertices = np.concatenate([side[0] for side in sides])
    both = np.concatenate([faces, faces[:, ::-1] + 4]).astype(np.int32)
    red = normal_map(mesh, vertices, both, 8)[..., 0] * 2 - 1
    torch.testing.assert_close(red, torch.full((8, 8), 0.2 / 1.04**0.5), atol=1e-3, rtol=0)
