"""Colours and shape as measured on renders of the toybox, whose captions are exact."""

import re
from collections import Counter
from pathlib import Path

import pytest
import trimesh
from sample_folder import described, redescribe
from scipy.spatial import cKDTree

from kiss3d_infer.bundle import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle, render_views
from kiss3d_train.data.captions import caption_samples
from kiss3d_train.data.captions.colors import ANCHORS, measured_colors
from kiss3d_train.data.captions.metadata import MetadataCaptioner
from kiss3d_train.data.captions.shape import measured_shape
from kiss3d_train.data.sources.toybox import make
from kiss3d_train.data.sources.toybox.build import Toy
from kiss3d_train.data.sources.toybox.paint import COLORS, Color, Paint
from kiss3d_train.data.sources.toybox.solids import Solid, ball, box, cylinder, merged

TILE = 64
NAMES = {name for name, _ in ANCHORS}
SHADES = {
    "wooden": {"brown", "beige", "orange"},
    "metal": {"grey"},
    "dark metal": {"grey", "black"},
    "golden": {"yellow", "brown", "orange"},
    "glass": {"light blue", "blue", "grey", "teal"},
    "brick": {"red", "brown"},
    "stone": {"grey"},
    "straw": {"yellow", "beige", "brown"},
}
"""The colours that a material may be said to have."""


def colors_in(text: str) -> list[str]:
    return [word for word in re.findall(r"light blue|\w+", text) if word in COLORS]


def painted(toy: Toy) -> set[str]:
    """The colours of everything on the toy, whether its caption mentions it or not."""
    words = {paint.word for _, paint in toy.parts}
    return set().union(*({*colors_in(word), *SHADES.get(word, ())} for word in words))


@pytest.fixture(scope="module")
def toys() -> list[tuple[Toy, Bundle]]:
    made = [make(index, seed=7) for index in range(60)]
    return [(toy, render_bundle(framed(toy.mesh(), PUBLISHED.cameras), tile=TILE)) for toy in made]


def of_solid(solid: Solid, color: Color = (0.5, 0.5, 0.5)) -> Bundle:
    toy = Toy("thing", "test")
    toy.add(Paint("plain", color), solid)
    return render_bundle(framed(toy.mesh(), PUBLISHED.cameras), tile=2 * TILE)


def test_the_colours_that_are_named_are_on_the_object(toys: list[tuple[Toy, Bundle]]) -> None:
    named = [(name, toy) for toy, bundle in toys for name, _ in measured_colors(bundle)]
    wrong = [(name, toy.caption) for name, toy in named if name not in painted(toy)]
    assert len(named) > 80
    assert len(wrong) <= 0.06 * len(named), wrong


def test_the_colour_that_a_caption_begins_with_is_found(toys: list[tuple[Toy, Bundle]]) -> None:
    plain = [(toy, bundle) for toy, bundle in toys if toy.look in COLORS]
    missed = [
        toy.caption
        for toy, bundle in plain
        if toy.look not in [name for name, _ in measured_colors(bundle)]
    ]
    assert len(plain) > 25
    assert len(missed) <= 0.05 * len(plain), missed


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((0.95, 0.95, 0.95), "white"),
        ((0.5, 0.5, 0.5), "grey"),
        ((0.06, 0.06, 0.06), "black"),
        ((1.0, 0.0, 0.0), "red"),
        ((0.0, 0.0, 1.0), "blue"),
        ((1.0, 0.5, 0.0), "orange"),
    ],
)
def test_a_plain_ball_has_one_colour(color: Color, name: str) -> None:
    ((found, share),) = measured_colors(of_solid(ball(1), color))
    assert found == name and share > 0.8


@pytest.mark.parametrize(
    ("solid", "attributes"),
    [
        (ball(1), ["round"]),
        (cylinder(1, 2), ["round"]),
        (cylinder(1, 2, 0), ["round"]),
        (box(1, 1, 1), ["symmetric"]),
        (cylinder(0.3, 2), ["tall and slender", "round"]),
        (box(2, 0.2, 0.2), ["long and slender", "symmetric"]),
        (box(2, 0.2, 2), ["flat", "symmetric"]),
        (box(2, 2, 0.2), ["thin", "symmetric"]),
        (merged([box(2, 0.5, 1), box(0.5, 2, 1).moved(x=0.75)]), []),
    ],
)
def test_a_solid_has_its_attributes(solid: Solid, attributes: list[str]) -> None:
    shape = measured_shape(of_solid(solid))
    assert shape is not None and shape.attributes == attributes


def test_attributes_that_are_given_hold(toys: list[tuple[Toy, Bundle]]) -> None:
    given: Counter[str] = Counter()
    for toy, bundle in toys:
        shape, mesh = measured_shape(bundle), toy.mesh()
        assert shape is not None
        shortest, middle, longest = sorted((mesh.vertices.amax(0) - mesh.vertices.amin(0)).tolist())
        for attribute in shape.attributes:
            given[attribute] += 1
            holds = {
                "tall and slender": longest > 2.7 * middle,
                "long and slender": longest > 2.7 * middle,
                "flat": shortest < 0.25 * middle,
                "thin": shortest < 0.25 * middle,
                "round": attribute != "round" or _turned_agreement(mesh) > 0.9,
                "symmetric": attribute != "symmetric" or _unmirrored_share(mesh) < 0.07,
            }
            assert holds[attribute], (toy.caption, attribute)
    assert given["symmetric"] > 15 and given["round"] > 6 and given["tall and slender"] >= 2


def _turned_agreement(mesh: Mesh) -> float:
    """The least IoU of the front's silhouette with those from azimuths a bundle does not hold."""
    azimuths = (0.0, 20.0, 45.0, 70.0, 110.0, 135.0, 160.0)
    cameras = Cameras(azimuths, (0.0,) * len(azimuths), PUBLISHED.distance, PUBLISHED.fov)
    front, *others = render_views(framed(mesh, cameras), cameras, TILE).alpha[:, 0] > 0.5
    return min(float((front & other).sum() / (front | other).sum()) for other in others)


def _unmirrored_share(mesh: Mesh) -> float:
    """Share of the surface that is farther than 4 % of the size from the mirrored surface."""
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    points, _ = trimesh.sample.sample_surface(surface, 4000, seed=0)
    points = (points - surface.bounds.mean(0)) / surface.extents.max()
    distances, _ = cKDTree(points).query(points * [-1, 1, 1])
    return float((distances > 0.04).mean())


def test_nothing_is_said_of_a_shape_that_is_seen_from_above_only() -> None:
    layout = BundleLayout(azimuths=(0.0, 90.0), elevations=(60.0, 60.0))
    mesh = framed(make(0).mesh(), layout.cameras)
    assert measured_shape(render_bundle(mesh, layout, tile=TILE)) is None


def test_captions_join_words_colours_and_shape(samples: Path) -> None:
    meta = {"name": "Garden Chair", "category": "Outdoor", "tags": ["Seat"], "source": "A shop"}
    first, second, *_ = sorted(samples.glob("[!.]*.json"))
    redescribe(first, **meta)
    redescribe(second, **meta | {"name": "red wagon"})
    caption_samples(samples, MetadataCaptioner())
    chair, wagon, *_ = described(samples)
    assert re.fullmatch(
        r"a [a-z ]+ garden chair\. outdoor, seat(, symmetric)?", chair["caption"]
    ), chair
    assert colors_in(chair["caption"])
    # The name says the colour itself.
    assert wagon["caption"].startswith("a red wagon. outdoor, seat")
    assert chair["caption_source"]["captioner"] == "metadata"
