"""Attention from the projections on: one operation, on the fastest kernel of each device.

Shape legend: B samples, T tokens, H heads, C channels of a head, D = H C. Kernels take
[B, H, T, C].
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kiss3d_train.fused.rotary import rotate, rotate_back

_aten = torch.ops.aten
_HOPPER = (9, 0)
"""First compute capability on which cuDNN's kernels beat flash attention 2."""
_HALVES = (torch.bfloat16, torch.float16)
_EFFICIENT_ALIGNMENT = 32
_Triple = tuple[Tensor, Tensor, Tensor]


class Kernel(NamedTuple):
    """One implementation.

    Attributes:
        forward: of (q, k, v): the result and the logarithms of the softmax sums.
        backward: of (gradient, q, k, v, result, sums): gradients of q, k, v.
        sums_shape: of the sums, from B, H, T.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., _Triple]
    sums_shape: Callable[[int, int, int], tuple[int, ...]]


@torch.library.custom_op("kiss3d::attention", mutates_args=())
def attention(
    qkvs_BTN: Sequence[Tensor],
    norms_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """Attention of tokens of one or two kinds over all of them, with rotary positions.

    Args:
        qkvs_BTN: queries, keys and values of each kind side by side, N = 3 H C.
        norms_C: weights of the queries' and the keys' norm of each kind, in turn.
        cos_TC, sin_TC: of all tokens' positions, the kinds one after the other.
        heads: H.

    Returns:
        The result, [B, T, H C], and for the backward pass the logarithms of the softmax sums, whose
        shape depends on the kernel.
    """
    q, k, v = _prepared(qkvs_BTN, norms_C, cos_TC, sin_TC, heads)
    out, sums = kernel_for(q).forward(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).contiguous().flatten(2), sums.contiguous()


@torch.library.custom_op("kiss3d::attention_backward", mutates_args=())
def attention_backward(
    grad_BTD: Tensor,
    qkvs_BTN: Sequence[Tensor],
    norms_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    heads: int,
    out_BTD: Tensor,
    sums: Tensor,
) -> list[Tensor]:
    """Gradients of `attention` for each of `qkvs_BTN`; norms and positions are frozen."""
    q, k, v = _prepared(qkvs_BTN, norms_C, cos_TC, sin_TC, heads)
    # PyTorch finds a cuDNN plan by the strides of q, k and v, but a plan also holds those of the
    # gradient that it was made for. The gradients of Flux's two kinds of blocks lie differently in
    # memory: a plan for one read past the end of the other, and gave garbage or an illegal access.
    grad, out = (x.contiguous().reshape(q.shape) for x in (grad_BTD, out_BTD))
    grads = kernel_for(q).backward(*(x.transpose(1, 2) for x in (grad, q, k, v, out)), sums)
    q_grad, k_grad, v_grad = (x.transpose(1, 2).contiguous() for x in grads)
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in qkvs_BTN]
    kinds = zip(_kinds(qkvs_BTN, norms_C, cos_TC, sin_TC, heads), results, strict=True)
    for (tokens, x, norms, cos, sin), result in kinds:
        q_result, k_result, v_result = _thirds(result, heads)
        rotate_back(q_grad[:, tokens], x[0], norms[0], cos, sin, q_result)
        rotate_back(k_grad[:, tokens], x[1], norms[1], cos, sin, k_result)
        v_result.copy_(v_grad[:, tokens])
    return results


def _prepared(
    qkvs_BTN: Sequence[Tensor],
    norms_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    heads: int,
) -> _Triple:
    """Rotated queries and keys, and values, of all tokens, [B, T, H, C]."""
    batch, _, width = qkvs_BTN[0].shape
    shape = (batch, cos_TC.shape[0], heads, width // (3 * heads))
    q, k = (qkvs_BTN[0].new_empty(shape) for _ in range(2))
    values = []
    for tokens, x, norms, cos, sin in _kinds(qkvs_BTN, norms_C, cos_TC, sin_TC, heads):
        rotate(x[0], norms[0], cos, sin, q[:, tokens])
        rotate(x[1], norms[1], cos, sin, k[:, tokens])
        values.append(x[2])
    return q, k, values[0] if len(values) == 1 else torch.cat(values, dim=1)


def _kinds(
    qkvs_BTN: Sequence[Tensor],
    norms_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    heads: int,
) -> Iterator[tuple[slice, _Triple, Sequence[Tensor], Tensor, Tensor]]:
    """Where each kind's tokens lie, their q, k and v, norms, and positions."""
    first = 0
    for number, qkv_BTN in enumerate(qkvs_BTN):
        tokens = slice(first, first + qkv_BTN.shape[1])
        norms = norms_C[2 * number : 2 * number + 2]
        yield tokens, _thirds(qkv_BTN, heads), norms, cos_TC[tokens], sin_TC[tokens]
        first = tokens.stop


