"""The sRGB transfer function (IEC 61966-2-1): images are sRGB, light is linear."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_linear(srgb: Tensor) -> Tensor:
    """sRGB in [0, 1] to linear light in [0, 1], any shape."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB in [0, 1], any shape."""
    bright = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, bright)


def modulated(srgb: Tensor, by: Tensor) -> Tensor:
    """One sRGB colour seen through another: their product in linear light, as glTF defines it."""
    return to_srgb(to_linear(srgb) * to_linear(by))


def to_bytes(values: Tensor) -> NDArray[np.uint8]:
    """Values in [0, 1] rounded to 8 bits, any shape and device."""
    pixels = values.detach().cpu().clamp(0, 1).mul_(255).round_().byte()
    return np.ascontiguousarray(pixels.numpy())
