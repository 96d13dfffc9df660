"""Frozen linears that read the same input, with their adapters, as one operation.

Linears whose results are used together are one stack: their weights lie one below the other.

Shape legend: M rows (samples x tokens), K inputs, N outputs, r rank, R ranks of all adapters of the
operation together.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kiss3d_train.config import Quantize
from kiss3d_train.fused import fp8


class Linears(NamedTuple):
    """Linears with a common input; `adapted` calls them all at once.

    Attributes:
        weights_NK, biases_N: of each stack of frozen linears.
        scales_N1: of 8-bit weights, by row; none for others.
        back: of 8-bit floats: the weights turned, [K, N of all], and their scales by row, [K, 1].
        places: of each adapter, the number of its stack and its first row there.
        downs_rK, ups_Nr: weights of these adapters, float32.
        scaling: of the adapters' output.
    """

    weights_NK: tuple[Tensor, ...]
    biases_N: tuple[Tensor, ...]
    scales_N1: tuple[Tensor, ...]
    back: tuple[Tensor, ...]
    places: tuple[int, ...]
    downs_rK: tuple[Tensor, ...]
    ups_Nr: tuple[Tensor, ...]
    scaling: float


def linears_of(stacks: Sequence[Sequence[Any]], quantize: Quantize) -> Linears:
    """The weights of linears, or of peft's layers around linears.

    The modules keep their names, and their weights become views of the stacks'.

    Args:
        stacks: linears with equal inputs and a bias.
        quantize: int8 stores rows of integers with a scale each. fp8 does so with 8-bit floats, and
            computes with them, where there is an adapter. The modules' own weights are then gone.
    """
    weights, places, with_adapter = [], list[int](), list[Any]()
    for number, modules in enumerate(stacks):
        weights.append(_stacked(modules))
        first = 0
        for module in modules:
            if hasattr(module, "lora_A"):
                places += [number, first]
                with_adapter.append(module)
            first += _base(module).out_features
    scales, back = list[Tensor](), tuple[Tensor, ...]()
    if quantize == "int8" or (quantize == "fp8" and places):
        if quantize == "fp8":
            back = fp8.rounded([weight.T.contiguous() for weight in weights])
        rounded = _to_int8 if quantize == "int8" else _to_fp8
        weights, scales = map(list, zip(*map(rounded, weights), strict=True))
        for base in (_base(module) for modules in stacks for module in modules):
            base.weight.data = base.weight.new_empty(0)
    return Linears(
        weights_NK=tuple(weights),
        biases_N=tuple(torch.cat([_base(m).bias.detach() for m in modules]) for modules in stacks),
        scales_N1=tuple(scales),
        back=back,
        places=tuple(places),
        downs_rK=tuple(module.lora_A["default"].weight for module in with_adapter),
        ups_Nr=tuple(module.lora_B["default"].weight for module in with_adapter),
        scaling=with_adapter[0].scaling["default"] if with_adapter else 1.0,
    )


def adapted(linears: Linears, *xs_MK: Tensor) -> Sequence[Tensor]:
    """x W^T + bias + scaling (x A^T) B^T for each stack, [M, N], in the precision of x.

    Several x are the columns of one, side by side.
    """
    dtype, weights_NK, scales_N1 = xs_MK[0].dtype, linears.weights_NK, linears.scales_N1
    if scales_N1 and not linears.back:
        pairs = zip(weights_NK, scales_N1, strict=True)
        weights_NK = tuple((weight.float() * scale).to(dtype) for weight, scale in pairs)
        scales_N1 = ()
    if not linears.places:
        return [
            _product(xs_MK, weight, bias)
            for weight, bias in zip(weights_NK, linears.biases_N, strict=True)
        ]
    down_RK = torch.cat(linears.downs_rK).to(dtype)
    ups_Nr = [(up * linears.scaling).to(dtype) for up in linears.ups_Nr]
    # Its gradient comes with that of `lora_linears`, so that the large products need not be
    # computed again where only this small one is wanted.
    inner_MR = _product([x.detach() for x in xs_MK], down_RK.detach())
    frozen = (weights_NK, linears.biases_N, scales_N1, linears.back)
    outputs: Sequence[Tensor] = lora_linears(
        xs_MK, inner_MR, *frozen, down_RK, ups_Nr, linears.places
    )
    return outputs


@torch.library.custom_op("kiss3d::lora_linears", mutates_args=())
def lora_linears(
    xs_MK: Sequence[Tensor],
    inner_MR: Tensor,
    weights_NK: Sequence[Tensor],
    biases_N: Sequence[Tensor],
    scales_N1: Sequence[Tensor],
    back: Sequence[Tensor],
    down_RK: Tensor,
    ups_Nr: Sequence[Tensor],
    places: Sequence[int],
) -> list[Tensor]:
    """Frozen linears plus their adapters, which are added in place; `inner_MR` is x A^T."""
    frozen = zip(weights_NK, biases_N, strict=True)
    if back:
        x, scale = fp8.rounded(xs_MK)
        ys_MN = [
            fp8.product(x, scale, weight_NK, scale_N1, bias_N, inner_MR.dtype)
            for (weight_NK, bias_N), scale_N1 in zip(frozen, scales_N1, strict=True)
        ]
    else:
        ys_MN = [_summed(xs_MK, weight_NK, bias_N) for weight_NK, bias_N in frozen]
    for y_Mn, inner_Mr, up_Nr in zip(
        _adapted_columns(ys_MN, ups_Nr, places), _by_adapter(inner_MR, ups_Nr), ups_Nr, strict=True
    ):
        y_Mn.addmm_(inner_Mr, up_Nr.T)
    return ys_MN


@torch.library.custom_op("kiss3d::lora_linears_backward", mutates_args=())
def lora_linears_backward(
    grads_MN: Sequence[Tensor],
    xs_MK: Sequence[Tensor],
    inner_MR: Tensor,
    weights_NK: Sequence[Tensor],
    back: Sequence[Tensor],
    down_RK: Tensor,
    ups_Nr: Sequence[Tensor],
    places: Sequence[int],
) -> list[Tensor]:
    """Gradients of `lora_linears` for each x, A, and each B; the frozen weights have none."""
    inner_grad_MR = torch.empty_like(inner_MR)
    inner_grads_Mr, inners_Mr = (_by_adapter(x, ups_Nr) for x in (inner_grad_MR, inner_MR))
    grads_Mn = _adapted_columns(grads_MN, ups_Nr, places)
    up_grads_Nr = []
    for grad_Mn, inner_grad_Mr, inner_Mr, up_Nr in zip(
        grads_Mn, inner_grads_Mr, inners_Mr, ups_Nr, strict=True
    ):
        torch.mm(grad_Mn, up_Nr, out=inner_grad_Mr)
        up_grads_Nr.append(grad_Mn.T @ inner_Mr)
    frozen_grads_MK = (_fp8_grads if back else _grads)(grads_MN, xs_MK, back or weights_NK)
    x_grads_MK = [
        grad_MK.addmm_(inner_grad_MR, down_part)
        for grad_MK, (_, down_part) in zip(
            frozen_grads_MK, _by_columns(xs_MK, down_RK), strict=True
        )
    ]
    down_grad_RK = torch.cat([inner_grad_MR.T @ x_MK for x_MK in xs_MK], dim=1)
    return [*x_grads_MK, down_grad_RK, *up_grads_Nr]


@lora_linears.register_fake
def _(
    xs_MK: Sequence[Tensor],
    inner_MR: Tensor,
    weights_NK: Sequence[Tensor],
    biases_N: Sequence[Tensor],
    scales_N1: Sequence[Tensor],
    back: Sequence[Tensor],
    down_RK: Tensor,
    ups_Nr: Sequence[Tensor],
    places: Sequence[int],
) -> list[Tensor]:
    return [inner_MR.new_empty(inner_MR.shape[0], weight.shape[0]) for weight in weights_NK]


@lora_linears_backward.register_fake
def _(
    grads_MN: Sequence[Tensor],
    xs_MK: Sequence[Tensor],
    inner_MR: Tensor,
    weights_NK: Sequence[Tensor],
    back: Sequence[Tensor],
    down_RK: Tensor,
    ups_Nr: Sequence[Tensor],
    places: Sequence[int],
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (*xs_MK, down_RK, *ups_Nr)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    xs_MK, inner_MR, weights_NK, _, scales_N1, back, down_RK, ups_Nr, ctx.places = inputs
    ctx.counts = len(xs_MK), len(weights_NK), len(scales_N1), len(back), len(ups_Nr)
    ctx.save_for_backward(*xs_MK, inner_MR, *weights_NK, *back, down_RK, *ups_Nr)


def _backward(ctx: Any, grads_MN: Sequence[Tensor]) -> tuple[Any, ...]:
    num_x, num_weights, num_scales, num_back, num_ups = ctx.counts
    saved = iter(ctx.saved_tensors)
    xs_MK, inner_MR = _taken(saved, num_x), next(saved)
    frozen = _taken(saved, num_weights), _taken(saved, num_back)
    down_RK, ups_Nr = next(saved), _taken(saved, num_ups)
    grads_MN = [grad.contiguous() for grad in grads_MN]
    results = iter(
        lora_linears_backward(grads_MN, xs_MK, inner_MR, *frozen, down_RK, ups_Nr, ctx.places)
    )
    x_grads, down_grad, up_grads = _taken(results, num_x), next(results), _taken(results, num_ups)
    no_grads = ([None] * num for num in (num_weights, num_weights, num_scales, num_back))
    return x_grads, None, *no_grads, down_grad, up_grads, None


lora_linears.register_autograd(_backward, setup_context=_keep)


def _product(xs_MK: Sequence[Tensor], weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    (first, weight), *rest = _by_columns(xs_MK, weight_NK)
    y_MN = F.linear(first, weight, bias_N)
    for x_MK, weight in rest:
        y_MN = y_MN + F.linear(x_MK, weight)
    return y_MN


def _summed(xs_MK: Sequence[Tensor], weight_NK: Tensor, bias_N: Tensor) -> Tensor:
    """As `_product`, in place."""
    (first, weight), *rest = _by_columns(xs_MK, weight_NK)
    y_MN = F.linear(first, weight, bias_N)
    for x_MK, weight in rest:
        y_MN.addmm_(x_MK, weight.T)
    return y_MN


def _grads(
    grads_MN: Sequence[Tensor], xs_MK: Sequence[Tensor], weights_NK: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients for each x through the frozen linears."""
    x_grads_MK = []
    for column in range(len(xs_MK)):
        first, *rest = (_by_columns(xs_MK, weight)[column][1] for weight in weights_NK)
        x_grad_MK = grads_MN[0] @ first
        for grad_MN, weight in zip(grads_MN[1:], rest, strict=True):
            x_grad_MK.addmm_(grad_MN, weight)
        x_grads_MK.append(x_grad_MK)
    return x_grads_MK


