"""Silhouettes of a bundle's views, from its white background."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.raster.threads import for_each_view

# A unit normal's colour is at least (sqrt(3) - 1) / 2 = 0.366 from white; half of it separates the
# object from the background where an edge pixel mixes both.
_NORMAL_THRESHOLD = 0.183
_RGB_THRESHOLDS = (0.012, 0.06)
_LEAST_EDGE = 0.2
"""Share of the colour beside it that an edge pixel of the RGB row has at least. The normal row's
threshold comes to the same; less is the halo that an autoencoder leaves around dark objects."""
_EDGE_PIXELS = 2
_NOISE_FLOOR = 0.04
_SPECK_SHARE = 5e-4
_LEAST_COVERAGE = 5e-4
"""Share of a tile up to which a view counts as empty."""
_SQUARE = np.ones((3, 3), dtype=bool)
_ANOTHER_BUNDLE = "give a bundle that shows an object"


def silhouettes(bundle: Bundle) -> Tensor:
    """Coverage [V, 1, T, T] in [0, 1] of each view, soft at the edges.

    The normal row decides, because white surfaces vanish in the RGB row but no unit normal encodes
    to white; the RGB row confirms: specks of the normal row that it does not know are dropped.
    """
    known = rgb_masks(bundle)

    def silhouette(v: int) -> NDArray[np.float32]:
        alpha = _unmixed_alpha(bundle.normal_colors[v].permute(1, 2, 0).numpy())
        alpha[_unconfirmed_specks(alpha > 0.5, known[v])] = 0
        return alpha

    masks = for_each_view(silhouette, len(bundle.normal_colors))
    return torch.from_numpy(np.stack(masks)[:, None].astype(np.float32))


def normal_masks(bundle: Bundle) -> NDArray[np.bool_]:
    """Binary silhouettes [V, T, T] of the normal row alone."""
    distance = (1 - bundle.normal_colors).square().sum(1).sqrt()  # far faster than norm(dim=)
    return np.asarray(distance > _NORMAL_THRESHOLD)


def require_shown(bundle: Bundle, *, where: object = None, fix: str = _ANOTHER_BUNDLE) -> None:
    """Refuse a bundle in which no view shows anything: see `shown_views`."""
    shown_views(silhouettes(bundle), where=where, fix=fix)


def shown_views(alpha: Tensor, *, where: object = None, fix: str = _ANOTHER_BUNDLE) -> list[int]:
    """The views that show something.

    Args:
        alpha: [V, 1, T, T] coverage as from `silhouettes`.
        where: the file or field that the bundle comes from, for the error.
        fix: what to do about an empty bundle, for the error.

    Raises:
        InputError: there is none.
    """
    shown = [view for view, coverage in enumerate(alpha) if coverage.mean() > _LEAST_COVERAGE]
    if not shown:
        raise InputError("the bundle is empty: every view is white", where=where, fix=fix)
    return shown


def rgb_masks(bundle: Bundle, known: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Binary silhouettes [V, T, T] of the RGB row.

    Enclosed white regions count as inside where the normal row has a surface, too.

    Args:
        bundle: of V views.
        known: its `normal_masks`, if they are at hand.
    """
    known = normal_masks(bundle) if known is None else known
    return np.stack(for_each_view(lambda v: _rgb_mask(bundle.rgb[v], known[v]), len(known)))


def _rgb_mask(rgb: Tensor, normal_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    distance = (1 - rgb).square().sum(0).sqrt().numpy()
    # A lit white surface is barely darker than the background, so the threshold goes as low as the
    # background's own noise lets it.
    background = ~ndimage.binary_dilation(normal_mask, iterations=3)
    noise = float(np.quantile(distance[background], 0.99)) if background.any() else 0.0
    mask = distance > np.clip(1.5 * noise, *_RGB_THRESHOLDS)
    inside = ndimage.binary_erosion(mask, _SQUARE, iterations=_EDGE_PIXELS, border_value=1)
    nearby = ndimage.maximum_filter(distance, 2 * _EDGE_PIXELS + 1)
    mask &= inside | (distance >= _LEAST_EDGE * nearby)
    return np.asarray(mask | (ndimage.binary_fill_holes(mask) & normal_mask))


def _unmixed_alpha(colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coverage of each pixel of a normal map [T, T, 3] composited on white.

    An edge pixel is alpha * colour + (1 - alpha) * white; projecting its distance from white on
    that of the nearby interior colours solves for alpha.
    """
    from_white = 1 - colors
    distance = np.linalg.norm(from_white, axis=-1)
    touched = distance > _NOISE_FLOOR
    interior = ndimage.binary_erosion(touched, _SQUARE, border_value=1)
    weights = ndimage.uniform_filter(interior.astype(np.float32), 5)
    nearby = (
        np.stack(
            [ndimage.uniform_filter(from_white[..., c] * interior, 5) for c in range(3)], axis=-1
        )
        / np.maximum(weights, 1e-6)[..., None]
    )
    projected = (from_white * nearby).sum(-1) / np.maximum((nearby**2).sum(-1), 1e-6)
    # Parts too thin to have an interior (a wire) are judged by their distance alone.
    thin = distance / (2 * _NORMAL_THRESHOLD)
    edge = np.where(weights > 1e-3, projected, thin)
    alpha = np.where(interior & (distance > _NORMAL_THRESHOLD), 1.0, edge * touched)
    return np.asarray(np.clip(alpha, 0, 1), dtype=np.float32)


def _unconfirmed_specks(mask: NDArray[np.bool_], rgb_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask, _SQUARE)
    if count == 0:
        return mask
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    confirmed = np.bincount(labels.ravel(), rgb_mask.ravel(), minlength=count + 1) > 0
    drop = (areas < _SPECK_SHARE * mask.size) & ~confirmed
    drop[0] = False
    return np.asarray(ndimage.grey_dilation(drop[labels].astype(np.uint8), 3) > 0)
