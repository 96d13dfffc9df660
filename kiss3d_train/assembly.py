"""Everything that is done to a plain transformer before it trains, in the one order that works."""

from collections.abc import Sequence
from typing import Any

import torch

from kiss3d_train.adapter import add_adapter
from kiss3d_train.config import TrainConfig
from kiss3d_train.engine import Engine, create_engine
from kiss3d_train.memory import Keep
from kiss3d_train.recorded import record_passes


def assemble(
    transformer: Any, config: TrainConfig, device: torch.device, keeps: Sequence[Keep]
) -> Engine:
    """Adapter, what is computed again, fused and compiled blocks, recording, engine.

    ZeRO-3 takes weights apart, and collects those of a module when its own forward pass is called;
    it gets diffusers' modules as they are.

    Args:
        transformer: a `FluxTransformer2DModel`.
        config: the recipe.
        device: of this worker; the process group must exist.
        keeps: what each block keeps for its backward pass (`memory.Footprint.keeps`).
    """
    add_adapter(transformer, config.adapter, config.run.seed)
    if config.engine.takes_weights_apart:
        if keeps[0] == "inputs":
            transformer.enable_gradient_checkpointing()
    else:
        from kiss3d_train.fused.apply import fuse_blocks

        fuse_blocks(
            transformer,
            device,
            keeps,
            compile=config.engine.compiles_on(device.type),
            quantize=config.base.quantize,
        )
    transformer.train()
    if config.engine.records_on(device.type):
        record_passes(transformer)
    return create_engine(transformer, config, device)
