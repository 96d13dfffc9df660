"""What validation says about bad bundles: which tile, and why."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kiss3d_infer.bundle import PUBLISHED, Bundle, BundleLayout, validate
from kiss3d_infer.bundle.normals import to_camera, to_world
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import Views, render_views
from kiss3d_train.data.sources.toybox import make

TILE = 96
ALTERNATING = BundleLayout(elevations=(20, -10, 20, -10))
OBJECTS = range(2, 40, 4)
SHELVES = (24, 372)


@cache
def views_of(index: int, layout: BundleLayout = PUBLISHED, tile: int = TILE) -> Views:
    """What the layout's cameras see of a toybox object."""
    mesh = framed(make(index, seed=77).mesh(), layout.cameras)
    return render_views(mesh, layout.cameras, tile)


def bundle_storing(stored: Tensor, views: Views, layout: BundleLayout = PUBLISHED) -> Bundle:
    """A bundle whose colours are (stored + 1) / 2, whatever vectors [V, 3, T, T] those are."""
    camera = stored * torch.tensor([-1.0, 1, 1]).view(3, 1, 1)
    return Bundle.from_views(views.rgb, to_world(camera, layout), views.alpha, layout)


def stored(convention: str, views: Views, layout: BundleLayout = PUBLISHED) -> Tensor:
    """The vectors [V, 3, T, T] that a convention turns into colours."""
    signs = {
        "published": (-1.0, 1, 1),
        "x is not negated": (1, 1, 1),
        "y points down": (-1, -1, 1),
        "they point into the object": (1, -1, -1),
        "they are in world space": (1, 1, 1),
        "they are in world space, x negated": (-1, 1, 1),
    }[convention]
    world = "world space" in convention
    normals = views.normals if world else to_camera(views.normals, layout)
    return normals * torch.tensor(signs).view(3, 1, 1)


def exact(index: int, layout: BundleLayout = PUBLISHED, tile: int = TILE) -> Bundle:
    views = views_of(index, layout, tile)
    return bundle_storing(stored("published", views, layout), views, layout)


def with_tile(bundle: Bundle, row: int, view: int, content: Tensor) -> Bundle:
    """The bundle with other content [3, T, T] in one tile."""
    image, size = bundle.image.clone(), bundle.tile
    image[:, row * size : (row + 1) * size, view * size : (view + 1) * size] = content
    return Bundle(image, bundle.layout)


@pytest.mark.parametrize("layout", [PUBLISHED, ALTERNATING])
def test_exact_bundles_raise_no_alarm(layout: BundleLayout) -> None:
    for index in (*OBJECTS, *SHELVES):
        report = validate(exact(index, layout))
        assert report.ok, (index, report.problems)


def test_a_blurred_shelf_is_not_taken_for_another_convention() -> None:
    """Blur hides that its inner walls face each other, and they lean like outer ones inverted."""
    image = exact(SHELVES[0], tile=256).image
    blurred = avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)
    problems = validate(Bundle(blurred)).problems
    assert not any("convention" in problem for problem in problems)


@pytest.mark.parametrize("layout", [PUBLISHED, ALTERNATING])
@pytest.mark.parametrize(
    ("convention", "may_miss"),
    [
        ("x is not negated", 1),
        ("y points down", 2),
        ("they point into the object", 0),
        ("they are in world space", 0),
        ("they are in world space, x negated", 0),
    ],
)
def test_wrong_conventions_are_named(layout: BundleLayout, convention: str, may_miss: int) -> None:
    named = []
    for index in OBJECTS:
        views = views_of(index, layout)
        wrong = stored(convention, views, layout)
        if mean_angle(wrong, stored("published", views, layout), views.alpha) > 8:
            problems = validate(bundle_storing(wrong, views, layout)).problems
            named.append(any(f"another convention: {convention} (" in p for p in problems))
    assert len(named) >= 8
    assert named.count(False) <= may_miss


def test_a_convention_is_told_once_with_what_to_do() -> None:
    views = views_of(2)
    report = validate(bundle_storing(stored("they are in world space", views), views))
    assert report.problems == (
        "the normals follow another convention: they are in world space "
        "(rotate them into each view's camera, then negate x)",
    )
    assert report.measurements["backfacing_share"] > 0.2
    assert report.measurements["other_convention"] > 0.5


def test_one_view_whose_normals_point_away_is_named() -> None:
    good = exact(2)
    views = views_of(2)
    inverted = bundle_storing(stored("they point into the object", views), views)
    bad = with_tile(good, 1, 2, inverted.normal_colors[2])
    (problem,) = validate(bad).problems
    assert problem.startswith("normals point away from the viewer in view 2 (azimuth 180) (")


def test_rgb_and_normals_of_different_objects_are_named_by_view() -> None:
    chimera = with_tile(exact(2), 1, 2, exact(6).normal_colors[2])
    report = validate(chimera)
    assert any("silhouettes differ in view 2 (azimuth 180) (" in p for p in report.problems)
    by_view = [report.measurements[f"silhouette_iou/{view}"] for view in range(4)]
    assert by_view[2] == report.measurements["silhouette_iou"] < 0.85
    assert min(by_view[0], by_view[1], by_view[3]) > 0.9


