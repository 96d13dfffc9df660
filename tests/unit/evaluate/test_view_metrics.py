"""Silhouettes, normals and pictures of meshes seen from the same cameras."""

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from known_shapes import as_mesh, ball, box, turned
from torch import Tensor

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate.images import drawn_alike, picture_metrics, view_metrics
from kiss3d_infer.scene.render import ALBEDO, STUDIO, Views, render_views

LEVEL = BundleLayout(azimuths=(0.0, 90.0), elevations=(0.0, 0.0))


def views(alpha: Tensor, normal: tuple[float, float, float] = (0, 0, 1)) -> Views:
    """Views with the coverage [V, H, W] and one normal everywhere."""
    alpha = alpha.float().unsqueeze(1)
    normals = torch.tensor(normal, dtype=torch.float32).reshape(1, 3, 1, 1) * (alpha > 0)
    return Views(alpha.expand(-1, 3, -1, -1), normals, alpha, alpha)


def strip(first: int, last: int) -> Tensor:
    """One view of 4 x 8 pixels, covered in some columns."""
    alpha = torch.zeros(1, 4, 8)
    alpha[..., first:last] = 1
    return alpha


def test_silhouettes_that_overlap_by_half_share_a_third():
    measured = view_metrics(views(strip(0, 4)), views(strip(2, 6)))
    assert measured["silhouette_iou"] == measured["silhouette_iou/0"] == pytest.approx(1 / 3)


def test_normals_count_by_their_angle_where_both_are_covered():
    tilt = math.radians(30)
    tilted = views(strip(2, 6), (0, math.sin(tilt), math.cos(tilt)))
    measured = view_metrics(views(strip(0, 4)), tilted)
    assert measured["normal_error"] == pytest.approx(30, abs=1e-3)


def test_each_view_counts_once_and_what_is_nowhere_seen_is_no_error():
    made = views(torch.cat([strip(0, 4), strip(0, 2), strip(0, 0)]))
    truth = views(torch.cat([strip(0, 4), strip(4, 8), strip(0, 0)]))
    measured = view_metrics(made, truth)
    assert [measured[f"silhouette_iou/{v}"] for v in range(3)] == [1, 0, 1]
    assert [measured[f"normal_error/{v}"] for v in range(3)] == [0, 180, 0]
    assert measured["silhouette_iou"] == pytest.approx(2 / 3)
    assert measured["normal_error"] == pytest.approx(60)


def test_half_covered_pixels_are_outside():
    measured = view_metrics(views(strip(0, 4) * 0.5), views(strip(0, 4)))
    assert measured["silhouette_iou"] == 0


def test_the_same_mesh_looks_the_same():
    mesh = as_mesh(box((2, 1, 1)))
    measured = view_metrics(*drawn_alike(mesh, mesh, PUBLISHED, 32))
    assert len(measured) == 10
    assert measured["silhouette_iou"] == 1
    assert measured["normal_error"] == pytest.approx(0, abs=1e-3)


def test_a_smaller_ball_has_a_smaller_outline():
    """A ball of radius r at distance d has an outline of radius f r / sqrt(d^2 - r^2)."""
    measured = view_metrics(*drawn_alike(as_mesh(ball(0.5)), as_mesh(ball()), LEVEL, 128))
    expected = 0.25 * (4.5**2 - 1) / (4.5**2 - 0.25)
    assert measured["silhouette_iou"] == pytest.approx(expected, abs=0.01)


def test_a_turned_wall_is_off_by_its_turn():
    wall = box((1, 1, 0.02))
    front = BundleLayout(azimuths=(0.0,), elevations=(0.0,))
    measured = view_metrics(*drawn_alike(as_mesh(wall), as_mesh(turned(wall, 12)), front, 64))
    assert measured["normal_error"] == pytest.approx(12, abs=0.5)


def test_boxes_that_perspective_enlarges_beyond_the_frame_are_drawn_whole():
    cube = as_mesh(box((2, 2, 2)))
    first, second = drawn_alike(cube, as_mesh(ball()), LEVEL, 64)
    assert first.alpha[..., 0, :].sum() == 0 and first.alpha[..., :, 0].sum() == 0
    assert second.alpha[..., 0, :].sum() == 0


def test_what_stands_elsewhere_stays_elsewhere():
    measured = view_metrics(
        *drawn_alike(as_mesh(ball()), as_mesh(ball(center=(5, 0, 0))), LEVEL, 64)
    )
    assert measured["silhouette_iou/0"] == 0 and measured["normal_error/0"] == 180
    assert measured["silhouette_iou/1"] > 0.4  # one behind the other


