"""Silhouettes of bundles drawn by hand: what agrees, what does not, and what is no silhouette."""

import pytest
import torch

from kiss3d_infer.bundle import Bundle, BundleLayout
from kiss3d_infer.evaluate import bundle_psnr, view_agreement

TILE = 64
FACING = torch.tensor([0.5, 0.5, 1.0])
"""The colour of a normal that looks at the viewer."""


def bundle(normal_boxes, rgb_boxes=None, background=1.0):
    """Red boxes (left, right) of full height 16..48, one per view, above their normals."""
    image = torch.full((3, 2 * TILE, len(normal_boxes) * TILE), background)
    for row, boxes in enumerate((rgb_boxes or normal_boxes, normal_boxes)):
        color = FACING if row else torch.tensor([0.8, 0.1, 0.1])
        for view, box in enumerate(boxes):
            if box:
                left, right = (view * TILE + x for x in box)
                image[:, row * TILE + 16 : row * TILE + 48, left:right] = color[:, None, None]
    return Bundle(image)


SAME = [(10, 30), (20, 44), (34, 54), (20, 44)]  # the third is the first's mirror image


def test_views_of_one_object_agree_fully():
    measured = view_agreement(bundle(SAME))
    assert measured == {"rows_iou": 1.0, "mirror_iou/0-180": 1.0, "mirror_iou/90-270": 1.0}


def test_the_mirrored_view_is_compared_and_not_the_view_itself():
    shifted = [(10, 30), (20, 44), (10, 30), (20, 44)]
    assert view_agreement(bundle(shifted))["mirror_iou/0-180"] == 0.0
    half = [(10, 30), (20, 44), (44, 54), (20, 44)]  # half of the mirror image
    assert view_agreement(bundle(half))["mirror_iou/0-180"] == 0.5


def test_rows_that_differ_lower_the_mean_over_views():
    rgb = [(20, 30), *SAME[1:]]  # half of the first view's normals
    assert view_agreement(bundle(SAME, rgb))["rows_iou"] == pytest.approx((0.5 + 3) / 4)


@pytest.mark.parametrize("nothing", [bundle([None] * 4), bundle([None] * 4, background=0.5)])
def test_empty_and_backgroundless_tiles_agree_with_no_other(nothing):
    assert set(view_agreement(nothing).values()) == {0.0}


def test_layouts_without_opposite_views_have_no_mirror():
    layout = BundleLayout(azimuths=(0, 120, 240), elevations=(5, 5, 5))
    image = bundle(SAME).image[:, :, : 3 * TILE]
    assert view_agreement(Bundle(image, layout)) == {"rows_iou": 1.0}


def test_psnr_is_by_row_and_by_what_is_inside():
    truth = bundle(SAME)
    assert set(bundle_psnr(truth, truth).values()) == {100.0}
    image = truth.image.clone()
    image[:, :TILE] -= 0.1  # 20 dB everywhere in the RGB row
    measured = bundle_psnr(Bundle(image), truth)
    assert measured["psnr/rgb"] == pytest.approx(20, abs=1e-3)
    assert measured["psnr/rgb/inside"] == pytest.approx(20, abs=1e-3)
    assert measured["psnr/normal"] == 100
    assert measured["psnr"] == pytest.approx(23.01, abs=1e-2)
    outside = truth.image.clone()
    outside[:, TILE:, :8] = 0.5  # background alone
    assert bundle_psnr(Bundle(outside), truth)["psnr/normal/inside"] == 100
    assert bundle_psnr(Bundle(outside), truth)["psnr/normal"] < 30
    assert "psnr/rgb/inside" not in bundle_psnr(truth, bundle([None] * 4))
