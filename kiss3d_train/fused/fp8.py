"""Matrix products in 8-bit floats (e4m3) with a scale per row of each factor.

Shape legend: M rows, K columns that are summed over, N columns of the result.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0
_LEAST = 1e-12


def rounded(parts_MK: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Parts side by side as 8-bit floats, [M, K], and the scale of each row, [M, 1]."""
    if parts_MK[0].device.type == "cuda":
        from kiss3d_train.fused import fp8_cuda

        return fp8_cuda.rounded(parts_MK)
    whole_MK = torch.cat(list(parts_MK), dim=1).float()
    scale_M1 = whole_MK.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST) / _LARGEST
    return (whole_MK / scale_M1).to(FP8), scale_M1


def product(
    x_MK: Tensor,
    x_scale_M1: Tensor,
    weight_NK: Tensor,
    weight_scale_N1: Tensor,
    bias_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """x W^T + bias of two matrices from `rounded`, summed in float32."""
    if x_MK.device.type == "cuda":
        result: Tensor = torch._scaled_mm(
            x_MK,
            weight_NK.T,
            scale_a=x_scale_M1,
            scale_b=weight_scale_N1.T,
            bias=bias_N,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        return result
    y_MN = (x_MK.float() * x_scale_M1) @ (weight_NK.float() * weight_scale_N1).T
    return (y_MN if bias_N is None else y_MN + bias_N).to(dtype)
