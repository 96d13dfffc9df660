"""Points on surfaces: where they lie, how they are spread, and which are seen from outside."""

import numpy as np
import pytest
import torch
import trimesh
from known_shapes import as_mesh, ball, box, inside_out, open_box, square

from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate.alignment import turning
from kiss3d_infer.evaluate.points import sample_points
from kiss3d_infer.scene.mesh import Mesh


def test_points_are_spread_by_area_and_carry_their_faces_normals():
    corners = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 0, -1], [0, 1, 0]])
    # A floor of area 1.5 that looks up, a wall of area 0.5 that looks along +X.
    mesh = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32))
    points = sample_points(mesh, 8000)
    on_floor = points.positions[:, 1] == 0
    assert len(points) == 8000
    assert on_floor.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(points.normals[on_floor] - [0, 1, 0], 0, atol=1e-12)
    np.testing.assert_allclose(points.normals[~on_floor] - [1, 0, 0], 0, atol=1e-12)
    np.testing.assert_allclose(points.positions[on_floor].mean(0), [1, 0, -1 / 3], atol=0.03)


def test_a_seed_gives_the_same_points_every_time_and_another_seed_others():
    mesh = square()
    first, again, other = (sample_points(mesh, 100, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, other.positions)


@pytest.mark.parametrize("corner", [[0, 0, 0], [0, 1, 1]])
def test_a_mesh_without_area_has_no_points(corner):
    mesh = Mesh(torch.rand(3, 3), torch.tensor([corner], dtype=torch.int32))
    with pytest.raises(InputError, match="no surface"):
        sample_points(mesh, 10)


def test_a_turn_and_a_scale_move_points_and_turn_normals():
    points = sample_points(square(height=1.0), 50)
    matrix = turning(90)
    matrix[:3] *= 2
    moved = points.moved(matrix)
    x, y, z = points.positions.T
    np.testing.assert_allclose(moved.positions, 2 * np.stack([z, y, -x], 1), atol=1e-12)
    np.testing.assert_allclose(moved.normals, points.normals, atol=1e-12)


def test_what_is_enclosed_is_not_visible():
    mesh = as_mesh(box((2, 2, 2)), ball(0.6))
    outside = np.abs(sample_points(mesh, 4000).positions).max(1) > 0.99
    assert outside.mean() == pytest.approx(24 / (24 + 4 * np.pi * 0.36), abs=0.03)
    visible = sample_points(mesh, 4000, only_visible=True)
    assert len(visible) == 4000
    assert (np.abs(visible.positions).max(1) > 0.99).all()
    assert visible.positions.mean(0) == pytest.approx([0, 0, 0], abs=0.06)


def test_the_inner_side_of_a_thin_shell_is_not_visible():
    mesh = as_mesh(ball(), inside_out(ball(0.985)))
    visible = sample_points(mesh, 4000, only_visible=True)
    assert (np.linalg.norm(visible.positions, axis=1) > 0.99).all()


@pytest.mark.parametrize(
    "shape",
    [ball(), box((2, 2, 0.01)), trimesh.creation.torus(0.7, 0.25)],
    ids=["ball", "plate", "ring"],
)
def test_nothing_of_a_bare_surface_is_left_out(shape):
    everything, visible = (
        sample_points(as_mesh(shape), 4000, only_visible=only) for only in (False, True)
    )
    np.testing.assert_array_equal(visible.positions, everything.positions)


def test_the_inside_of_an_open_box_is_visible():
    mesh = as_mesh(open_box(), box((0.2, 0.2, 0.2)))
    visible = sample_points(mesh, 4000, only_visible=True).positions
    within = np.abs(visible).max(1) < 0.2
    # The little box floats inside: its six sides are seen through the open top.
    assert within.mean() == pytest.approx(0.24 / 5.24, abs=0.015)


def test_a_mesh_whose_surface_is_nearly_all_hidden_is_refused(monkeypatch):
    monkeypatch.setattr("kiss3d_infer.evaluate.points._MAX_ROUNDS", 2)
    hidden = [trimesh.creation.icosphere(1, 0.9)] * 10  # four times the area of the box
    with pytest.raises(InputError, match="seen from outside"):
        sample_points(as_mesh(box((2, 2, 2)), *hidden), 100, only_visible=True)
