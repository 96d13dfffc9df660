"""Is a bundle, above all a generated one, fit to be reconstructed?"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from kiss3d_infer.bundle import masks as silhouette
from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout

Mask = NDArray[np.bool_]

_HULL_PIXELS, _HULL_VOXELS = 64, 72
_MIN_COVERAGE = 0.002
# Measurement, its limit, 1 = at most or -1 = at least, and the problem. Exact renders keep inside.
_CHECKS = (
    ("unit_normal_error", 0.10, 1, "normals are not unit vectors"),
    ("backfacing_share", 0.05, 1, "normals point away from the viewer"),
    ("silhouette_iou", 0.85, -1, "RGB and normal silhouettes differ"),
    ("mirror_iou", 0.50, -1, "opposite views show different silhouettes"),
    ("hull_coverage", 0.90, -1, "no one object has these silhouettes"),
)


@dataclass(frozen=True)
class BundleReport:
    """What was measured, and what is wrong.

    Attributes:
        measurements: named figures, shares in [0, 1]:
            unit_normal_error: mean | |n| - 1 | of the decoded normals inside the silhouettes;
            backfacing_share: share of inside pixels whose normal points away from the viewer;
            silhouette_iou: lowest IoU over the views of the RGB row's and normal row's silhouettes;
            mirror_iou: lowest IoU over opposite views, one mirrored (absent without such pairs;
                perspective and elevation keep exact renders below 1);
            hull_coverage: lowest share over the views of a silhouette that the visual hull of all
                views still covers; 1 for views of one object, whatever its shape;
            clipped_tiles, empty_tiles: counts over views and both rows together.
        problems: one sentence per broken limit.
    """

    measurements: dict[str, float]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no limit is broken."""
        return not self.problems


def validate(bundle: Bundle) -> BundleReport:
    """Measure a bundle's inner consistency and compare it with the limits."""
    normal, rgb = silhouette.normal_masks(bundle), silhouette.rgb_masks(bundle)
    empty = [v for v in range(len(normal)) if min(normal[v].mean(), rgb[v].mean()) < _MIN_COVERAGE]
    clipped = [v for v in range(len(normal)) if _touches_border(normal[v] | rgb[v])]
    found = _normal_quality(bundle, normal) | {
        "silhouette_iou": min(_iou(n, r) for n, r in zip(normal, rgb, strict=True)),
        "hull_coverage": _hull_coverage(normal, bundle.layout),
        "clipped_tiles": float(len(clipped)),
        "empty_tiles": float(len(empty)),
    }
    pairs = opposite_views(bundle.layout)
    if pairs:
        found["mirror_iou"] = min(_iou(normal[a], normal[b][:, ::-1]) for a, b in pairs)
    return BundleReport(found, tuple(_problems(found, empty, clipped)))


def opposite_views(layout: BundleLayout) -> list[tuple[int, int]]:
    """Index pairs of views 180 degrees apart at equal elevation near the horizon."""
    views = list(enumerate(zip(layout.azimuths, layout.elevations, strict=True)))
    return [
        (a, b)
        for a, (azimuth_a, elevation_a) in views
        for b, (azimuth_b, elevation_b) in views[a + 1 :]
        if abs((azimuth_b - azimuth_a) % 360 - 180) < 1e-3
        and abs(elevation_a - elevation_b) < 1e-3
        and abs(elevation_a) <= 10
    ]


def _normal_quality(bundle: Bundle, masks: Mask) -> dict[str, float]:
    raw = normal_code.decode_raw(bundle.normal_colors).permute(0, 2, 3, 1).numpy()
    inside = np.stack([ndimage.binary_erosion(m, np.ones((3, 3)), iterations=2) for m in masks])
    vectors = raw[inside if inside.any() else masks]
    if not len(vectors):
        return {"unit_normal_error": 1.0, "backfacing_share": 0.0}
    lengths = np.linalg.norm(vectors, axis=-1)
    return {
        "unit_normal_error": float(np.abs(lengths - 1).mean()),
        "backfacing_share": float((vectors[:, 2] < -0.1).mean()),
    }


def _hull_coverage(masks: Mask, layout: BundleLayout) -> float:
    """Carve a coarse grid by all silhouettes and look how much of each is left.

    Silhouettes are widened by about a voxel first, so that thin parts survive the coarse grid.
    """
    coarse = torch.nn.functional.interpolate(
        torch.from_numpy(masks[:, None]).float(), size=_HULL_PIXELS, mode="area"
    )
    wide = torch.nn.functional.max_pool2d((coarse > 0).float(), 3, stride=1, padding=1)[:, 0] > 0
    axis = torch.linspace(-1.1, 1.1, _HULL_VOXELS)
    voxels = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    clip = layout.cameras.clip(voxels)
    place = (clip[..., :2] / clip[..., 3:] * torch.tensor([1, -1]) + 1) * _HULL_PIXELS / 2
    columns, rows = place.long().clamp(0, _HULL_PIXELS - 1).unbind(-1)
    views = torch.arange(len(wide))[:, None]
    kept = wide[views, rows, columns].all(0)
    covered = torch.zeros_like(wide)
    covered[views.expand(-1, int(kept.sum())), rows[:, kept], columns[:, kept]] = True
    solid = coarse[:, 0] > 0.5
    shares = (covered & solid).sum((1, 2)) / solid.sum((1, 2)).clamp(min=1)
    return float(shares.min())


def _iou(a: Mask, b: Mask) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def _touches_border(mask: Mask) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _problems(found: dict[str, float], empty: list[int], clipped: list[int]) -> list[str]:
    problems = []
    if empty:
        problems.append(f"views {empty} are empty")
    if clipped:
        problems.append(f"the object is cut off at the edge of views {clipped}")
    for name, limit, sign, sentence in _CHECKS:
        if name in found and sign * (found[name] - limit) > 0:
            relation = "above" if sign > 0 else "below"
            problems.append(f"{sentence} ({name} {found[name]:.3f}, {relation} {limit})")
    return problems
