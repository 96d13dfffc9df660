"""RMS norm of each head and rotary positions, as one operation over both kinds of tokens.

Shape legend: B samples, T tokens, H heads, C channels of a head.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_EPS = 1e-6


@torch.library.custom_op("kiss3d::rotated", mutates_args=())
def rotated(
    xs_BTHC: Sequence[Tensor], weights_C: Sequence[Tensor], cos_TC: Tensor, sin_TC: Tensor
) -> Tensor:
    """Normalize heads and rotate pairs of channels; several x follow one another along T.

    out = n cos + n' sin with n = weight x / rms(x) and n' its pairs (a, b) turned into (-b, a), as
    diffusers does for Flux; computed in float32.
    """
    out_BTHC = torch.cat([x.new_empty(x.shape) for x in xs_BTHC], dim=1)
    for x, weight, out, cos, sin in _parts(xs_BTHC, weights_C, out_BTHC, cos_TC, sin_TC):
        if x.device.type == "cuda":
            _kernels().forward(x, weight, cos, sin, out, _EPS)
        else:
            out.copy_(_turned(_normalized(x.float())[0] * weight.float(), cos, sin))
    return out_BTHC


@torch.library.custom_op("kiss3d::rotated_backward", mutates_args=())
def rotated_backward(
    grad_BTHC: Tensor,
    xs_BTHC: Sequence[Tensor],
    weights_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
) -> list[Tensor]:
    """Gradients of `rotated` for each x; the weights are frozen."""
    results = []
    for x, weight, grad, cos, sin in _parts(xs_BTHC, weights_C, grad_BTHC, cos_TC, sin_TC):
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        if x.device.type == "cuda":
            _kernels().backward(grad, x, weight, cos, sin, result, _EPS)
        else:
            # Turning backwards: cos and sin of a pair are equal.
            back = _turned(grad.float(), cos, -sin) * weight.float()
            normal, factor = _normalized(x.float())
            along = (back * normal).mean(dim=3, keepdim=True)
            result.copy_(factor * (back - normal * along))
        results.append(result)
    return results


@rotated.register_fake
def _(
    xs_BTHC: Sequence[Tensor], weights_C: Sequence[Tensor], cos_TC: Tensor, sin_TC: Tensor
) -> Tensor:
    batch, _, heads, channels = xs_BTHC[0].shape
    return xs_BTHC[0].new_empty(batch, sum(x.shape[1] for x in xs_BTHC), heads, channels)


@rotated_backward.register_fake
def _(
    grad_BTHC: Tensor,
    xs_BTHC: Sequence[Tensor],
    weights_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in xs_BTHC]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    xs_BTHC, weights_C, cos_TC, sin_TC = inputs
    ctx.num = len(xs_BTHC)
    ctx.save_for_backward(*xs_BTHC, *weights_C, cos_TC, sin_TC)


def _backward(ctx: Any, grad_BTHC: Tensor) -> tuple[Any, ...]:
    *tensors, cos_TC, sin_TC = ctx.saved_tensors
    xs_BTHC, weights_C = tensors[: ctx.num], tensors[ctx.num :]
    grads = rotated_backward(grad_BTHC.contiguous(), xs_BTHC, weights_C, cos_TC, sin_TC)
    return grads, [None] * ctx.num, None, None


rotated.register_autograd(_backward, setup_context=_keep)


def _parts(
    xs_BTHC: Sequence[Tensor],
    weights_C: Sequence[Tensor],
    whole_BTHC: Tensor,
    cos_TC: Tensor,
    sin_TC: Tensor,
) -> list[tuple[Tensor, ...]]:
    """Each x with its weight, its part of the whole, and its positions."""
    sizes = [x.shape[1] for x in xs_BTHC]
    wholes = torch.split(whole_BTHC, sizes, dim=1)
    positions = (torch.split(x, sizes) for x in (cos_TC, sin_TC))
    return list(zip(xs_BTHC, weights_C, wholes, *positions, strict=True))


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    factor = torch.rsqrt(x.square().mean(dim=3, keepdim=True) + _EPS)
    return x * factor, factor


def _turned(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    pairs = x_BTHC.reshape(*x_BTHC.shape[:3], -1, 2)
    swapped = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=4).flatten(3)
    return x_BTHC * cos_TC[:, None] + swapped * sin_TC[:, None]


@cache
def _kernels() -> Any:
    """Imported when first needed: Triton is there on GPU machines only."""
    from kiss3d_train.fused import rotary_cuda

    return rotary_cuda
