"""Mesh: normalization, joining, and the normals it is drawn with."""

import pytest
import torch
import trimesh

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import corner_normals, smooth_normals, weld


def from_trimesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(
        torch.tensor(shape.vertices, dtype=torch.float32),
        torch.tensor(shape.faces, dtype=torch.int32),
    )


def test_normalized_centres_and_scales_to_the_longest_half_extent() -> None:
    box = from_trimesh(trimesh.creation.box([2, 8, 4]))
    moved = Mesh(box.vertices + torch.tensor([5.0, -3, 1]), box.faces)
    extents = moved.normalized().vertices
    torch.testing.assert_close(extents.amax(0), torch.tensor([0.25, 1.0, 0.5]))
    torch.testing.assert_close(extents.amin(0), -torch.tensor([0.25, 1.0, 0.5]))


@pytest.mark.parametrize("vertices", [torch.zeros(0, 3), torch.ones(3, 3)])
def test_a_mesh_without_extent_cannot_be_normalized(vertices: torch.Tensor) -> None:
    with pytest.raises(InputError):
        Mesh(vertices, torch.zeros(0, 3, dtype=torch.int32)).normalized()


def test_concatenated_keeps_every_part_and_fills_in_what_is_missing() -> None:
    box = from_trimesh(trimesh.creation.box())
    red = Material("red", (1.0, 0.0, 0.0))
    textured = Mesh(box.vertices, box.faces, uv=torch.rand(8, 2), materials=(red,))
    colored = Mesh(box.vertices, box.faces, vertex_colors=torch.rand(8, 3))
    joined = Mesh.concatenated([textured, colored, box])
    assert joined.faces.max() == 23 and joined.normals is None
    assert joined.uv is not None and torch.equal(joined.uv[:8], textured.uv)
    assert joined.uv[8:].eq(0).all()
    assert joined.vertex_colors is not None and joined.vertex_colors[:8].eq(1).all()
    assert joined.material_index is not None
    assert joined.material_index.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert [m.base_color for m in joined.materials] == [
        (1.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        (0.8, 0.8, 0.8),
    ]


def test_concatenated_keeps_a_shared_material_one() -> None:
    box = from_trimesh(trimesh.creation.box())
    red, green = Material("red", (1.0, 0.0, 0.0)), Material("green", (0.0, 1.0, 0.0))
    first = Mesh(box.vertices, box.faces, materials=(red,))
    index = torch.arange(12, dtype=torch.int32) % 2
    second = Mesh(box.vertices, box.faces, material_index=index, materials=(green, red))
    joined = Mesh.concatenated([first, second])
    assert [material.name for material in joined.materials] == ["red", "green"]
    assert joined.material_index is not None
    assert joined.material_index.tolist() == [0] * 12 + [1, 0] * 6


def test_vertices_split_by_a_file_share_their_normal() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=3)
    whole = from_trimesh(sphere)
    corners = whole.faces.flatten().long()
    split = Mesh(
        whole.vertices[corners], torch.arange(len(corners), dtype=torch.int32).reshape(-1, 3)
    )
    welded, _ = weld(split.vertices)
    assert len(welded) == len(whole.vertices)
    torch.testing.assert_close(smooth_normals(split), smooth_normals(whole)[corners])


def test_a_box_is_drawn_flat_and_a_sphere_smooth() -> None:
    box = from_trimesh(trimesh.creation.box())
    normals = corner_normals(box)
    torch.testing.assert_close(normals.abs().amax(-1), torch.ones(12, 3))
    sphere = from_trimesh(trimesh.creation.icosphere(subdivisions=3))
    corners = sphere.vertices[sphere.faces.long()]
    assert (corner_normals(sphere) * corners).sum(-1).min() > 0.999
    flat = corner_normals(sphere, smooth=False)
    torch.testing.assert_close(flat[:, 0], flat[:, 1])


def test_wrong_normals_in_a_file_give_way_to_the_faces() -> None:
    sphere = from_trimesh(trimesh.creation.icosphere(subdivisions=3))
    sideways = torch.tensor([1.0, 0, 0]).expand_as(sphere.vertices)
    drawn = corner_normals(Mesh(sphere.vertices, sphere.faces, normals=sideways))
    corners = torch.nn.functional.normalize(sphere.vertices[sphere.faces.long()].mean(1), dim=-1)
    assert (drawn[:, 0] * corners).sum(-1).min() > 0.9
