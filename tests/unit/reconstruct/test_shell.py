import numpy as np
import pytest
import torch
import trimesh

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.shell import closed_surface
from kiss3d_infer.reconstruct.topology import is_closed_manifold
from kiss3d_infer.reconstruct.volume import signed_volumes
from kiss3d_infer.scene.mesh import Mesh


def mesh_of(shape, faces=None):
    faces = shape.faces if faces is None else faces
    return Mesh(torch.tensor(np.array(shape.vertices)).float(), torch.tensor(np.array(faces)).int())


def test_a_closed_mesh_keeps_its_own_triangles():
    ball = trimesh.creation.icosphere(2)
    vertices, faces = closed_surface(mesh_of(ball))
    assert len(vertices) == len(ball.vertices) and len(faces) == len(ball.faces)
    split = Mesh(
        torch.tensor(np.array(ball.triangles).reshape(-1, 3)).float(),
        torch.arange(3 * len(ball.faces)).reshape(-1, 3).int(),
    )
    vertices, faces = closed_surface(split)  # as files split vertices for their texture
    assert len(vertices) == len(ball.vertices) and is_closed_manifold(faces, len(vertices))


@pytest.mark.parametrize("damage", ["inward", "holes", "overlapping", "sheet"])
def test_any_other_mesh_gets_a_shell_near_its_surface(damage):
    ball = trimesh.creation.icosphere(3)
    if damage == "inward":
        mesh = mesh_of(ball, ball.faces[:, ::-1])
    elif damage == "holes":
        mesh = mesh_of(ball, np.delete(ball.faces, np.arange(0, len(ball.faces), 40), 0))
    elif damage == "overlapping":
        other = trimesh.creation.icosphere(3).apply_translation([0.5, 0, 0])
        both = trimesh.util.concatenate([ball, other])
        mesh = mesh_of(both, both.faces[1:])
    else:
        mesh = mesh_of(trimesh.creation.box([2, 1.5, 0.0001]), None)
        mesh = Mesh(mesh.vertices, mesh.faces[:-1])
    mesh = mesh.normalized()
    vertices, faces = closed_surface(mesh)
    assert is_closed_manifold(faces, len(vertices))
    assert signed_volumes(vertices, faces).sum() > 0
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    made = trimesh.Trimesh(vertices, faces, process=False)
    points = trimesh.sample.sample_surface(made, 2000, seed=0)[0]
    distance = np.abs(trimesh.proximity.closest_point_naive(surface, points[:300])[1])
    # What lies behind large holes is seen, too.
    assert np.quantile(distance, 0.85 if damage == "holes" else 1.0) < 0.06


def test_an_empty_mesh_is_refused():
    with pytest.raises(InputError, match="empty"):
        closed_surface(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32)))
