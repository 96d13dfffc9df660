"""RMS norm of each head and rotary positions, written where they are wanted.

Shape legend: B samples, T tokens, H heads, C channels of a head. Heads and channels of a tensor lie
together in memory; tokens and samples may lie apart.
"""

import torch
from torch import Tensor

EPS = 1e-6


def rotate(
    x_BTHC: Tensor, weight_C: Tensor, cos_TC: Tensor, sin_TC: Tensor, out_BTHC: Tensor
) -> None:
    """Write x, normalized and with its pairs of channels rotated, into `out_BTHC`.

    out = n cos + n' sin with n = weight x / rms(x) and n' its pairs (a, b) turned into (-b, a), as
    diffusers does for Flux; computed in float32.
    """
    if x_BTHC.device.type == "cuda":
        from kiss3d_train.fused import rotary_cuda

        rotary_cuda.forward(x_BTHC, weight_C, cos_TC, sin_TC, out_BTHC, EPS)
        return
    wide = torch.promote_types(x_BTHC.dtype, torch.float32)
    normal, _ = _normalized(x_BTHC.to(wide))
    out_BTHC.copy_(_turned(normal * weight_C.to(wide), cos_TC, sin_TC))


def rotate_back(
    grad_BTHC: Tensor,
    x_BTHC: Tensor,
    weight_C: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
    out_BTHC: Tensor,
) -> None:
    """Write the gradient of `rotate` for x into `out_BTHC`; the weight is frozen."""
    if x_BTHC.device.type == "cuda":
        from kiss3d_train.fused import rotary_cuda

        rotary_cuda.backward(grad_BTHC, x_BTHC, weight_C, cos_TC, sin_TC, out_BTHC, EPS)
        return
    wide = torch.promote_types(x_BTHC.dtype, torch.float32)
    # Turning backwards: cos and sin of the two channels of a pair are equal.
    back = _turned(grad_BTHC.to(wide), cos_TC, -sin_TC) * weight_C.to(wide)
    normal, factor = _normalized(x_BTHC.to(wide))
    along = (back * normal).mean(dim=3, keepdim=True)
    out_BTHC.copy_(factor * (back - normal * along))


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    factor = torch.rsqrt(x.square().mean(dim=3, keepdim=True) + EPS)
    return x * factor, factor


def _turned(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    pairs = x_BTHC.reshape(*x_BTHC.shape[:3], -1, 2)
    swapped = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=4).flatten(3)
    return x_BTHC * cos_TC[:, None] + swapped * sin_TC[:, None]