def test_baked_light_is_compared_with_the_lit_truth():
    mesh = as_mesh(ball())
    first, second = drawn_alike(mesh, mesh, LEVEL, 32, baked_light=True)
    for shown, lighting in ((first, ALBEDO), (second, STUDIO)):
        expected = render_views(mesh.normalized(), LEVEL.cameras, 32, lighting=lighting)
        torch.testing.assert_close(shown.rgb, expected.rgb, atol=0.02, rtol=0)
    assert (first.rgb - second.rgb).abs().max() > 0.1


def test_psnr_of_a_known_difference():
    picture = torch.full((2, 3, 32, 32), 0.5)
    assert picture_metrics(picture + 0.1, picture)["psnr"] == pytest.approx(20, abs=1e-3)
    assert picture_metrics(picture + 0.01, picture)["psnr"] == pytest.approx(40, abs=1e-2)


def test_psnr_and_ssim_of_known_noise():
    random = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(1, 3, 128, 128, generator=random)
    measured = picture_metrics(0.5 + noise, torch.full_like(noise, 0.5))
    assert measured["psnr"] == pytest.approx(-20 * math.log10(0.05), abs=0.1)
    # A flat truth has no variance, so only the noise's stays in: C2 / (0.05^2 + C2), C2 = 0.03^2.
    # The window's own mean takes some of the noise away.
    assert measured["ssim"] == pytest.approx(0.0009 / (0.0025 + 0.0009), abs=0.03)


def test_psnr_is_a_mean_over_views_and_ends_at_100():
    truth = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 0.5
    made = truth.clone()
    assert picture_metrics(made, truth) == {"psnr": 100, "ssim": pytest.approx(1)}
    made[1] += 0.1
    assert picture_metrics(made, truth)["psnr"] == pytest.approx((100 + 20) / 2, abs=1e-3)


def test_a_missing_torchmetrics_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    picture = torch.zeros(1, 3, 32, 32)
    with pytest.raises(InputError, match=r"\[eval\]"):
        picture_metrics(picture, picture)


def test_a_torchvision_for_another_torch_is_explained(monkeypatch):
    def broken(_name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("kiss3d_infer.evaluate.images.importlib.import_module", broken)
    picture = torch.zeros(1, 3, 32, 32)
    with pytest.raises(InputError, match=r"torchvision does not work here .*nms.*uninstall it"):
        picture_metrics(picture, picture)


def test_lpips_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    picture = torch.zeros(1, 3, 64, 64)
    with pytest.raises(InputError, match="torchvision"):
        picture_metrics(picture, picture, lpips=True)
    with pytest.raises(InputError, match="at least 32 pixels, not 16"):
        picture_metrics(picture[..., :16], picture[..., :16], lpips=True)


@pytest.fixture
def alexnet_weights(tmp_path, monkeypatch):
    """Where AlexNet's weights belong; torchvision and the distance itself are stand-ins."""

    def distance(*_args: object, **_options: object) -> Tensor:
        torch.load(path, weights_only=False)  # as torchvision does
        return torch.tensor(0.25)

    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setattr(
        "torchmetrics.functional.image.learned_perceptual_image_patch_similarity", distance
    )
    return path


def test_lpips_uses_weights_that_are_there_and_downloads_none(alexnet_weights):
    picture = torch.zeros(1, 3, 64, 64)
    with pytest.raises(InputError, match=r"alexnet-owt-7be5be79.pth\): download https:"):
        picture_metrics(picture, picture, lpips=True)
    torch.save({"features.0.weight": torch.ones(2)}, alexnet_weights)
    assert picture_metrics(picture, picture, lpips=True)["lpips"] == 0.25


class Hostile:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_weights_that_are_more_than_tensors_are_never_unpickled(alexnet_weights, tmp_path):
    picture = torch.zeros(1, 3, 64, 64)
    torch.save({"a": Hostile(tmp_path / "mark")}, alexnet_weights)
    with pytest.raises(InputError, match="not AlexNet's weights"):
        picture_metrics(picture, picture, lpips=True)
    assert not (tmp_path / "mark").exists()
    for damaged in (b"", b"noise", b"PK"):
        alexnet_weights.write_bytes(damaged)
        with pytest.raises(InputError, match="not AlexNet's weights"):
            picture_metrics(picture, picture, lpips=True)
