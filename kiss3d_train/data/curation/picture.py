"""What a bundle's RGB row shows, in a few numbers: its main colours and a perceptual hash."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from kiss3d_infer.scene.color import to_bytes

_NUM_COLORS = 5
_LEAST_SHARE = 2e-3
"""Of the object's pixels, for a colour to count."""
_HASHED = 32
_FREQUENCIES = 8
_NOISE = 0.02
"""DCT coefficients, of grey values in [0, 1], up to which the sign is chance: in the view of a
symmetric object half of them are zero but for rounding."""


def colors_of(rgb: Tensor, masks: NDArray[np.bool_]) -> tuple[int, list[tuple[str, float]]]:
    """The number of distinct colours and the most frequent ones.

    Args:
        rgb: [V, 3, T, T] sRGB in [0, 1].
        masks: [V, T, T] where the object is.

    Returns:
        The number, and "#rrggbb" with its share of the object's pixels, at most five.
    """
    pixels = to_bytes(rgb.permute(0, 2, 3, 1))[masks].astype(np.int64)  # [N, 3]
    cell = (pixels >> 5) @ np.array([64, 8, 1])
    count = np.bincount(cell, minlength=512)
    share = count / max(1, len(pixels))
    order = np.argsort(-share, kind="stable")[:_NUM_COLORS]
    found = []
    for i in order[share[order] >= _LEAST_SHARE]:
        mean = pixels[cell == i].mean(0).round().astype(int)
        found.append(("#{:02x}{:02x}{:02x}".format(*mean), float(share[i])))
    return int((share >= _LEAST_SHARE).sum()), found


def image_hash(rgb: Tensor) -> str:
    """The signs of each view's lowest 8x8 cosine frequencies, 16 hexadecimal digits per view.

    Pictures that look alike differ in few bits, whatever their size. The DC bit is left 0.

    Args:
        rgb: [V, 3, T, T] sRGB in [0, 1].
    """
    small = torch.nn.functional.adaptive_avg_pool2d(rgb.mean(1), _HASHED)
    frequencies = dctn(small.numpy().astype(np.float64), axes=(1, 2), norm="ortho")
    bits = frequencies[:, :_FREQUENCIES, :_FREQUENCIES] > _NOISE
    bits[:, 0, 0] = False
    return np.packbits(bits.reshape(len(bits), -1), axis=1).tobytes().hex()


def hash_bits(digits: str) -> NDArray[np.uint8]:
    """The bytes of a hash, for counting the bits in which two differ."""
    return np.frombuffer(bytes.fromhex(digits), np.uint8)
