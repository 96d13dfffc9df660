"""Shared volumes of solids whose overlap is known."""

import itertools
import math

import numpy as np
import pytest
import torch
import trimesh
from known_shapes import as_mesh, ball, box, inside_out, open_box, square, turned

from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate.solid import volume_iou
from kiss3d_infer.scene.mesh import Mesh


def test_cubes_offset_by_half_share_a_third():
    first, second = as_mesh(box()), as_mesh(box(center=(0.5, 0, 0)))
    assert volume_iou(first, second, resolution=96) == pytest.approx(1 / 3)
    assert volume_iou(first, second) == pytest.approx(1 / 3, abs=0.015)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_counts_alike(axis):
    center = [0.0, 0.0, 0.0]
    center[axis] = 0.25
    assert volume_iou(as_mesh(box()), as_mesh(box(center=center)), 100) == pytest.approx(3 / 5)


def test_a_ball_in_a_ball_and_a_ball_in_its_cube():
    assert volume_iou(as_mesh(ball(0.8)), as_mesh(ball())) == pytest.approx(0.512, abs=0.005)
    cube = as_mesh(box((2, 2, 2)))
    assert volume_iou(as_mesh(ball()), cube) == pytest.approx(math.pi / 6, abs=0.005)


def test_a_solid_is_itself_and_not_its_neighbour():
    tilted = turned(box((1, 1, 1)), 30)
    assert volume_iou(as_mesh(tilted), as_mesh(tilted)) == 1
    assert volume_iou(as_mesh(box()), as_mesh(box(center=(2, 0, 0)))) == 0


def test_a_turned_cube_shares_an_octagon():
    """A unit square and itself turned by 45 degrees share 2 (sqrt(2) - 1)."""
    shared = 2 * (math.sqrt(2) - 1)
    measured = volume_iou(as_mesh(box()), as_mesh(turned(box(), 45)), 128)
    assert measured == pytest.approx(shared / (2 - shared), abs=0.01)


def test_overlapping_parts_are_solid_and_an_inward_shell_is_hollow():
    overlapping = as_mesh(box((1, 1, 1)), box((1, 1, 1), (0.5, 0, 0)))
    assert volume_iou(overlapping, as_mesh(box((1.5, 1, 1), (0.25, 0, 0))), 48) == 1
    assert volume_iou(as_mesh(inside_out(ball())), as_mesh(ball())) == 1
    hollow = as_mesh(box((2, 2, 2)), inside_out(box()))
    assert volume_iou(hollow, as_mesh(box((2, 2, 2)))) == pytest.approx(7 / 8)


def test_no_column_slips_between_faces_that_meet_under_it():
    """At this resolution voxel centres lie exactly on the box's diagonals, edges and corners."""
    exact = as_mesh(box((3, 3, 3)))
    inner = as_mesh(box((1, 1, 1)))
    assert volume_iou(inner, exact, resolution=9) == pytest.approx(1 / 27)
    finer = as_mesh(box((3, 3, 3)).subdivide().subdivide())
    for resolution in (8, 12, 24):
        assert volume_iou(finer, exact, resolution) == 1


@pytest.mark.parametrize("resolution", [7, 8, 9])
def test_columns_through_corners_and_along_slanted_edges_count_once(resolution):
    corners = np.concatenate([np.eye(3), -np.eye(3)])
    octahedron = as_mesh(trimesh.Trimesh(corners).convex_hull)
    assert len(octahedron.faces) == 8
    middles = (2 * np.arange(resolution) + 1) / resolution - 1
    x, y, z = np.meshgrid(middles, middles, middles)
    inside = (abs(x) + abs(y) + abs(z) < 1 - 1e-9).sum()
    cube = as_mesh(box((2, 2, 2)))
    for order in itertools.permutations(range(3)):
        turned_over = Mesh(octahedron.vertices[:, order], octahedron.faces)
        assert volume_iou(turned_over, cube, resolution) == pytest.approx(inside / resolution**3)


def test_vertices_split_by_a_file_leave_a_mesh_closed():
    whole = as_mesh(box())
    corners = whole.faces.flatten().long()
    split = Mesh(
        whole.vertices[corners], torch.arange(len(corners), dtype=torch.int32).reshape(-1, 3)
    )
    assert volume_iou(split, whole) == 1


def test_open_and_inconsistently_wound_meshes_have_no_volume():
    solid = as_mesh(box())
    flipped = Mesh(solid.vertices, torch.cat([solid.faces[:1].flip(1), solid.faces[1:]]))
    for made in (as_mesh(open_box()), flipped, square()):
        with pytest.raises(InputError, match="the made mesh"):
            volume_iou(made, solid)
    with pytest.raises(InputError, match="the true mesh"):
        volume_iou(solid, as_mesh(open_box()))


def test_meshes_thinner_than_a_voxel_are_refused():
    plates = as_mesh(box((1, 1, 0.001))), as_mesh(box((1, 1, 0.001), (0, 0, 1)))
    with pytest.raises(InputError, match="too thin"):
        volume_iou(*plates, resolution=8)
    sheet = square()
    doubled = Mesh(sheet.vertices, torch.cat([sheet.faces, sheet.faces.flip(1)]))
    with pytest.raises(InputError, match="too thin"):
        volume_iou(doubled, doubled)
