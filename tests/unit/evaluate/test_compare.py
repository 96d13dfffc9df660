"""All measures of a pair of meshes at once."""

import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from known_shapes import as_mesh, ball, box, flag, open_box, turned
from pydantic import ValidationError

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate import PAPER_PROTOCOL, CompareOptions, compare, mesh_health
from kiss3d_infer.scene.mesh import Mesh

FRONT = BundleLayout(azimuths=(0.0,), elevations=(0.0,))
GEOMETRY = CompareOptions(volume_resolution=None, view_size=None, num_points=4000)


def test_the_default_is_the_papers_protocol():
    assert PAPER_PROTOCOL.normalization == "cube" and PAPER_PROTOCOL.alignment == "none"
    assert PAPER_PROTOCOL.num_points == 16_384 and not PAPER_PROTOCOL.only_visible


def test_every_number_is_there_finite_and_fit_for_mlflow():
    options = CompareOptions(view_size=32, num_points=1000, layout=FRONT)
    measured = compare(as_mesh(box()), as_mesh(ball()), options)
    assert {
        "chamfer_mean", "chamfer_sum", "chamfer_squared", "normal_consistency",
        *(f"{name}/{t}" for name in ("precision", "recall", "f_score")
          for t in ("0.02", "0.05", "0.1", "0.2")),
        "volume_iou", "silhouette_iou", "silhouette_iou/0", "normal_error", "normal_error/0",
        "psnr", "ssim",
        *(f"health/{name}" for name in mesh_health(as_mesh(box()))),
    } == set(measured)  # fmt: skip
    assert all(type(value) is float and math.isfinite(value) for value in measured.values())
    assert all(re.fullmatch(r"[\w./]+", name) for name in measured)
    assert measured["volume_iou"] == pytest.approx(math.pi / 6, abs=0.01)


def test_a_mesh_agrees_with_itself():
    mesh = as_mesh(ball())
    measured = compare(mesh, mesh, CompareOptions(view_size=32))
    assert measured["f_score/0.05"] == 1 and measured["volume_iou"] == 1
    assert measured["silhouette_iou"] == 1 and measured["psnr"] == 100
    # Independent points: half the mean spacing apart, not 0.
    floor = 0.5 / math.sqrt(16_384 / (4 * math.pi))
    assert measured["chamfer_mean"] == pytest.approx(floor, rel=0.05)


def test_the_same_options_give_the_same_numbers():
    made, truth = as_mesh(flag()), as_mesh(ball())
    options = CompareOptions(
        volume_resolution=None, view_size=None, num_points=500, alignment="icp", only_visible=True
    )
    assert compare(made, truth, options) == compare(made, truth, options)


def test_normalization_forgives_place_and_size_and_none_does_not():
    made, truth = as_mesh(ball(0.8, (0.3, 0, 0))), as_mesh(ball())
    assert compare(made, truth, GEOMETRY)["chamfer_mean"] < 0.03
    as_it_is = GEOMETRY.model_copy(update={"normalization": "none"})
    assert compare(as_mesh(ball(0.8)), truth, as_it_is)["chamfer_mean"] == pytest.approx(
        0.2, abs=2e-3
    )


def test_alignment_is_reported_beside_the_raw_numbers():
    made, truth = as_mesh(turned(flag(), -90)), as_mesh(flag())
    raw = compare(made, truth, GEOMETRY)
    assert not any(name.startswith("aligned/") for name in raw)
    options = CompareOptions(alignment="yaw", view_size=32, pictures=False, num_points=4000)
    both = compare(made, truth, options)
    assert {name: both[name] for name in raw} == raw
    assert both["aligned/yaw"] == 90
    assert both["aligned/chamfer_mean"] < 0.03 < 0.1 < both["chamfer_mean"]
    assert both["aligned/volume_iou"] == 1 and both["aligned/silhouette_iou"] == 1
    assert "psnr" not in both and "aligned/psnr" not in both
    assert {n for n in both if not n.startswith(("aligned/", "health/"))} == {
        n.removeprefix("aligned/") for n in both if n.startswith("aligned/")
    } - {"yaw"}


def test_hidden_insides_can_be_left_out():
    furnished, plain = as_mesh(box((2, 2, 2)), ball(0.3)), as_mesh(box((2, 2, 2)))
    options = GEOMETRY.model_copy(update={"only_visible": True})
    everything = compare(furnished, plain, GEOMETRY)
    outside = compare(furnished, plain, options)
    share = 4 * math.pi * 0.09 / (24 + 4 * math.pi * 0.09)
    assert everything["precision/0.2"] == pytest.approx(1 - share, abs=0.01)
    assert outside["precision/0.2"] == 1


def test_open_meshes_have_no_volume_but_all_else():
    options = CompareOptions(view_size=None, num_points=500)
    for made, truth in ((open_box(), box()), (box(), open_box())):
        measured = compare(as_mesh(made), as_mesh(truth), options)
        assert "volume_iou" not in measured and "chamfer_mean" in measured
    assert measured["health/watertight"] == 1  # of the made mesh, not of the truth


def test_colours_tell_in_the_pictures_and_nowhere_else():
    shape = as_mesh(ball())
    grey = replace(shape, vertex_colors=torch.full_like(shape.vertices, 0.5))
    bright = replace(shape, vertex_colors=torch.full_like(shape.vertices, 0.7))
    options = CompareOptions(view_size=64, layout=FRONT, num_points=500, volume_resolution=None)
    measured = compare(grey, bright, options)
    # The difference of 0.2 covers the ball's share of the picture.
    radius = 32 / math.tan(math.radians(15)) / math.sqrt(4.5**2 - 1)
    share = math.pi * radius**2 / 64**2
    assert measured["psnr"] == pytest.approx(-10 * math.log10(0.04 * share), abs=0.1)
    assert measured["silhouette_iou"] == 1 and measured["ssim"] < 0.999


def test_a_missing_library_is_reported_before_the_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    nothing = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    with pytest.raises(InputError, match="torchmetrics"):
        compare(nothing, nothing)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match="torchvision"):
        compare(nothing, nothing, CompareOptions(lpips=True))


def test_geometry_needs_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    options = CompareOptions(pictures=False, view_size=16, num_points=100)
    assert "silhouette_iou" in compare(as_mesh(box()), as_mesh(box()), options)


def test_lpips_without_views_is_refused_instead_of_left_out():
    mesh = as_mesh(ball())
    with pytest.raises(InputError, match=r"LPIPS compares views \(view_size\): give"):
        compare(mesh, mesh, CompareOptions(view_size=None, lpips=True))


def test_an_empty_mesh_is_refused():
    nothing = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int32))
    for made, truth in ((nothing, as_mesh(box())), (as_mesh(box()), nothing)):
        with pytest.raises(InputError, match="no surface"):
            compare(made, truth, GEOMETRY)


@pytest.mark.parametrize("wrong", [{"alignment": "best"}, {"num_points": 0}, {"points": 5}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        CompareOptions(**wrong)
