"""The class of the exact bundle whose silhouettes and colour are nearest; nothing is trained."""

import torch
from torch import Tensor
from torch.nn import functional

_SIDE = 16
_SHOWN = 0.183
"""Distance from white in the normal row that tells the object: see `kiss3d_infer.bundle.masks`."""
_COLOR_WEIGHT = 4.0
"""A colour that is wrong by all of its range counts as that many cells of the silhouettes."""


def descriptors(views: Tensor) -> Tensor:
    """Silhouettes on a coarse grid and the mean colour [N, D] of views [N, V, 6, T, T].

    Args:
        views: as from `classifier.views_of`, white being 0.
    """
    colors, normals = views.split(3, dim=2)
    shown = (normals.square().sum(2) > _SHOWN**2).float()
    grid = functional.adaptive_avg_pool2d(shown, _SIDE).flatten(1)
    area = shown.sum((1, 2, 3)).clamp(min=1)
    color = (colors * shown[:, :, None]).sum((1, 3, 4)) / area[:, None]
    return torch.cat([grid, _COLOR_WEIGHT * color], dim=1)


def nearest_class(views: Tensor, known: Tensor, classes: Tensor) -> Tensor:
    """Classes [N] of the nearest of the known.

    Args:
        views: [N, V, 6, T, T].
        known: descriptors [M, D].
        classes: [M] of the known.
    """
    return classes[torch.cdist(descriptors(views), known).argmin(1)]
