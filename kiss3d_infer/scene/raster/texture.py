"""Texture lookup in plain torch, the same on every device."""

import torch
from torch import Tensor


def sample_texture(texture: Tensor, uv: Tensor) -> Tensor:
    """Bilinear lookup with repeat wrapping; gradients reach the texture and uv.

    Args:
        texture: [h, w, C], row 0 at the top.
        uv: [..., 2], u right and v up; (0, 0) is the outer corner of the texel at the bottom left.

    Returns:
        [..., C].
    """
    height, width, channels = texture.shape
    planes = texture.permute(2, 0, 1).unsqueeze(0)  # [1, C, h, w]
    padded = torch.nn.functional.pad(planes, (1, 1, 1, 1), mode="circular")
    wrapped = uv - uv.floor()
    x = (wrapped[..., 0] * width + 1) / (width + 2) * 2 - 1
    y = ((1 - wrapped[..., 1]) * height + 1) / (height + 2) * 2 - 1
    grid = torch.stack([x, y], dim=-1).reshape(1, 1, -1, 2)
    sampled = torch.nn.functional.grid_sample(
        padded, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.reshape(channels, -1).T.reshape(*uv.shape[:-1], channels)
