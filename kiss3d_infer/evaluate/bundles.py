"""How well the views of a bundle agree with one another, and with another bundle's pictures."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.masks import normal_masks, rgb_masks
from kiss3d_infer.bundle.validate import opposite_views

_HIGHEST_PSNR = 100.0  # dB; equal pictures would give infinity


def view_agreement(bundle: Bundle) -> dict[str, float]:
    """Compare the silhouettes that should be alike in a bundle of one object.

    Returns:
        Intersections over unions: `rows_iou` of a view's silhouettes in the RGB and the normal row,
        mean over views; `mirror_iou/<a>-<b>` of the views at opposite azimuths a and b, one
        mirrored. Perspective and elevation keep the latter below 1 for an exact render. Tiles that
        show nothing, or have no white background, agree with no other.
    """
    known = normal_masks(bundle)
    seen, known = _with_background(rgb_masks(bundle, known)), _with_background(known)
    rows = zip(seen, known, strict=True)
    result = {"rows_iou": float(np.mean([_iou(rgb, normal) for rgb, normal in rows]))}
    azimuths = bundle.layout.azimuths
    for a, b in opposite_views(bundle.layout):
        name = f"mirror_iou/{azimuths[a]:g}-{azimuths[b]:g}"
        result[name] = _iou(known[a], known[b][:, ::-1])
    return result


def bundle_psnr(made: Bundle, truth: Bundle) -> dict[str, float]:
    """Compare the pictures of two bundles of one size and layout.

    Returns:
        Peak signal-to-noise ratios in dB, at most 100: `psnr` of the whole picture, `psnr/rgb` and
        `psnr/normal` of a row, and `psnr/rgb/inside` and `psnr/normal/inside` of the pixels alone
        that the truth's normal row shows, absent where it shows nothing.
    """
    inside = torch.from_numpy(normal_masks(truth))
    result = {"psnr": _psnr((made.image - truth.image).square())}
    for name, ours, theirs in (
        ("psnr/rgb", made.rgb, truth.rgb),
        ("psnr/normal", made.normal_colors, truth.normal_colors),
    ):
        squared = (ours - theirs).square().mean(1)  # [V, T, T]
        result[name] = _psnr(squared)
        if inside.any():
            result[f"{name}/inside"] = _psnr(squared[inside])
    return result


def _with_background(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Silhouettes [V, T, T] without those that cover most of their tile's edge: they are none."""
    edges = np.concatenate([masks[:, [0, -1]], masks[:, :, [0, -1]].swapaxes(1, 2)], axis=1)
    return np.asarray(masks & (edges.mean((1, 2)) <= 0.5)[:, None, None])


def _psnr(squared: Tensor) -> float:
    return float((-10 * squared.double().mean().log10()).clamp(max=_HIGHEST_PSNR))


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0
