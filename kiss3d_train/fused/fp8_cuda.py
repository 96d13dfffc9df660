"""Triton kernel for `fp8.rounded`: one program per row, which is read twice and written once."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
_NUM_PARTS = 4


def rounded(parts_MK: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """See `fp8.rounded`; at most four parts."""
    widths = [part.shape[1] for part in parts_MK]
    num_rows = parts_MK[0].shape[0]
    missing = _NUM_PARTS - len(parts_MK)
    parts = [*parts_MK, *[parts_MK[0]] * missing]
    out = parts[0].new_empty(num_rows, sum(widths), dtype=torch.float8_e4m3fn)
    scale = parts[0].new_empty(num_rows, 1, dtype=torch.float32)
    strides = [part.stride(0) for part in parts]
    with torch.cuda.device(out.device):
        _rounded[(num_rows,)](
            *parts, out, scale, *strides, out.stride(0), *widths, *[0] * missing, BLOCK=_BLOCK
        )
    return out, scale


@triton.jit
def _largest(row, width: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    found = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(row + places, places < width, 0.0).to(tl.float32)
        found = tl.maximum(found, tl.abs(values))
    return tl.max(found, axis=0)


@triton.jit
def _write(row, out, width: tl.constexpr, factor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    for start in range(0, width, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(row + places, places < width, 0.0).to(tl.float32)
        tl.store(out + places, (values * factor).to(out.dtype.element_ty), places < width)


@triton.jit
def _rounded(  # type: ignore[no-untyped-def]
    a, b, c, d, out, scale, a_stride, b_stride, c_stride, d_stride, out_stride,
    a_width: tl.constexpr, b_width: tl.constexpr, c_width: tl.constexpr, d_width: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    a, b, c, d = a + row * a_stride, b + row * b_stride, c + row * c_stride, d + row * d_stride
    left = tl.maximum(_largest(a, a_width, BLOCK), _largest(b, b_width, BLOCK))
    right = tl.maximum(_largest(c, c_width, BLOCK), _largest(d, d_width, BLOCK))
    unit = tl.maximum(tl.maximum(left, right), 1e-12) / 448.0
    tl.store(scale + row, unit)
    factor, out = 1.0 / unit, out + row * out_stride
    _write(a, out, a_width, factor, BLOCK)
    _write(b, out + a_width, b_width, factor, BLOCK)
    _write(c, out + a_width + b_width, c_width, factor, BLOCK)
    _write(d, out + a_width + b_width + c_width, d_width, factor, BLOCK)
