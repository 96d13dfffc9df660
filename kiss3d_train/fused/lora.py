"""Frozen linears that read the same input, with their adapters, as one matrix product.

Shape legend: M rows (samples x tokens), K inputs, N outputs of all linears together, R ranks of all
adapters together, S outputs of the adapted linears together, r rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linears(NamedTuple):
    """Linears with a common input; `adapted` calls them all at once.

    Attributes:
        weight_NK, bias_N: of the frozen linears, one below the other.
        scale_N1: of int8 weights, by row; None for weights that are floats.
        down_rK, up_Nr: weights of the adapters, float32, in the linears' order.
        starts, sizes: rows of `weight_NK` that each adapter belongs to.
        scaling: of the adapters' output.
    """

    weight_NK: Tensor
    bias_N: Tensor | None
    scale_N1: Tensor | None
    down_rK: tuple[Tensor, ...]
    up_Nr: tuple[Tensor, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    scaling: float


def adapted(linears: Linears, x_MK: Tensor) -> Tensor:
    """x W^T + bias + scaling (x A^T) B^T for all linears, [M, N], in the precision of x."""
    weight_NK = linears.weight_NK
    if linears.scale_N1 is not None:
        weight_NK = (weight_NK.to(linears.scale_N1.dtype) * linears.scale_N1).to(x_MK.dtype)
    if not linears.down_rK:
        return F.linear(x_MK, weight_NK, linears.bias_N)
    down_RK = torch.cat(linears.down_rK).to(x_MK.dtype)
    up_Sr = (torch.cat(linears.up_Nr) * linears.scaling).to(x_MK.dtype)
    # Its gradient comes with that of `lora_linear`, so that the large product need not be computed
    # again where only this small one is wanted.
    inner_MR = x_MK.detach() @ down_RK.detach().T
    y_MN: Tensor = lora_linear(
        x_MK, inner_MR, weight_NK, linears.bias_N, down_RK, up_Sr, linears.starts, linears.sizes
    )
    return y_MN


@torch.library.custom_op("kiss3d::lora_linear", mutates_args=())
def lora_linear(
    x_MK: Tensor,
    inner_MR: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    down_RK: Tensor,
    up_Sr: Tensor,
    starts: Sequence[int],
    sizes: Sequence[int],
) -> Tensor:
    """Frozen linears plus their adapters, which are added in place; `inner_MR` is x A^T."""
    y_MN = F.linear(x_MK, weight_NK, bias_N)
    for y_Mn, inner_Mr, up_nr in _parts(y_MN, inner_MR, up_Sr, starts, sizes):
        y_Mn.addmm_(inner_Mr, up_nr.T)
    return y_MN


@torch.library.custom_op("kiss3d::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    grad_MN: Tensor,
    x_MK: Tensor,
    inner_MR: Tensor,
    weight_NK: Tensor,
    down_RK: Tensor,
    up_Sr: Tensor,
    starts: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `lora_linear` for x, A and B; the frozen weights have none."""
    inner_grad_MR, up_grad_Sr = torch.empty_like(inner_MR), torch.empty_like(up_Sr)
    grads = _parts(grad_MN, inner_grad_MR, up_grad_Sr, starts, sizes)
    values = _parts(grad_MN, inner_MR, up_Sr, starts, sizes)
    for (grad_Mn, inner_grad_Mr, up_grad_nr), (_, inner_Mr, up_nr) in zip(
        grads, values, strict=True
    ):
        torch.mm(grad_Mn, up_nr, out=inner_grad_Mr)
        torch.mm(grad_Mn.T, inner_Mr, out=up_grad_nr)
    x_grad_MK = (grad_MN @ weight_NK).addmm_(inner_grad_MR, down_RK)
    return x_grad_MK, inner_grad_MR.T @ x_MK, up_grad_Sr


@lora_linear.register_fake
def _(
    x_MK: Tensor,
    inner_MR: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    down_RK: Tensor,
    up_Sr: Tensor,
    starts: Sequence[int],
    sizes: Sequence[int],
) -> Tensor:
    return x_MK.new_empty(x_MK.shape[0], weight_NK.shape[0])


@lora_linear_backward.register_fake
def _(
    grad_MN: Tensor,
    x_MK: Tensor,
    inner_MR: Tensor,
    weight_NK: Tensor,
    down_RK: Tensor,
    up_Sr: Tensor,
    starts: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return x_MK.new_empty(x_MK.shape), down_RK.new_empty(down_RK.shape), torch.empty_like(up_Sr)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_MK, inner_MR, weight_NK, _, down_RK, up_Sr, ctx.starts, ctx.sizes = inputs
    ctx.save_for_backward(x_MK, inner_MR, weight_NK, down_RK, up_Sr)


def _backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
    x_grad_MK, down_grad_RK, up_grad_Sr = lora_linear_backward(
        grad_MN.contiguous(), *ctx.saved_tensors, ctx.starts, ctx.sizes
    )
    return x_grad_MK, None, None, None, down_grad_RK, up_grad_Sr, None, None


lora_linear.register_autograd(_backward, setup_context=_keep)


def _parts(
    y_MN: Tensor, inner_MR: Tensor, up_Sr: Tensor, starts: Sequence[int], sizes: Sequence[int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Views of each adapter's outputs, inner columns and B."""
    parts = zip(
        (y_MN[:, start : start + size] for start, size in zip(starts, sizes, strict=True)),
        torch.split(inner_MR, up_Sr.shape[1], dim=1),
        torch.split(up_Sr, list(sizes)),
        strict=True,
    )
    return list(parts)


def joined(modules: Sequence[Any], quantize: bool) -> Linears:
    """Lay the weights of linears, or of peft's layers around linears, one below the other.

    The modules keep their names; without quantization their weights become views of the whole.

    Args:
        modules: linears with equal inputs, all with or all without a bias.
        quantize: store int8 rows with a float32 scale each. The modules' own weights are then gone.
    """
    bases = [getattr(module, "base_layer", module) for module in modules]
    whole = torch.cat([base.weight.detach() for base in bases])
    bias = torch.cat([base.bias.detach() for base in bases]) if bases[0].bias is not None else None
    starts, sizes, downs, ups, scaling = [], [], [], [], 1.0
    first = 0
    for module, base in zip(modules, bases, strict=True):
        size = base.weight.shape[0]
        kept = whole.new_empty(0) if quantize else whole[first : first + size]
        base.weight = nn.Parameter(kept, requires_grad=False)
        if hasattr(module, "lora_A"):
            starts.append(first)
            sizes.append(size)
            downs.append(module.lora_A["default"].weight)
            ups.append(module.lora_B["default"].weight)
            scaling = module.scaling["default"]
        first += size
    scale = None
    if quantize:
        whole, scale = _to_int8(whole)
    return Linears(
        whole, bias, scale, tuple(downs), tuple(ups), tuple(starts), tuple(sizes), scaling
    )


def _to_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest int8 multiples of each row's largest magnitude / 127."""
    scale_N1 = weight_NK.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / 127
    return (weight_NK / scale_N1).round_().to(torch.int8), scale_N1
