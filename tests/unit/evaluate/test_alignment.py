"""Finding a mesh's place, size and heading again."""

import numpy as np
import pytest
import torch
import trimesh
from known_shapes import as_mesh, ball, box, flag, turned

from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate.alignment import aligning, moved, normalizing, turning
from kiss3d_infer.evaluate.points import sample_points
from kiss3d_infer.scene.mesh import Mesh


def vertices_of(mesh: Mesh) -> np.ndarray:
    return mesh.vertices.double().numpy()


def found(made: Mesh, truth: Mesh, normalization="cube", refined=False):
    truth = moved(truth, normalizing(vertices_of(truth), normalization))
    matrix, yaw = aligning(
        vertices_of(made),
        sample_points(made),
        sample_points(truth, seed=1),
        normalization,
        refined=refined,
    )
    return moved(made, matrix), truth, yaw


def test_the_cube_holds_the_longest_side():
    mesh = as_mesh(box((2, 8, 4), (5, -3, 1)))
    cube = moved(mesh, normalizing(vertices_of(mesh), "cube")).vertices
    torch.testing.assert_close(cube.amax(0), torch.tensor([0.25, 1.0, 0.5]))
    torch.testing.assert_close(cube.amin(0), -torch.tensor([0.25, 1.0, 0.5]))
    torch.testing.assert_close(mesh.normalized().vertices, cube)


def test_no_normalization_leaves_a_mesh_alone():
    mesh = as_mesh(ball(0.3, (1, 2, 3)))
    same = moved(mesh, normalizing(vertices_of(mesh), "none"))
    torch.testing.assert_close(same.vertices, mesh.vertices, rtol=0, atol=0)


def test_a_point_cannot_be_normalized():
    with pytest.raises(InputError, match="no extent"):
        normalizing(np.ones((3, 3)), "cube")


def test_a_quarter_turn_moves_the_front_to_the_side():
    mesh = Mesh(torch.tensor([[0.0, 1, 2]]), torch.zeros(0, 3), normals=torch.tensor([[0.0, 0, 1]]))
    matrix = turning(90)
    matrix[:3] *= 3
    turned_mesh = moved(mesh, matrix)
    torch.testing.assert_close(turned_mesh.vertices, torch.tensor([[6.0, 3, 0]]))
    assert turned_mesh.normals is not None
    torch.testing.assert_close(turned_mesh.normals, torch.tensor([[1.0, 0, 0]]))


@pytest.mark.parametrize("yaw", [15, 90, 225])
def test_a_turned_object_is_found_again(yaw):
    made, truth, found_yaw = found(as_mesh(turned(flag(), -yaw)), as_mesh(flag()))
    assert found_yaw == yaw
    # Turning changes the bounding box: only normalizing after it gives the old size back.
    torch.testing.assert_close(made.vertices, truth.vertices, atol=1e-5, rtol=0)


def test_without_normalization_an_object_turns_about_the_worlds_axis():
    shape = flag().apply_translation((0.5, 0, 0))
    made, truth, yaw = found(as_mesh(turned(shape, -60)), as_mesh(shape), "none")
    assert yaw == 60
    torch.testing.assert_close(made.vertices, truth.vertices, atol=1e-5, rtol=0)


def test_icp_finds_what_lies_between_the_yaws_and_off_the_axis():
    shifted = turned(flag(), -50).apply_transform(
        trimesh.transformations.rotation_matrix(np.radians(3), [1, 0, 0], [0, 0, 0])
    )
    shifted.apply_translation((0.03, -0.02, 0.04))
    coarse, truth, yaw = found(as_mesh(shifted), as_mesh(flag()), "none")
    fine, _, _ = found(as_mesh(shifted), as_mesh(flag()), "none", refined=True)
    assert yaw == 45
    off = [(mesh.vertices - truth.vertices).norm(dim=1).max() for mesh in (coarse, fine)]
    assert off[0] > 0.08 and off[1] < 0.02


def test_icp_keeps_size_and_handedness():
    matrix, _ = aligning(
        vertices_of(as_mesh(ball(0.5))),
        sample_points(as_mesh(ball(0.5)), 1000),
        sample_points(as_mesh(ball()), 1000, seed=1),
        "none",
        refined=True,
    )
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
