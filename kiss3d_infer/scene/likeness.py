"""How alike two objects look from the same cameras: silhouettes and normals."""

from collections.abc import Sequence

import torch
from torch import Tensor

_WORST_ANGLE = 180.0


def likeness(
    made: Tensor,
    truth: Tensor,
    made_normals: Tensor,
    true_normals: Tensor,
    views: Sequence[int] | None = None,
) -> dict[str, float]:
    """Compare what V cameras see of two objects.

    Args:
        made: [V, H, W] bool, where the first object covers a pixel.
        truth: [V, H, W] bool, where the second does.
        made_normals: [V, H, W, 3] of any length, in the frame of the others.
        true_normals: [V, H, W, 3].
        views: the numbers by which the views are named; None counts from 0.

    Returns:
        `silhouette_iou`: intersection over union of the coverage; `normal_error`: mean angle in
        degrees where both cover, 180 if they nowhere do. Each is a mean over views, and comes by
        view as `silhouette_iou/<view>` and `normal_error/<view>`. A view in which neither shows
        counts as perfect.
    """
    both, either = made & truth, (made | truth).sum((1, 2))
    shared = both.sum((1, 2))
    ious = torch.where(either > 0, shared / either.clamp(min=1), 1.0)
    angles = _degrees_between(made_normals, true_normals) * both
    errors = torch.where(shared > 0, angles.sum((1, 2)) / shared.clamp(min=1), _WORST_ANGLE)
    errors = torch.where(either > 0, errors, 0.0)
    result = {"silhouette_iou": float(ious.mean()), "normal_error": float(errors.mean())}
    views = range(len(made)) if views is None else views
    result |= by_view("silhouette_iou", ious, views)
    return result | by_view("normal_error", errors, views)


def by_view(name: str, values: Tensor, views: Sequence[int]) -> dict[str, float]:
    """One figure of each view [V], as `<name>/<view>`."""
    return {f"{name}/{view}": value for view, value in zip(views, values.tolist(), strict=True)}


def _degrees_between(first: Tensor, second: Tensor) -> Tensor:
    """Angles between vectors [..., 3] of any length, accurate near 0: [...]."""
    sine = torch.linalg.cross(first, second, dim=-1).norm(dim=-1)
    return torch.atan2(sine, (first * second).sum(-1)).rad2deg()
