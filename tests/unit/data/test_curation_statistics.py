from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.curation.picture import hash_bits
from kiss3d_train.data.curation.statistics import Statistics, statistics_of
from kiss3d_train.data.sources.toybox import make

RED = Material("red", (0.8, 0.1, 0.1))


def _box(extents: Sequence[float], at: Sequence[float] = (0, 0, 0)) -> Mesh:
    box = trimesh.creation.box(extents)
    vertices = torch.tensor(box.vertices, dtype=torch.float32) + torch.tensor(at)
    return Mesh(vertices, torch.tensor(box.faces, dtype=torch.int32), materials=(RED,))


def _measured(mesh: Mesh, tile: int = 48) -> Statistics:
    mesh = framed(mesh, PUBLISHED.cameras)
    return statistics_of(mesh, render_bundle(mesh, PUBLISHED, tile))


def test_a_closed_box_is_one_closed_red_part() -> None:
    figures = _measured(_box((2, 1, 0.5)))
    assert (figures.num_faces, figures.num_parts, figures.num_ground_parts) == (12, 1, 1)
    assert (figures.num_objects, figures.main_object) == (1, 1)
    assert figures.extents == (1, 0.5, 0.25) and figures.thickness == 0.25
    assert figures.elongation == 2
    assert (figures.boundary_edges, figures.open_sides) == (0, 0)
    assert (figures.has_texture, figures.has_material) == (False, True)
    name, share = figures.colors[0]
    red, green, blue = bytes.fromhex(name[1:])
    assert red > 3 * max(green, blue) and share > 0.3
    front, side, *_ = figures.coverage
    assert front / side == pytest.approx(4, rel=0.5)


def test_vertices_that_a_file_splits_are_one() -> None:
    box = _box((1, 1, 1))
    corners = box.faces.flatten().long()
    faces = torch.arange(len(corners), dtype=torch.int32).reshape(-1, 3)
    figures = _measured(replace(box, vertices=box.vertices[corners], faces=faces))
    assert (figures.num_parts, figures.boundary_edges) == (1, 0)


@pytest.mark.parametrize(("axis", "open_sides"), [(2, 1.0), (1, 0.0)])
def test_a_missing_back_is_an_open_side_and_a_missing_bottom_is_not(
    axis: int, open_sides: float
) -> None:
    box = _box((1, 1, 1))
    at = box.vertices[box.faces.long()][..., axis].amax(1)
    without = replace(box, faces=box.faces[at > -0.49])
    assert len(without.faces) == 10
    figures = _measured(without)
    assert figures.open_sides == pytest.approx(open_sides, abs=0.2)
    assert figures.boundary_edges == pytest.approx(4 / 17, abs=1e-5)


def test_boxes_that_touch_are_one_object_and_others_are_not() -> None:
    def pair(gap: float) -> Statistics:
        boxes = _box((1, 1, 1)), _box((1, 2, 1), at=(1 + gap, 0.5, 0))
        return _measured(Mesh.concatenated(boxes))

    touching, apart = pair(0.001), pair(0.5)
    assert (touching.num_parts, touching.num_ground_parts, touching.num_objects) == (2, 2, 1)
    assert (apart.num_objects, apart.main_object) == (2, pytest.approx(10 / 16, abs=1e-3))


def test_things_are_counted_without_the_ground_on_which_they_stand() -> None:
    ground = _box((10, 0.1, 10))
    houses = [_box((1, 1, 1), at=(3 * i - 3, 0.55, 3 * j - 3)) for i in range(3) for j in range(3)]
    figures = _measured(Mesh.concatenated([ground, *houses]))
    assert (figures.num_objects, figures.num_things) == (1, 9)


def test_more_parts_than_are_grouped_count_as_crumbs() -> None:
    crumbs = [_box((0.01, 0.01, 0.01), at=(i * 0.02, 5, 0)) for i in range(600)]
    figures = _measured(Mesh.concatenated([_box((9, 9, 9)), *crumbs]), tile=32)
    assert figures.num_parts == 601 and figures.main_object > 0.99


def test_paint_is_told_from_none(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.export(tmp_path / "bare.ply")
    box.visual.vertex_colors = [200, 30, 30, 255]
    box.export(tmp_path / "colored.ply")
    bare, colored = (_measured(load_mesh(tmp_path / f"{n}.ply")) for n in ("bare", "colored"))
    assert not (bare.has_material or bare.has_texture or bare.has_vertex_colors)
    assert colored.has_vertex_colors
    lines = ["v 0 0 0", "v 1 0 0", "v 0 1 0", "v 0 0 1", "vt 0 0"]
    faces = ["f 1/1 3/1 2/1", "f 1/1 2/1 4/1", "f 2/1 3/1 4/1", "f 1/1 4/1 3/1"]
    (tmp_path / "coordinates.obj").write_text("\n".join(lines + faces))
    only_coordinates = _measured(load_mesh(tmp_path / "coordinates.obj"))
    assert not (only_coordinates.has_material or only_coordinates.has_texture)
    textured = _measured(replace(_box((1, 1, 1)), materials=(_checkered(),)))
    assert textured.has_texture


def _checkered() -> Material:
    return Material("checkered", texture=torch.rand(4, 4, 3))


def _bits(a: Statistics, b: Statistics) -> int:
    both = hash_bits(a.image_hash) ^ hash_bits(b.image_hash)
    return sum(int(byte).bit_count() for byte in both)


def test_a_hash_hardly_depends_on_the_size_of_the_picture_and_tells_objects_apart() -> None:
    meshes = [make(i).mesh() for i in (0, 1, 2)]
    small, large = ([_measured(mesh, tile) for mesh in meshes] for tile in (64, 192))
    for i in range(3):
        for j in range(3):
            assert (_bits(small[i], large[j]) <= 12) == (i == j)


def test_the_figures_of_a_sample_can_be_read_back() -> None:
    figures = _measured(make(3).mesh())
    assert Statistics.model_validate_json(figures.model_dump_json()) == figures
