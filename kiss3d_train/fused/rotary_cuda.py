"""Triton kernels for `rotary`: a program per token, which reads and writes every value once."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def forward(
    x_BTHC: Tensor, weight_C: Tensor, cos_TC: Tensor, sin_TC: Tensor, out_BTHC: Tensor, eps: float
) -> None:
    """See `rotary.rotate`."""
    _launch(_forward, (x_BTHC, out_BTHC), (weight_C, cos_TC, sin_TC), eps)


def backward(
    grad_BTHC: Tensor,
    x_BTHC: Tensor,
    weight_C: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
    out_BTHC: Tensor,
    eps: float,
) -> None:
    """See `rotary.rotate_back`."""
    _launch(_backward, (grad_BTHC, x_BTHC, out_BTHC), (weight_C, cos_TC, sin_TC), eps)


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], shared: tuple[Tensor, ...], eps: float
) -> None:
    batch, tokens, heads, channels = tensors[0].shape
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    with torch.cuda.device(tensors[0].device):
        kernel[(tokens, batch)](
            *tensors,
            *(x.contiguous() for x in shared),
            *strides,
            eps,
            HEADS=heads,
            ROWS=triton.next_power_of_2(heads),
            CHANNELS=channels,
        )


@triton.jit
def _pair(values, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.split(tl.reshape(values, (ROWS, CHANNELS // 2, 2)))


@triton.jit
def _row(pointer, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    values = tl.load(pointer + tl.arange(0, CHANNELS)).to(tl.float32)
    a, b = tl.split(tl.reshape(values, (CHANNELS // 2, 2)))
    return a[None, :], b[None, :]


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, out, weight, cos, sin, x_batch, x_token, out_batch, out_token, eps,
    HEADS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    token, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, ROWS)[:, None]
    places = rows * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    mask = rows < HEADS
    values = tl.load(x + sample * x_batch + token * x_token + places, mask, 0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, axis=1) / CHANNELS + eps)[:, None]
    a, b = _pair(values * factor, ROWS, CHANNELS)
    weight_a, weight_b = _row(weight, CHANNELS)
    cos_a, cos_b = _row(cos + token * CHANNELS, CHANNELS)
    sin_a, sin_b = _row(sin + token * CHANNELS, CHANNELS)
    a, b = a * weight_a, b * weight_b
    turned = tl.join(a * cos_a - b * sin_a, b * cos_b + a * sin_b)
    result = tl.reshape(turned, (ROWS, CHANNELS)).to(out.dtype.element_ty)
    tl.store(out + sample * out_batch + token * out_token + places, result, mask)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad, x, out, weight, cos, sin,
    grad_batch, grad_token, x_batch, x_token, out_batch, out_token, eps,
    HEADS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    token, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, ROWS)[:, None]
    places = rows * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    mask = rows < HEADS
    values = tl.load(x + sample * x_batch + token * x_token + places, mask, 0.0).to(tl.float32)
    slope = tl.load(grad + sample * grad_batch + token * grad_token + places, mask, 0.0)
    factor = tl.rsqrt(tl.sum(values * values, axis=1) / CHANNELS + eps)[:, None]
    normal = values * factor
    a, b = _pair(slope.to(tl.float32), ROWS, CHANNELS)
    weight_a, weight_b = _row(weight, CHANNELS)
    cos_a, cos_b = _row(cos + token * CHANNELS, CHANNELS)
    sin_a, sin_b = _row(sin + token * CHANNELS, CHANNELS)
    back_a, back_b = (a * cos_a + b * sin_b) * weight_a, (b * cos_b - a * sin_a) * weight_b
    back = tl.reshape(tl.join(back_a, back_b), (ROWS, CHANNELS))
    along = (tl.sum(back * normal, axis=1) / CHANNELS)[:, None]
    result = (factor * (back - normal * along)).to(out.dtype.element_ty)
    tl.store(out + sample * out_batch + token * out_token + places, result, mask)
