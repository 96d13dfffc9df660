"""Bundles as wrong as generated ones: normals bent smoothly, views off by pixels."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.bundle import Bundle
from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.masks import silhouettes
from kiss3d_infer.reconstruct.target import translated

_REFERENCE_TILE = 256
_WAVES = 4
"""Knots along each side of the smooth field that bends the normals."""


def perturbed(bundle: Bundle, degrees: float, pixels: float, seed: int) -> Bundle:
    """Bend every normal and move every view, each view by itself.

    Args:
        bundle: an exact one.
        degrees: mean angle by which the normals turn.
        pixels: by which each view moves, in a random direction, for a tile of 256.
        seed: of the fields and directions.
    """
    rng = np.random.default_rng(seed)
    layout, alpha = bundle.layout, silhouettes(bundle)
    normals = normal_code.to_world(normal_code.decode(bundle.normal_colors), layout)
    bent = Bundle.from_views(bundle.rgb, _bent(normals, degrees, rng), alpha, layout)
    angle = rng.uniform(0, 2 * math.pi, layout.num_views)
    shifts = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1)).float()
    rows = {"rgb": bent.rgb, "normal": bent.normal_colors}
    moved = [_moved(rows[row], shifts * pixels / _REFERENCE_TILE) for row in layout.rows]
    return Bundle(torch.cat(moved, 1), layout)


def _bent(normals: Tensor, degrees: float, rng: np.random.Generator) -> Tensor:
    """Rotate normals [V, 3, T, T] by a smooth random field of rotation vectors (Rodrigues)."""
    views, _, size, _ = normals.shape
    knots = torch.from_numpy(rng.standard_normal((views, 3, _WAVES, _WAVES))).float()
    field = functional.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True)
    field = field * (math.radians(degrees) / field.norm(dim=1).mean())
    angle = field.norm(dim=1, keepdim=True).clamp(min=1e-6)
    axis = field / angle
    along = axis * (axis * normals).sum(1, keepdim=True)
    across = torch.linalg.cross(axis, normals, dim=1)
    return normals * angle.cos() + across * angle.sin() + along * (1 - angle.cos())


def _moved(views: Tensor, shifts: Tensor) -> Tensor:
    """Move views [V, 3, T, T] and set them side by side: [3, T, V * T]."""
    moved = translated(views.permute(0, 2, 3, 1), shifts)
    return moved.permute(3, 1, 0, 2).flatten(2)
