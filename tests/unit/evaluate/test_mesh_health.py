"""What is counted as right and wrong with a mesh."""

from dataclasses import replace

import pytest
import torch
from known_shapes import as_mesh, ball, box, inside_out, open_box, square

from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate import mesh_health
from kiss3d_infer.scene.mesh import Mesh

SOUND_BOX = {
    "num_faces": 12,
    "num_vertices": 8,
    "num_components": 1,
    "num_debris": 0,
    "num_inverted": 0,
    "num_duplicate_faces": 0,
    "num_degenerate_faces": 0,
    "watertight": 1,
    "manifold": 1,
    "consistent_winding": 1,
    "has_uv": 0,
    "has_normals": 0,
}


def with_faces(mesh: Mesh, *faces: tuple[int, int, int]) -> Mesh:
    return replace(mesh, faces=torch.cat([mesh.faces, torch.tensor(faces, dtype=torch.int32)]))


def test_a_sound_box():
    assert mesh_health(as_mesh(box())) == SOUND_BOX


def test_an_open_box_is_a_manifold_that_is_not_watertight():
    assert mesh_health(as_mesh(open_box())) == SOUND_BOX | {"num_faces": 10, "watertight": 0}


def test_balls_are_components_and_a_crumb_is_debris():
    health = mesh_health(as_mesh(ball(), ball(0.5, (3, 0, 0))))
    assert health["num_components"] == 2 and health["num_debris"] == 0
    # Areas grow with the radius squared: 0.044^2 / (1 + 0.044^2) = 0.19 %, 0.046^2 makes 0.21 %.
    for radius, debris in ((0.044, 1), (0.046, 0)):
        health = mesh_health(as_mesh(ball(), ball(radius, (3, 0, 0))))
        assert health["num_components"] == 2 and health["num_debris"] == debris


def test_a_component_turned_inside_out_is_inverted():
    health = mesh_health(as_mesh(box(), inside_out(box(center=(2, 0, 0))), box(center=(4, 0, 0))))
    assert health["num_components"] == 3 and health["num_inverted"] == 1
    assert health["consistent_winding"] == 1 and health["watertight"] == 1


def test_where_a_mesh_stands_does_not_turn_it_inside_out():
    for center in ((100, 0, 0), (-100, 50, 7)):
        assert mesh_health(as_mesh(ball(center=center)))["num_inverted"] == 0
        assert mesh_health(as_mesh(inside_out(ball(center=center))))["num_inverted"] == 1


def test_open_surfaces_and_closed_sheets_without_volume_are_not_inverted():
    assert mesh_health(as_mesh(inside_out(open_box())))["num_inverted"] == 0
    sheet = square()
    doubled = replace(sheet, faces=torch.cat([sheet.faces, sheet.faces.flip(1)]))
    assert mesh_health(doubled)["num_inverted"] == 0


def test_one_turned_face_is_inconsistent_winding():
    mesh = as_mesh(box())
    turned = replace(mesh, faces=torch.cat([mesh.faces[:1].flip(1), mesh.faces[1:]]))
    assert mesh_health(turned) == SOUND_BOX | {"consistent_winding": 0}


def test_a_fin_on_an_edge_is_no_manifold():
    mesh = as_mesh(box())
    fin = replace(mesh, vertices=torch.cat([mesh.vertices, torch.tensor([[3.0, 3, 3]])]))
    health = mesh_health(with_faces(fin, (*mesh.faces[0, :2].tolist(), 8)))
    assert health["manifold"] == 0 and health["watertight"] == 0
    assert health["num_components"] == 1


def test_a_face_that_is_there_twice_is_a_duplicate_whichever_way_it_faces():
    mesh = as_mesh(box())
    a, b, c = mesh.faces[0].tolist()
    for double in ((b, c, a), (a, c, b)):
        health = mesh_health(with_faces(mesh, double))
        assert health["num_duplicate_faces"] == 1 and health["manifold"] == 0


def test_collapsed_faces_and_slivers_are_degenerate():
    mesh = as_mesh(box())
    collapsed = mesh_health(with_faces(mesh, (0, 0, 1), (2, 3, 2)))
    assert collapsed == SOUND_BOX | {"num_faces": 14, "num_degenerate_faces": 2}
    middle = mesh.vertices[mesh.faces[0, :2].long()].mean(0, keepdim=True)
    sliver = replace(mesh, vertices=torch.cat([mesh.vertices, middle]))
    health = mesh_health(with_faces(sliver, (*mesh.faces[0, :2].tolist(), 8)))
    assert health["num_degenerate_faces"] == 1 and health["num_duplicate_faces"] == 0


def test_small_faces_of_a_fine_mesh_are_not_degenerate():
    assert mesh_health(as_mesh(ball(0.001), ball()))["num_degenerate_faces"] == 0


def test_seams_of_texture_coordinates_leave_a_mesh_watertight():
    whole = as_mesh(box())
    corners = whole.faces.flatten().long()
    split = Mesh(
        whole.vertices[corners],
        torch.arange(36, dtype=torch.int32).reshape(-1, 3),
        normals=torch.nn.functional.normalize(whole.vertices[corners], dim=1),
        uv=torch.rand(36, 2),
    )
    assert mesh_health(split) == SOUND_BOX | {"num_vertices": 36, "has_uv": 1, "has_normals": 1}


def test_boxes_that_touch_in_a_corner_are_two_and_along_an_edge_no_manifold():
    corner = mesh_health(as_mesh(box(), box(center=(1, 1, 1))))
    assert corner["num_components"] == 2 and corner["watertight"] == 1
    edge = mesh_health(as_mesh(box(), box(center=(1, 1, 0))))
    assert edge["num_components"] == 1 and edge["manifold"] == 0


@pytest.mark.parametrize("faces", [torch.zeros(0, 3), torch.zeros(1, 3)])
def test_a_mesh_without_faces_is_refused(faces):
    with pytest.raises(InputError):
        mesh_health(Mesh(torch.rand(4, 3), faces.int()))