def test_different_objects_in_the_rows_are_refused_in_every_view() -> None:
    for index in OBJECTS[:-1]:
        rows = [exact(index).image[:, :TILE], exact(index + 4).image[:, TILE:]]
        assert any("differ in" in p for p in validate(Bundle(torch.cat(rows, 1))).problems)


def generated(kind: str) -> Tensor:
    """A picture [3, 128, 256] that is no bundle."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 128), torch.linspace(0, 1, 256), indexing="ij")
    return {
        "noise": torch.rand(3, 128, 256, generator=random),
        "grey noise": torch.rand(1, 128, 256, generator=random).expand(3, -1, -1),
        "grey": torch.full((3, 128, 256), 0.5),
        "black": torch.zeros(3, 128, 256),
        "landscape": torch.stack([0.5 + 0.3 * (9 * x).sin() * y, 0.7 - 0.3 * y, 0.9 - 0.7 * y]),
    }[kind]


@pytest.mark.parametrize("kind", ["noise", "grey noise", "grey", "black", "landscape"])
def test_a_picture_that_is_no_bundle_is_told_in_one_sentence(kind: str) -> None:
    (problem,) = validate(Bundle(generated(kind))).problems
    assert problem.startswith("this is no bundle: the background is not white in 8 of 8 tiles")
    assert "normals are not unit vectors" in problem


def test_one_tile_of_noise_is_named() -> None:
    noise = torch.rand(3, TILE, TILE, generator=torch.Generator().manual_seed(0))
    background, normals = validate(with_tile(exact(2), 1, 3, noise)).problems
    assert background == "the background is not white in the normal row of view 3 (azimuth 270)"
    assert normals.startswith("normals are not unit vectors in view 3 (azimuth 270) (")


def test_noise_for_the_normals_of_one_view_is_named() -> None:
    good = exact(2)
    noise = torch.rand(3, TILE, TILE, generator=torch.Generator().manual_seed(0))
    bad = with_tile(good, 1, 0, torch.where(views_of(2).alpha[0] == 1, noise, 1.0))
    (problem,) = validate(bad).problems
    assert problem.startswith("normals are not unit vectors in view 0 (azimuth 0) (")


def test_an_empty_tile_is_named_by_row_and_view() -> None:
    white = torch.ones(3, TILE, TILE)
    no_rgb = with_tile(exact(2), 0, 3, white)
    assert validate(no_rgb).problems == (
        "the tile is empty in the RGB row of view 3 (azimuth 270)",
    )
    neither = with_tile(no_rgb, 1, 3, white)
    report = validate(neither)
    assert report.problems == ("the tile is empty in view 3 (azimuth 270)",)
    assert report.measurements["empty_tiles"] == 1
    everywhere = validate(Bundle(torch.ones(3, 128, 256)))
    assert everywhere.problems == ("the tile is empty in every view",)


def test_a_cut_off_object_is_named_by_row_and_view() -> None:
    good = exact(2)
    both = good
    for row, tiles in enumerate((good.rgb, good.normal_colors)):
        both = with_tile(both, row, 1, tiles[1].roll(TILE // 2, dims=1))
    assert validate(both).problems == ("the object is cut off at the edge of view 1 (azimuth 90)",)
    rgb_only = with_tile(good, 0, 1, good.rgb[1].roll(TILE // 2, dims=1))
    first, *_ = validate(rgb_only).problems
    assert first == "the object is cut off at the edge of the RGB row of view 1 (azimuth 90)"


def views_around(count: int) -> BundleLayout:
    step = 360 / count
    return BundleLayout(
        azimuths=tuple(step * view for view in range(count)),
        elevations=tuple((20.0, -10.0)[view % 2] for view in range(count)),
    )


@pytest.mark.parametrize(
    ("count", "tile"), [(1, 16), (2, 16), (6, 16), (16, 16), (4, 1), (4, 2), (4, 33)]
)
def test_figures_are_finite_whatever_the_picture(count: int, tile: int) -> None:
    layout = views_around(count)
    width, height = layout.image_size(tile)
    dots = torch.ones(3, height, width)
    dots[:, tile // 2 :: tile, tile // 2 :: tile] = 0
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    for image in (dots, noise, torch.zeros_like(dots), torch.ones_like(dots)):
        report = validate(Bundle(image, layout))
        assert not report.ok
        assert all(math.isfinite(value) for value in report.measurements.values())


@pytest.mark.parametrize("count", [1, 2, 6, 16])
def test_exact_bundles_of_any_number_of_views_are_valid(count: int) -> None:
    layout = views_around(count)
    for index in (6, 14):
        assert validate(exact(index, layout, tile=48)).ok


def mean_angle(a: Tensor, b: Tensor, alpha: Tensor) -> float:
    """Between unit vectors [V, 3, T, T] where the object covers the pixel, degrees."""
    cosines = (a * b).sum(1).clamp(-1, 1)[alpha[:, 0] == 1]
    return float(torch.rad2deg(cosines.acos()).mean())
