import pytest
import torch
from torch import Tensor

from kiss3d_infer.bundle import PUBLISHED, Bundle, silhouettes, validate
from kiss3d_infer.bundle.masks import normal_masks, require_shown, rgb_masks
from kiss3d_infer.errors import InputError


def ball_views(
    tile: int = 64, radius: float = 0.8, shift: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(camera normals, alpha) of an orthographic ball, supersampled, and its grey RGB."""
    fine = tile * 4
    axis = (torch.arange(fine) + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(-axis, axis - shift, indexing="ij")
    z = (radius**2 - x**2 - y**2).clamp(min=0).sqrt()
    inside = (x**2 + y**2 < radius**2).float()
    normals = torch.stack([x, y, z]) / radius * inside
    pool = torch.nn.functional.avg_pool2d
    alpha = pool(inside[None, None], 4)
    mean = torch.nn.functional.normalize(pool(normals[None], 4), dim=1)
    return mean.repeat(4, 1, 1, 1), alpha.repeat(4, 1, 1, 1), torch.full((4, 3, tile, tile), 0.6)


def bundle_of(normals: Tensor, alpha: Tensor, rgb: Tensor) -> Bundle:
    from kiss3d_infer.bundle.normals import to_world

    return Bundle.from_views(rgb, to_world(normals, PUBLISHED), alpha)


def test_soft_silhouettes_are_recovered() -> None:
    normals, alpha, rgb = ball_views()
    recovered = silhouettes(bundle_of(normals, alpha, rgb))
    assert (recovered - alpha).abs().max() < 0.35
    assert (recovered - alpha).abs().mean() < 0.002


def test_white_objects_keep_their_silhouette() -> None:
    normals, alpha, rgb = ball_views()
    recovered = silhouettes(bundle_of(normals, alpha, torch.ones_like(rgb)))
    assert recovered.mean().item() == pytest.approx(alpha.mean().item(), rel=0.01)


def test_a_halo_around_a_dark_object_is_not_part_of_it() -> None:
    normals, alpha, rgb = ball_views(radius=0.2)
    exact = bundle_of(normals, alpha, 0.3 * torch.ones_like(rgb))
    image = exact.image.clone()
    wide = torch.nn.functional.max_pool2d((image[:, :64] < 1).float(), 3, stride=1, padding=1)
    image[:, :64] = image[:, :64].minimum(1 - 0.1 * wide)
    blurred = Bundle(image)
    assert (blurred.image != exact.image).any()
    assert (rgb_masks(blurred) == rgb_masks(exact)).all()
    assert validate(blurred).measurements["silhouette_iou"] > 0.95


def test_a_white_half_beside_a_dark_one_keeps_its_outline() -> None:
    normals, alpha, rgb = ball_views()
    rgb = 0.3 * rgb
    rgb[..., :32] = 0.96
    bundle = bundle_of(normals, alpha, rgb)
    known = normal_masks(bundle)
    assert (rgb_masks(bundle) & known).sum() > 0.99 * known.sum()


def test_specks_without_colour_are_dropped() -> None:
    normals, alpha, rgb = ball_views()
    image = bundle_of(normals, alpha, rgb).image.clone()
    image[:, 64 + 2, 2] = torch.tensor([0.5, 0.5, 1.0])
    assert silhouettes(Bundle(image))[0, 0, :4, :4].max() == 0


def test_exact_bundle_is_valid() -> None:
    report = validate(bundle_of(*ball_views()))
    assert report.ok, report.problems
    assert report.measurements["unit_normal_error"] < 0.01
    assert report.measurements["silhouette_iou"] > 0.95
    assert report.measurements["mirror_iou"] > 0.99
    assert report.measurements["hull_coverage"] > 0.97


def test_all_white_bundle_is_empty() -> None:
    report = validate(Bundle(torch.ones(3, 128, 256)))
    assert report.measurements["empty_tiles"] == 4
    assert any("empty" in problem for problem in report.problems)


def test_a_bundle_shows_something_if_one_white_object_does_but_not_if_only_dirt_does() -> None:
    normals, alpha, rgb = ball_views()
    alpha[1:] = 0
    require_shown(bundle_of(normals, alpha, torch.ones_like(rgb)))
    dirty = torch.ones(3, 256, 512)
    for row in (140, 150, 160):
        dirty[:, row : row + 2, 60:62] = 0.5
    with pytest.raises(InputError, match=r"every view is white \(dirt.png\): wash it"):
        require_shown(Bundle(dirty), where="dirt.png", fix="wash it")


def test_noise_is_refused() -> None:
    noise = torch.rand(3, 128, 256, generator=torch.Generator().manual_seed(0))
    assert not validate(Bundle(noise)).ok


def test_object_cut_off_at_a_tile_edge_is_named_by_view() -> None:
    report = validate(bundle_of(*ball_views(shift=0.5)))
    assert report.measurements["clipped_tiles"] == 4
    assert any("cut off" in problem for problem in report.problems)


def test_rows_that_disagree_are_refused() -> None:
    normals, alpha, rgb = ball_views()
    image = bundle_of(normals, alpha, rgb).image.clone()
    image[:, :64, :64] = bundle_of(*ball_views(radius=0.4)).image[:, :64, :64]
    report = validate(Bundle(image))
    assert report.measurements["silhouette_iou"] < 0.5
    assert any("silhouettes differ" in problem for problem in report.problems)


def test_opposite_views_that_disagree_are_refused() -> None:
    image = bundle_of(*ball_views()).image.clone()
    image[:, :, 128:192] = bundle_of(*ball_views(radius=0.4)).image[:, :, 128:192]
    assert any("opposite views" in problem for problem in validate(Bundle(image)).problems)


def test_silhouettes_that_no_object_casts_are_refused() -> None:
    """Tall seen from the front and back, flat seen from the sides."""
    image = bundle_of(*ball_views()).image.clone()
    flat = bundle_of(*ball_views(radius=0.3)).image
    for view in (1, 3):
        image[:, :, 64 * view : 64 * (view + 1)] = flat[:, :, 64 * view : 64 * (view + 1)]
    report = validate(Bundle(image))
    assert report.measurements["mirror_iou"] > 0.95
    assert report.measurements["hull_coverage"] < 0.7
    assert any("no one object" in problem for problem in report.problems)


def test_white_parts_do_not_count_as_missing() -> None:
    normals, alpha, rgb = ball_views()
    rgb[:, :, 20:40, 20:40] = 1.0
    assert validate(bundle_of(normals, alpha, rgb)).measurements["silhouette_iou"] > 0.95


def test_inverted_normals_are_refused() -> None:
    normals, alpha, rgb = ball_views()
    report = validate(bundle_of(-normals, alpha, rgb))
    assert report.measurements["backfacing_share"] > 0.9
    assert not report.ok
