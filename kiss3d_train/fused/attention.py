"""Attention as one operation with its own backward pass, on the fastest kernel of each device.

Shape legend: B samples, T tokens, H heads, C channels of a head. Kernels take [B, H, T, C].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
def attention(q_BTHC: Tensor, k_BTHC: Tensor, v_BTHC: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention without a mask; returns [B, T, H, C] and the logarithms of the sums.

    The second result is for the backward pass; its shape depends on the kernel.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTHC, v_BTHC))
    out, sums = _kernel(q).forward(q, k, v)
    return out.transpose(1, 2).contiguous(), sums.contiguous()


@torch.library.custom_op("kiss3d::attention_backward", mutates_args=())
def attention_backward(
    grad_BTHC: Tensor,
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    out_BTHC: Tensor,
    sums: Tensor,
) -> _Triple:
    """Gradients of `attention`."""
    # PyTorch finds a cuDNN plan by the strides of q, k and v, but a plan also holds those of the
    # gradient that it was made for. The gradients of Flux's two kinds of blocks lie differently in
    # memory: a plan for one read past the end of the other, and gave garbage or an illegal access.
    grad_BTHC = grad_BTHC.contiguous()
    tensors = (x.transpose(1, 2) for x in (grad_BTHC, q_BTHC, k_BTHC, v_BTHC, out_BTHC))
    grads = _kernel(q_BTHC).backward(*tensors, sums)
    q_grad, k_grad, v_grad = (x.transpose(1, 2).contiguous() for x in grads)
    return q_grad, k_grad, v_grad


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


def _kernel(q: Tensor) -> Kernel:
    if q.device.type == "cpu":
        return _CPU
    if q.dtype not in _HALVES:
        return _EFFICIENT
    return _CUDNN if torch.cuda.get_device_capability(q.device) >= _HOPPER else _FLASH


@attention.register_fake
def _(q_BTHC: Tensor, k_BTHC: Tensor, v_BTHC: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q_BTHC.shape
    shape = _kernel(q_BTHC).sums_shape(batch, heads, tokens)
    return _like(q_BTHC), q_BTHC.new_empty(shape, dtype=torch.float32)


@attention_backward.register_fake
def _(
    grad_BTHC: Tensor,
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    out_BTHC: Tensor,
    sums: Tensor,
) -> _Triple:
    return _like(q_BTHC), _like(k_BTHC), _like(v_BTHC)


def _keep(ctx: Any, inputs: _Triple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad_BTHC: Tensor, _: Tensor) -> _Triple:
    gradients: _Triple = attention_backward(grad_BTHC, *ctx.saved_tensors)
    return gradients


attention.register_autograd(_backward, setup_context=_keep)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
