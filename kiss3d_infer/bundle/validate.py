"""Is a bundle, above all a generated one, fit to be reconstructed, and if not, what is wrong?"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from kiss3d_infer.bundle import masks as silhouette
from kiss3d_infer.bundle.diagnose import Figure, normal_quality, other_convention
from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout

Mask = NDArray[np.bool_]

_HULL_PIXELS, _HULL_VOXELS = 64, 72
_WHITE, _DRAWN = 0.1, 0.25
# Limits that exact renders keep well inside.
_MIN_COVERAGE = 0.002
_MIN_BACKGROUND = 0.5
_MAX_UNIT_ERROR = 0.10
_MAX_BACKFACING = 0.05
_MIN_IOU = 0.85
_MIN_MIRROR_IOU = 0.50
_MIN_HULL_COVERAGE, _FULL_HULL_COVERAGE = 0.90, 0.98


@dataclass(frozen=True)
class BundleReport:
    """What was measured, and what is wrong.

    Attributes:
        measurements: named figures, shares in [0, 1] unless stated:
            background: lowest share over all tiles of a tile's outermost pixels that are white;
            unit_normal_error: mean | |n| - 1 | of the decoded normals inside the silhouettes;
            backfacing_share: share of inside pixels whose normal points away from the viewer;
            other_convention: by how much the best other convention of normals outscores the
                published one, below 0 if it does not (absent where they are not unit vectors);
            silhouette_iou/<view>: IoU of a view's silhouettes in the RGB row and the normal row;
            silhouette_iou: the lowest of these;
            mirror_iou: lowest IoU over opposite views, one mirrored (absent without such pairs;
                perspective and elevation keep exact renders below 1);
            hull_coverage: lowest share over the views that are not empty of a silhouette that the
                visual hull of them all still covers; 1 for one object, whatever its shape;
            clipped_tiles, empty_tiles: counts of views that are so in either row.
        problems: a sentence for each thing that is wrong, with the views it belongs to. What a
            broken tile does to the comparison with other views is not told as well.
    """

    measurements: dict[str, float]
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def validate(bundle: Bundle) -> BundleReport:
    """Measure a bundle's inner consistency and say what is wrong with it."""
    normal_masks = silhouette.normal_masks(bundle)
    masks = np.stack([silhouette.rgb_masks(bundle, normal_masks), normal_masks])
    borders = _borders(bundle)
    background = (borders < _WHITE).mean(-1)
    coloured = background < _MIN_BACKGROUND
    clipped = np.asarray((borders > _DRAWN).any(-1))
    tiles = _check_tiles(bundle.layout, masks, coloured, clipped)
    views = _check_views(bundle.layout, masks[1])
    normals = _check_normals(bundle, masks[1])
    measured = {"background": float(background.min())}
    measured |= tiles.measurements | views.measurements | normals.measurements
    problems = _no_bundle(coloured, measured["unit_normal_error"])
    if not problems:
        problems = tiles.problems + (() if tiles.problems else views.problems) + normals.problems
    return BundleReport(measured, problems)


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


def _borders(bundle: Bundle) -> NDArray[np.float32]:
    """How far each tile's outermost pixels are from white: [2, V, 4 T], RGB row first."""
    rows = torch.stack([bundle.rgb, bundle.normal_colors])
    edges = (rows[..., 0, :], rows[..., -1, :], rows[..., 0], rows[..., -1])
    colors = torch.cat(edges, dim=-1)  # [2, V, 3, 4 T]
    return np.asarray((1 - colors).square().sum(2).sqrt())


def _no_bundle(coloured: Mask, unit_error: float) -> tuple[str, ...]:
    """What is wrong if most tiles [2, V] have no white background, and nothing else matters."""
    if 2 * coloured.sum() <= coloured.size:
        return ()
    problem = f"the background is not white in {coloured.sum()} of {coloured.size} tiles"
    if unit_error <= _MAX_UNIT_ERROR:
        return (f"{problem}, or the object is larger than its tiles",)
    value = _measured("unit_normal_error", unit_error, "above", _MAX_UNIT_ERROR)
    return (f"this is no bundle: {problem}, and the normals are not unit vectors {value}",)


def _check_tiles(layout: BundleLayout, masks: Mask, coloured: Mask, clipped: Mask) -> BundleReport:
    """Is every tile [2, V] drawn, whole, and of the same outline in both rows?"""
    empty = masks.mean((2, 3)) < _MIN_COVERAGE
    ious = np.array([_iou(rgb, normal) for rgb, normal in zip(*masks, strict=True)])
    problems = [
        f"{sentence} {place}"
        for sentence, tiles in (
            ("the background is not white in", coloured),
            ("the tile is empty in", empty),
            ("the object is cut off at the edge of", clipped & ~coloured),
        )
        for place in _places(layout, tiles)
    ]
    differing = (ious < _MIN_IOU) & ~(empty | coloured).any(0)
    if differing.any():
        value = _measured("silhouette_iou", ious[differing].min(), "below", _MIN_IOU)
        problems.append(f"RGB and normal silhouettes differ in {_views(layout, differing)} {value}")
    measured = {f"silhouette_iou/{view}": float(iou) for view, iou in enumerate(ious)}
    measured["silhouette_iou"] = float(ious.min())
    measured["clipped_tiles"] = float(clipped.any(0).sum())
    measured["empty_tiles"] = float(empty.any(0).sum())
    return BundleReport(measured, tuple(problems))


