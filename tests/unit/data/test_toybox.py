import re

import numpy as np
import pytest
import torch
import trimesh

from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import MAKERS, make
from kiss3d_train.data.sources.toybox.build import Draw, with_article
from kiss3d_train.data.sources.toybox.paint import COLORS
from kiss3d_train.data.sources.toybox.solids import (
    Solid,
    ball,
    box,
    cylinder,
    dome,
    lathe,
    limb,
    merged,
    ring,
    rounded_box,
    slab,
    tube,
)

ARROW = [(0, 0), (2, 0), (2, 1), (1, 0.3), (0, 1)]
SOLIDS = {
    "box": box(1, 2, 3, (0.5, 0.8)),
    "slab": slab(ARROW, 0.5),
    "clockwise slab": slab(ARROW[::-1], 0.5),
    "rounded box": rounded_box(1, 2, 3, 0.2),
    "cylinder": cylinder(1, 2),
    "cone": cylinder(1, 2, 0),
    "ball": ball(1),
    "dome": dome(1),
    "limb": limb((0, 0, 0), (1, 1, 1), 0.2, 0.1),
    "tube": tube([(0, 0, 0), (0, 1, 0), (0.2, 1.4, 0)], 0.1),
    "ring": ring(1, 0.2),
    "cup": lathe([(1, 0), (1, 2), (0.9, 2), (0.9, 0.1)]),
    "turned": box(1, 2, 3).turned("x", 30).turned("y", 40).turned("z", 50),
    "scaled": ball(1).scaled(1, 0.3, 2),
    "mirrored": slab(ARROW, 0.5).moved(x=3).mirrored(),
    "bent": box(1, 1, 1).bent(lambda p: p[:, 1:2] ** 2 * (0.1, 0.0, 0.0)),
}


@pytest.mark.parametrize("solid", SOLIDS.values(), ids=SOLIDS.keys())
def test_a_solid_is_closed_and_faces_outward(solid: Solid) -> None:
    mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    closed = mesh.copy()
    closed.merge_vertices(merge_tex=True, merge_norm=True)
    assert closed.is_watertight
    assert closed.volume > 0


@pytest.mark.parametrize("solid", SOLIDS.values(), ids=SOLIDS.keys())
def test_normals_are_unit_and_agree_with_the_faces(solid: Solid) -> None:
    mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    agreement = np.einsum("fj,fkj->fk", mesh.face_normals, solid.normals[solid.faces])
    assert agreement.min() > 0.6
    assert np.allclose(np.linalg.norm(solid.normals, axis=1), 1)


def test_sizes_are_those_asked_for() -> None:
    assert box(1, 2, 3).vertices.max(0).tolist() == [0.5, 2, 1.5]
    assert rounded_box(1, 2, 3, 0.1).vertices.max(0) == pytest.approx([0.5, 2, 1.5])
    assert merged([ball(1), ball(1).moved(y=3)]).vertices.max(0) == pytest.approx([1, 4, 1])


@pytest.mark.parametrize("index", range(3 * len(MAKERS)))
def test_an_object_is_sound(index: int) -> None:
    toy = make(index)
    mesh = toy.mesh()
    assert torch.isfinite(mesh.vertices).all()
    assert 0 < len(mesh.faces) < 20_000
    assert mesh.uv is not None and torch.isfinite(mesh.uv).all()
    assert mesh.material_index is not None
    assert mesh.material_index.unique().tolist() == list(range(len(mesh.materials)))
    assert mesh.faces.max() < len(mesh.vertices)
    for solid, _ in toy.parts:
        part = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
        assert np.einsum("fj,fkj->fk", part.face_normals, solid.normals[solid.faces]).min() > 0
        assert part.volume > 0


@pytest.mark.parametrize("index", range(2 * len(MAKERS)))
def test_a_caption_names_the_object_and_only_painted_colours(index: int) -> None:
    toy = make(index, seed=5)
    assert toy.name in toy.caption
    assert not any(color in toy.name.split() for color in COLORS)
    assert "  " not in toy.caption and toy.caption[:2] in ("a ", "an")
    painted = " ".join(paint.word for _, paint in toy.parts)
    named = [color for color in COLORS if f" {color} " in f" {toy.caption} "]
    assert all(color in painted for color in named), (toy.caption, painted)


@pytest.mark.parametrize("index", range(2 * len(MAKERS)))
def test_other_wordings_say_less_and_nothing_else(index: int) -> None:
    toy = make(index, seed=5)
    said = [toy.worded(Draw(index, number)) for number in range(20)]
    known = {*re.findall(r"[\w-]+", toy.caption), "a", "an", "legs"}
    for words in said:
        assert toy.name in words
        assert set(re.findall(r"[\w-]+", words)) <= known
        bare = re.sub("^an? ", "", words)
        assert words in (bare, with_article(bare))
    assert toy.caption in said or toy.category == "furniture"


def test_sofas_are_also_asked_for_without_their_size_and_with_legs() -> None:
    sofas = [toy for toy in map(make, range(len(MAKERS) * 20)) if toy.name == "sofa"]
    said = {toy.worded(Draw(n, k)) for n, toy in enumerate(sofas) for k in range(50)}
    assert {"a sofa", "a red sofa", "red sofa", "a red sofa with wooden legs"} <= said
    assert {"a three-seat red sofa", "a three-seat red sofa with wooden feet"} <= said


def test_an_item_is_a_pure_function_of_seed_and_index() -> None:
    few, many = open_source("toybox:3"), open_source("toybox:40")
    assert list(few.items()) == list(many.items()[:3])
    first, again = few.load(few.items()[2]), many.load(many.items()[2])
    assert torch.equal(first.vertices, again.vertices)
    other = open_source("toybox:3?seed=1")
    captions = [[s.describe(i).caption for i in s.items()] for s in (few, other)]
    assert captions[0] != captions[1]
    assert not {i.key for i in other.items()} & {i.key for i in few.items()}


def test_there_are_many_classes_in_several_categories() -> None:
    toys = [make(index) for index in range(len(MAKERS))]
    assert len({toy.name for toy in toys}) >= 50
    assert len({toy.category for toy in toys}) >= 6