def _thirds(qkv_BTN: Tensor, heads: int) -> _Triple:
    """Views of q, k and v, [B, T, H, C]."""
    q, k, v = qkv_BTN.view(*qkv_BTN.shape[:2], 3, heads, -1).unbind(2)
    return q, k, v


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, sums, *_ = _aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, sums


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor
) -> Any:
    state = torch.empty((), dtype=torch.int64, device=q.device)  # of the dropout that there is not
    return _aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, sums, state, state, None, None, None, q.shape[2], k.shape[2], 0.0, False
    )


def _flash_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, sums, *_ = _aten._scaled_dot_product_flash_attention(q, k, v)
    return out, sums


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor
) -> Any:
    state = torch.empty(2, dtype=torch.uint64, device=q.device)
    return _aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, sums, None, None, q.shape[2], k.shape[2], 0.0, False, state, state
    )


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, sums, *_ = _aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, sums


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor
) -> Any:
    state, wanted = torch.empty((), dtype=torch.int64), [True, True, True, False]
    return _aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, sums, state, state, 0.0, wanted
    )[:3]


def _cpu_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor) -> Any:
    return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, sums, 0.0, False
    )


_CUDNN = Kernel(_cudnn_forward, _cudnn_backward, lambda *shape: (*shape, 1))
_FLASH = Kernel(_flash_forward, _flash_backward, lambda *shape: shape)
_EFFICIENT = Kernel(
    _efficient_forward,
    _efficient_backward,
    lambda b, h, t: (b, h, -(-t // _EFFICIENT_ALIGNMENT) * _EFFICIENT_ALIGNMENT),
)
_CPU = Kernel(
    _aten._scaled_dot_product_flash_attention_for_cpu, _cpu_backward, lambda *shape: shape
)


def kernel_for(x: Tensor) -> Kernel:
    """The fastest kernel for a device and a precision."""
    if x.device.type == "cpu":
        return _CPU
    if x.dtype not in _HALVES:
        return _EFFICIENT
    return _CUDNN if torch.cuda.get_device_capability(x.device) >= _HOPPER else _FLASH


@attention.register_fake
def _(
    qkvs_BTN: Sequence[Tensor],
    norms_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    (batch, _, width), tokens = qkvs_BTN[0].shape, cos_TC.shape[0]
    shape = kernel_for(qkvs_BTN[0]).sums_shape(batch, heads, tokens)
    wide = torch.promote_types(qkvs_BTN[0].dtype, torch.float32)
    return (
        qkvs_BTN[0].new_empty(batch, tokens, width // 3),
        qkvs_BTN[0].new_empty(shape, dtype=wide),
    )


@attention_backward.register_fake
def _(
    grad_BTD: Tensor,
    qkvs_BTN: Sequence[Tensor],
    norms_C: Sequence[Tensor],
    cos_TC: Tensor,
    sin_TC: Tensor,
    heads: int,
    out_BTD: Tensor,
    sums: Tensor,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in qkvs_BTN]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkvs_BTN, norms_C, cos_TC, sin_TC, ctx.heads = inputs
    ctx.num = len(qkvs_BTN)
    ctx.save_for_backward(*qkvs_BTN, *norms_C, cos_TC, sin_TC, *output)


def _backward(ctx: Any, grad_BTD: Tensor, _: Tensor) -> tuple[Any, ...]:
    *tensors, cos_TC, sin_TC, out_BTD, sums = ctx.saved_tensors
    qkvs_BTN, norms_C = tensors[: ctx.num], tensors[ctx.num :]
    grads = attention_backward(
        grad_BTD, qkvs_BTN, norms_C, cos_TC, sin_TC, ctx.heads, out_BTD, sums
    )
    return grads, [None] * len(norms_C), None, None, None


attention.register_autograd(_backward, setup_context=_keep)
