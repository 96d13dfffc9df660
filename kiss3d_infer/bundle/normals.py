"""The normal code of a bundle: camera-space normals with x negated, as 8-bit colours.

colour = ((-nx, ny, nz) + 1) / 2 with camera axes x right, y up, z toward the viewer: red means the
surface faces image-left, green up, blue the viewer. White, the background, is no unit vector.
"""

import torch
from torch import Tensor

from kiss3d_infer.bundle.layout import BundleLayout

_SIGNS = (-1.0, 1.0, 1.0)


def encode(normals_camera: Tensor) -> Tensor:
    """Camera-space unit normals [..., 3, H, W] to colours [..., 3, H, W] in [0, 1]."""
    return (normals_camera * _signs(normals_camera) + 1) / 2


def decode_raw(colors: Tensor) -> Tensor:
    """Colours [..., 3, H, W] to camera-space vectors of whatever length the colours hold."""
    return (colors * 2 - 1) * _signs(colors)


def decode(colors: Tensor) -> Tensor:
    """Colours [..., 3, H, W] to camera-space unit normals (generated colours are not unit)."""
    vectors = decode_raw(colors)
    length = vectors.square().sum(-3, keepdim=True).sqrt()  # far faster than norm(dim=)
    return vectors / length.clamp(min=1e-12)


def to_world(normals_camera: Tensor, layout: BundleLayout) -> Tensor:
    """Rotate per-view normals [V, 3, H, W] from their cameras to the world."""
    rotations = layout.cameras.rotations.to(normals_camera)
    return torch.einsum("vij,vjhw->vihw", rotations, normals_camera)


def to_camera(normals_world: Tensor, layout: BundleLayout) -> Tensor:
    """Rotate world normals [V, 3, H, W] to the camera of each view."""
    rotations = layout.cameras.rotations.to(normals_world)
    return torch.einsum("vji,vjhw->vihw", rotations, normals_world)


def _signs(like: Tensor) -> Tensor:
    return torch.tensor(_SIGNS, device=like.device, dtype=like.dtype).view(3, 1, 1)
