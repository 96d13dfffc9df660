"""Put the fused blocks into a transformer that has its adapter."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kiss3d_train.config import Quantize
from kiss3d_train.fused.blocks import (
    DoubleBlock,
    SingleBlock,
    double_weights,
    run_double,
    run_single,
    single_weights,
)
from kiss3d_train.memory import Keep

Run = Callable[..., tuple[Tensor, Tensor]]


def fuse_blocks(
    transformer: Any,
    device: torch.device,
    keeps: Sequence[Keep],
    *,
    compile: bool,
    quantize: Quantize,
) -> None:
    """Move a transformer to a device and replace the forward pass of its blocks.

    Names, adapters and results stay as they are. Blocks are moved one by one, so that quantized
    ones never need the memory of those that are not.

    Args:
        transformer: a `FluxTransformer2DModel`, with or without an adapter.
        keeps: what each block keeps for its backward pass, double blocks first.
        compile: with torch.compile, each kind of block once.
        quantize: what becomes of the blocks' frozen weights (`linears_of`).
    """
    doubles, singles = transformer.transformer_blocks, transformer.single_transformer_blocks
    kinds: list[tuple[Any, Run]] = [(double_weights, run_double)] * len(doubles)
    kinds += [(single_weights, run_single)] * len(singles)
    dtype = transformer.x_embedder.weight.dtype
    for block, keep, (weights, run) in zip([*doubles, *singles], keeps, kinds, strict=True):
        block.to(device)
        run = compiled(run) if compile else run
        block.forward = _Forward(weights(block, quantize), keep, run, dtype)
    transformer.to(device)


class _Forward:
    """What a block's `forward` becomes; called as diffusers' transformer calls its blocks."""

    def __init__(
        self, weights: DoubleBlock | SingleBlock, keep: Keep, run: Run, dtype: torch.dtype
    ) -> None:
        self._weights, self._keep, self._run, self._dtype = weights, keep, run, dtype

    def __call__(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        dtype = self._dtype
        inputs = [_requiring_grad(x.to(dtype)) for x in (hidden_states, encoder_hidden_states)]
        # Every precision is chosen in the blocks themselves.
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self._run(self._weights, self._keep, *inputs, temb.to(dtype), image_rotary_emb)


@cache
def compiled(run: Run) -> Run:
    """A kind of block, compiled once in a process for all blocks of that kind."""
    # It would split a block's graph at the borders of gradient buckets, which lie elsewhere.
    torch._dynamo.config.optimize_ddp = False
    return torch.compile(run, fullgraph=True, dynamic=False)


def _requiring_grad(x: Tensor) -> Tensor:
    """The same tensor for autograd as in all later blocks, so that the first needs no own graph."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()