def _fp8_grads(
    grads_MN: Sequence[Tensor], xs_MK: Sequence[Tensor], back: Sequence[Tensor]
) -> list[Tensor]:
    sizes = [x_MK.shape[1] for x_MK in xs_MK]
    parts, scales = (torch.split(x, sizes) for x in back)
    grad, scale = fp8.rounded(grads_MN)
    return [
        fp8.product(grad, scale, part, part_scale, None, grads_MN[0].dtype)
        for part, part_scale in zip(parts, scales, strict=True)
    ]


def _by_columns(xs_MK: Sequence[Tensor], weight_NK: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each x with the columns of a weight that belong to it."""
    parts = torch.split(weight_NK, [x_MK.shape[1] for x_MK in xs_MK], dim=1)
    return list(zip(xs_MK, parts, strict=True))


def _adapted_columns(
    ys_MN: Sequence[Tensor], ups_Nr: Sequence[Tensor], places: Sequence[int]
) -> list[Tensor]:
    """Of what the stacks give, the columns that belong to each adapter."""
    return [
        ys_MN[stack][:, first : first + up_Nr.shape[0]]
        for stack, first, up_Nr in zip(places[::2], places[1::2], ups_Nr, strict=True)
    ]


def _by_adapter(inner_MR: Tensor, ups_Nr: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(inner_MR, [up.shape[1] for up in ups_Nr], dim=1)


def _taken(values: Iterator[Any], num: int) -> list[Any]:
    return [next(values) for _ in range(num)]


def _base(module: Any) -> Any:
    """The linear itself."""
    return getattr(module, "base_layer", module)


def _stacked(modules: Sequence[Any]) -> Tensor:
    """The linears' weights one below the other; their own become views of it."""
    bases = [_base(module) for module in modules]
    weight = torch.cat([base.weight.detach() for base in bases])
    parts = torch.split(weight, [base.out_features for base in bases])
    for base, rows in zip(bases, parts, strict=True):
        base.weight.data = rows
    return weight


def _to_fp8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    return fp8.rounded([weight_NK])


def _to_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest int8 multiples of each row's largest magnitude / 127."""
    scale_N1 = weight_NK.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / 127
    return (weight_NK / scale_N1).round_().to(torch.int8), scale_N1
