"""Flux's two kinds of blocks as functions of their weights, equal to diffusers' modules.

Shape legend: B samples, T tokens, D width, H heads, C channels of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from kiss3d_train.config import Quantize
from kiss3d_train.fused.attention import attention
from kiss3d_train.fused.lora import Linears, adapted, linears_of
from kiss3d_train.memory import Keep

_LAYER_NORM_EPS = 1e-6
_ops = torch.ops
_KEPT: dict[Keep, frozenset[Any]] = {
    "products": frozenset(
        {
            _ops.kiss3d.lora_linears.default,
            _ops.kiss3d.attention.default,
            _ops.aten.mm.default,
            _ops.aten.addmm.default,
        }
    ),
    "attention": frozenset({_ops.kiss3d.attention.default}),
    "inputs": frozenset(),
}


class Stream(NamedTuple):
    """Weights for one of the two kinds of tokens in a double block."""

    modulation: Linears
    qkv: Linears
    q_norm_C: Tensor
    k_norm_C: Tensor
    attention_out: Linears
    up: Linears
    down: Linears


class DoubleBlock(NamedTuple):
    """Weights of a block in which image and text meet in attention only."""

    image: Stream
    text: Stream
    heads: int


class SingleBlock(NamedTuple):
    """Weights of a block in which all tokens are treated alike, attention and MLP side by side."""

    modulation: Linears
    qkv_up: Linears
    q_norm_C: Tensor
    k_norm_C: Tensor
    out: Linears
    heads: int


def double_weights(block: Any, quantize: Quantize) -> DoubleBlock:
    """The weights of a `FluxTransformerBlock`, adapters included, which stay shared with it."""
    attn, linears = block.attn, partial(linears_of, quantize=quantize)
    image = Stream(
        linears([[block.norm1.linear]]),
        linears([[attn.to_q, attn.to_k, attn.to_v]]),
        attn.norm_q.weight,
        attn.norm_k.weight,
        linears([[attn.to_out[0]]]),
        linears([[block.ff.net[0].proj]]),
        linears([[block.ff.net[2]]]),
    )
    text = Stream(
        linears([[block.norm1_context.linear]]),
        linears([[attn.add_q_proj, attn.add_k_proj, attn.add_v_proj]]),
        attn.norm_added_q.weight,
        attn.norm_added_k.weight,
        linears([[attn.to_add_out]]),
        linears([[block.ff_context.net[0].proj]]),
        linears([[block.ff_context.net[2]]]),
    )
    return DoubleBlock(image, text, attn.heads)


def single_weights(block: Any, quantize: Quantize) -> SingleBlock:
    """The weights of a `FluxSingleTransformerBlock`, as `double_weights`."""
    attn, linears = block.attn, partial(linears_of, quantize=quantize)
    return SingleBlock(
        linears([[block.norm.linear]]),
        linears([[attn.to_q, attn.to_k, attn.to_v], [block.proj_mlp]]),
        attn.norm_q.weight,
        attn.norm_k.weight,
        linears([[block.proj_out]]),
        attn.heads,
    )


def run_double(
    block: DoubleBlock,
    keep: Keep,
    image_BTD: Tensor,
    text_BTD: Tensor,
    time_BD: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """A double block; returns text and image tokens, in diffusers' order."""
    image_mod, text_mod = (_modulation(s.modulation, time_BD) for s in (block.image, block.text))

    def run(image_BTD: Tensor, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
        text_qkv = _double_qkv(block.text, text_BTD, text_mod)
        image_qkv = _double_qkv(block.image, image_BTD, image_mod)
        norms = [norm for s in (block.text, block.image) for norm in (s.q_norm_C, s.k_norm_C)]
        out_BTD, _ = attention([text_qkv, image_qkv], norms, *rotary, block.heads)
        num_text = text_BTD.shape[1]
        return (
            _double_rest(block.text, text_BTD, out_BTD[:, :num_text], text_mod),
            _double_rest(block.image, image_BTD, out_BTD[:, num_text:], image_mod),
        )

    return _recomputing(run, keep, image_BTD, text_BTD)


def run_single(
    block: SingleBlock,
    keep: Keep,
    image_BTD: Tensor,
    text_BTD: Tensor,
    time_BD: Tensor,
    rotary: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """A single block; takes and returns image and text tokens as `run_double`."""
    shift, scale, gate = _modulation(block.modulation, time_BD).chunk(3, dim=2)

    def run(image_BTD: Tensor, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
        x_BTD = torch.cat([text_BTD, image_BTD], dim=1)
        qkv_BTN, up_BTF = _linears(block.qkv_up, _normalized(x_BTD, scale, shift))
        norms = [block.q_norm_C, block.k_norm_C]
        attention_BTD, _ = attention([qkv_BTN], norms, *rotary, block.heads)
        (out_BTD,) = _linears(block.out, attention_BTD, F.gelu(up_BTF, approximate="tanh"))
        x_BTD = x_BTD + gate * out_BTD
        num_text = text_BTD.shape[1]
        return x_BTD[:, :num_text], x_BTD[:, num_text:]

    return _recomputing(run, keep, image_BTD, text_BTD)


def _double_qkv(stream: Stream, x_BTD: Tensor, modulation: Tensor) -> Tensor:
    shift, scale, *_ = modulation.chunk(6, dim=2)
    (qkv_BTN,) = _linears(stream.qkv, _normalized(x_BTD, scale, shift))
    return qkv_BTN


def _double_rest(stream: Stream, x_BTD: Tensor, out_BTD: Tensor, modulation: Tensor) -> Tensor:
    _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=2)
    (attention_BTD,) = _linears(stream.attention_out, out_BTD)
    x_BTD = x_BTD + gate * attention_BTD
    (up_BTF,) = _linears(stream.up, _normalized(x_BTD, mlp_scale, mlp_shift))
    (down_BTD,) = _linears(stream.down, F.gelu(up_BTF, approximate="tanh"))
    return x_BTD + mlp_gate * down_BTD


def _modulation(linears: Linears, time_BD: Tensor) -> Tensor:
    """Shifts, scales and gates, [B, 1, ...]."""
    return adapted(linears, F.silu(time_BD))[0][:, None]


def _linears(linears: Linears, *xs_BTD: Tensor) -> list[Tensor]:
    outputs = adapted(linears, *(x.flatten(0, 1) for x in xs_BTD))
    return [y.reshape(*xs_BTD[0].shape[:2], -1) for y in outputs]


def _normalized(x_BTD: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normal = F.layer_norm(x_BTD.float(), x_BTD.shape[-1:], eps=_LAYER_NORM_EPS)
    return (normal * (1 + scale) + shift).to(x_BTD.dtype)


def _recomputing(
    run: Callable[..., tuple[Tensor, Tensor]], keep: Keep, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    if not torch.is_grad_enabled():
        return run(*inputs)
    policies = partial(create_selective_checkpoint_contexts, partial(_policy, keep))
    outputs: tuple[Tensor, Tensor] = checkpoint(
        run, *inputs, use_reentrant=False, context_fn=policies, preserve_rng_state=False
    )
    return outputs


def _policy(keep: Keep, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT[keep] else CheckpointPolicy.PREFER_RECOMPUTE