def _check_normals(bundle: Bundle, masks: Mask) -> BundleReport:
    """Are the normals in the silhouettes [V, T, T] unit, and which way do they point?"""
    error, backfacing = normal_quality(bundle, masks)
    measured = {"unit_normal_error": error.mean, "backfacing_share": backfacing.mean}
    if not masks.any():
        return BundleReport(measured)
    place = _where_above(_MAX_UNIT_ERROR, "unit_normal_error", error, bundle.layout)
    if place:
        return BundleReport(measured, (f"normals are not unit vectors {place}",))
    lead = other_convention(bundle, masks)
    measured["other_convention"] = lead.score
    if lead.convention:
        name, remedy = lead.convention.name, lead.convention.remedy
        problem = f"the normals follow another convention: {name} ({remedy})"
        return BundleReport(measured, (problem,))
    place = _where_above(_MAX_BACKFACING, "backfacing_share", backfacing, bundle.layout)
    problems = (f"normals point away from the viewer {place}",) if place else ()
    return BundleReport(measured, problems)


def _check_views(layout: BundleLayout, masks: Mask) -> BundleReport:
    """Do the silhouettes [V, T, T] belong to one object?"""
    shown = masks.mean((1, 2)) >= _MIN_COVERAGE
    coverage = _hull_coverage(masks, shown, layout)
    measured, problems = {"hull_coverage": float(coverage.min()) if shown.any() else 0.0}, []
    pairs = [(a, b) for a, b in opposite_views(layout) if shown[a] and shown[b]]
    ious = np.array([_iou(masks[a], masks[b][:, ::-1]) for a, b in pairs])
    if pairs:
        measured["mirror_iou"] = float(ious.min())
    bad = np.zeros_like(shown)
    for pair, iou in zip(pairs, ious, strict=True):
        # Perspective sets apart the silhouettes of an exact object that reaches toward the viewers,
        # but never what their common hull covers.
        is_explained = coverage[list(pair)].min() > _FULL_HULL_COVERAGE
        bad[list(pair)] |= iou < _MIN_MIRROR_IOU and not is_explained
    if bad.any():
        value = _measured("mirror_iou", ious.min(), "below", _MIN_MIRROR_IOU)
        problems.append(f"opposite views show different silhouettes: {_views(layout, bad)} {value}")
    bad = shown & (coverage < _MIN_HULL_COVERAGE)
    if bad.any():
        value = _measured("hull_coverage", coverage[bad].min(), "below", _MIN_HULL_COVERAGE)
        problems.append(
            f"no one object has these silhouettes: the others leave part of {_views(layout, bad)} "
            f"uncovered {value}"
        )
    return BundleReport(measured, tuple(problems))


def _hull_coverage(masks: Mask, shown: Mask, layout: BundleLayout) -> NDArray[np.float64]:
    """Carve a coarse grid by the silhouettes shown and look how much of each is left: [V].

    Silhouettes are widened by about a voxel first, so that thin parts survive the coarse grid.
    """
    fine = torch.from_numpy(masks[:, None]).float()
    coarse = interpolate(fine, size=_HULL_PIXELS, mode="area")[:, 0]
    wide = max_pool2d((coarse > 0).float(), 3, stride=1, padding=1).bool()
    pixels = _voxel_pixels(layout)
    is_left = torch.ones(pixels.shape[1], dtype=torch.bool)
    for view in np.flatnonzero(shown):
        is_left &= wide[view].flatten().index_select(0, pixels[view])
    pixels = pixels[:, is_left]
    coverage = np.ones(len(masks))
    for view in np.flatnonzero(shown):
        covered = torch.zeros_like(wide[view])
        covered.view(-1)[pixels[view]] = True
        solid = coarse[view] > 0.5
        if solid.any():
            coverage[view] = (covered & solid).sum() / solid.sum()
    return coverage


@lru_cache(maxsize=2)
def _voxel_pixels(layout: BundleLayout) -> Tensor:
    """Where each voxel of the coarse grid lies in each coarse silhouette: flat indices [V, N]."""
    axis = torch.linspace(-1.1, 1.1, _HULL_VOXELS)
    voxels = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    clip = layout.cameras.clip(voxels)  # [V, N, 4]
    place = (clip[..., :2] / clip[..., 3:] * torch.tensor([1, -1]) + 1) * _HULL_PIXELS / 2
    columns, rows = place.long().clamp(0, _HULL_PIXELS - 1).unbind(-1)
    return (rows * _HULL_PIXELS + columns).int()


def _iou(a: Mask, b: Mask) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


def _where_above(limit: float, name: str, figure: Figure, layout: BundleLayout) -> str | None:
    """The views to blame for a mean above its limit, or those twice above it by themselves."""
    wrong = figure.views > (limit if figure.mean > limit else 2 * limit)
    if not wrong.any() and figure.mean <= limit:
        return None
    wrong = wrong if wrong.any() else np.ones_like(wrong)
    value = _measured(name, max(figure.mean, figure.views.max()), "above", limit)
    return f"in {_views(layout, wrong)} {value}"


def _measured(name: str, value: float, relation: str, limit: float) -> str:
    return f"({name} {value:.3f}, {relation} {limit})"


def _places(layout: BundleLayout, tiles: Mask) -> list[str]:
    """Names for the tiles marked in [2, V]: views of which both are, then those of one row."""
    both = np.asarray(tiles.all(0))
    rows = (
        ("", both),
        ("the RGB row of ", tiles[0] & ~both),
        ("the normal row of ", tiles[1] & ~both),
    )
    return [f"{row}{_views(layout, marked)}" for row, marked in rows if marked.any()]


def _views(layout: BundleLayout, marked: Mask) -> str:
    """Names for the views marked in [V]."""
    if marked.all() and len(marked) > 1:
        return "every view"
    names = [f"view {v} (azimuth {layout.azimuths[v]:g})" for v in np.flatnonzero(marked)]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
