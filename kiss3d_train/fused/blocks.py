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

from kiss3d_train.fused.attention import attention
from kiss3d_train.fused.lora import Linears, adapted, joined
from kiss3d_train.memory import Keep

_LAYER_NORM_EPS = 1e-6
_ops = torch.ops
_KEPT: dict[Keep, frozenset[Any]] = {
    "products": frozenset(
        {
            _ops.kiss3d.lora_linear.default,
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


def double_weights(block: Any, quantize: bool) -> DoubleBlock:
    """The weights of a `FluxTransformerBlock`, adapters included, which stay shared with it."""
    attn, join = block.attn, partial(joined, quantize=quantize)
    image = Stream(
        join([block.norm1.linear]),
        join([attn.to_q, attn.to_k, attn.to_v]),
        attn.norm_q.weight,
        attn.norm_k.weight,
        join([attn.to_out[0]]),
        join([block.ff.net[0].proj]),
        join([block.ff.net[2]]),
    )
    text = Stream(
        join([block.norm1_context.linear]),
        join([attn.add_q_proj, attn.add_k_proj, attn.add_v_proj]),
        attn.norm_added_q.weight,
        attn.norm_added_k.weight,
        join([attn.to_add_out]),
        join([block.ff_context.net[0].proj]),
        join([block.ff_context.net[2]]),
    )
    return DoubleBlock(image, text, attn.heads)


def single_weights(block: Any, quantize: bool) -> SingleBlock:
    """The weights of a `FluxSingleTransformerBlock`, as `double_weights`."""
    attn, join = block.attn, partial(joined, quantize=quantize)
    return SingleBlock(
        join([block.norm.linear]),
        join([attn.to_q, attn.to_k, attn.to_v, block.proj_mlp]),
        attn.norm_q.weight,
        attn.norm_k.weight,
        join([block.proj_out]),
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
        text_qkv = _double_qkv(block.text, text_BTD, text_mod, block.heads)
        image_qkv = _double_qkv(block.image, image_BTD, image_mod, block.heads)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(text_qkv, image_qkv, strict=True))
        out_BTD, _ = attention(_rotated(q, rotary), _rotated(k, rotary), v)
        num_text = text_BTD.shape[1]
        out_BTD = out_BTD.flatten(2)
        text_BTD = _double_rest(block.text, text_BTD, out_BTD[:, :num_text], text_mod)
        image_BTD = _double_rest(block.image, image_BTD, out_BTD[:, num_text:], image_mod)
        return text_BTD, image_BTD

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
        width = x_BTD.shape[2]
        y_BTN = _linear(block.qkv_up, _normalized(x_BTD, scale, shift))
        q, k, v = (y_BTN[..., i * width : (i + 1) * width] for i in range(3))
        q, k, v = (_by_head(x, block.heads) for x in (q, k, v))
        q, k = _rms(q, block.q_norm_C), _rms(k, block.k_norm_C)
        out_BTHC, _ = attention(_rotated(q, rotary), _rotated(k, rotary), v.contiguous())
        up_BTF = F.gelu(y_BTN[..., 3 * width :], approximate="tanh")
        out_BTD = _linear(block.out, torch.cat([out_BTHC.flatten(2), up_BTF], dim=2))
        x_BTD = x_BTD + gate * out_BTD
        num_text = text_BTD.shape[1]
        return x_BTD[:, :num_text], x_BTD[:, num_text:]

    return _recomputing(run, keep, image_BTD, text_BTD)


def _double_qkv(
    stream: Stream, x_BTD: Tensor, modulation: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale, *_ = modulation.chunk(6, dim=2)
    y_BTN = _linear(stream.qkv, _normalized(x_BTD, scale, shift))
    q, k, v = (_by_head(x, heads) for x in y_BTN.chunk(3, dim=2))
    return _rms(q, stream.q_norm_C), _rms(k, stream.k_norm_C), v


def _double_rest(stream: Stream, x_BTD: Tensor, out_BTD: Tensor, modulation: Tensor) -> Tensor:
    _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=2)
    x_BTD = x_BTD + gate * _linear(stream.attention_out, out_BTD)
    up_BTF = _linear(stream.up, _normalized(x_BTD, mlp_scale, mlp_shift))
    down_BTD = _linear(stream.down, F.gelu(up_BTF, approximate="tanh"))
    return x_BTD + mlp_gate * down_BTD


def _modulation(linears: Linears, time_BD: Tensor) -> Tensor:
    """Shifts, scales and gates, [B, 1, ...]."""
    return adapted(linears, F.silu(time_BD))[:, None]


def _linear(linears: Linears, x_BTD: Tensor) -> Tensor:
    return adapted(linears, x_BTD.flatten(0, 1)).reshape(*x_BTD.shape[:2], -1)


def _by_head(x_BTD: Tensor, heads: int) -> Tensor:
    return x_BTD.reshape(*x_BTD.shape[:2], heads, -1)


def _normalized(x_BTD: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normal = F.layer_norm(x_BTD.float(), x_BTD.shape[-1:], eps=_LAYER_NORM_EPS)
    return (normal * (1 + scale) + shift).to(x_BTD.dtype)


def _rms(x_BTHC: Tensor, weight_C: Tensor) -> Tensor:
    normal = F.rms_norm(x_BTHC.float(), x_BTHC.shape[-1:], weight_C.float(), _LAYER_NORM_EPS)
    return normal.to(x_BTHC.dtype)


def _rotated(x_BTHC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    from diffusers.models.embeddings import apply_rotary_emb

    rotated: Tensor = apply_rotary_emb(x_BTHC, rotary, sequence_dim=1)
    return rotated


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
