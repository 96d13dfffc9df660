"""What a recipe will take, worked out before any device is: batches, memory, arithmetic."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.flux.base import read_config
from kiss3d_train.adapter import add_adapter, target_modules
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import ShardIndex, Split, load_index
from kiss3d_train.data.storage import exists
from kiss3d_train.data.tile import PIXELS_PER_TOKEN, check_tile
from kiss3d_train.encoded import Encoded, encoded
from kiss3d_train.memory import GIB, Footprint, Keep, Room, room_of

ASSUMED_TILE = 512
"""In published bundles; for a plan without a data set."""
LATENT_BYTES = 256
"""Per image token: mean and log-variance of 64 values in half precision."""
_ATTENTION_BACKWARD = 2.5
"""Matrix products of flash attention's backward pass per product of its forward pass: 5 to 2."""
_H200_MATMUL, _H200_ATTENTION = 790e12, 570e12
"""FLOP/s measured on one H200 in bfloat16 at 8704 tokens: linears; cuDNN attention both ways."""


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block, and how many tokens pass it in a sample.

    Attributes:
        block: number of its block, double blocks first.
        is_last: in its block, so that no gradient needs its result.
    """

    name: str
    block: int
    is_last: bool
    inputs: int
    outputs: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What follows from a recipe; `figures.figures_of` has it in words.

    Attributes:
        index: of the data set; None while it does not exist.
        num_base: weights of the transformer.
        num_in_blocks: those of them that `base.quantize` would store smaller.
        width: of a token inside the transformer.
        num_double, num_single: its blocks.
        linears: of all blocks.
        adapted: names of those with an adapter.
        image_tokens, text_tokens: of a sample; of a published bundle while there is no data set.
        takes_guidance: the base is guidance-distilled.
        room: of a worker's device; None on a CPU.
    """

    config: TrainConfig
    index: ShardIndex | None
    num_base: int
    num_in_blocks: int
    width: int
    num_double: int
    num_single: int
    linears: tuple[Linear, ...]
    adapted: frozenset[str]
    image_tokens: int
    text_tokens: int
    takes_guidance: bool
    room: Room | None

    @cached_property
    def num_adapter(self) -> int:
        """Trainable weights."""
        rank = self.config.adapter.rank
        return sum(rank * (x.inputs + x.outputs) for x in self.linears if x.name in self.adapted)

    @property
    def memory(self) -> dict[str, float]:
        """Estimated GiB per worker by item."""
        footprint = self.footprint
        items = footprint.weights | {"activations": footprint.activations(self.keeps)}
        return {name: size / GIB for name, size in items.items()}

    @cached_property
    def footprint(self) -> Footprint:
        """What a worker's step takes of its device."""
        config, stage = self.config, self._stage
        value_bytes = 2 if config.base.dtype == "bfloat16" else 4
        share = 1 / config.scaling.workers
        masters = share if stage else 0.0  # ZeRO keeps float32 masters beside the weights
        quantized = self.num_in_blocks if config.base.quantize == "int8" else 0
        base = (self.num_base - quantized) * value_bytes + quantized
        tokens = (self.image_tokens + self.text_tokens) * config.scaling.micro_batch
        return Footprint(
            weights={
                "base": base * (share if stage == 3 else 1),
                "adapter": 4 * self.num_adapter * (share if stage == 3 else 1),
                "gradients": 4 * self.num_adapter * (share if stage >= 2 else 1),
                "optimizer": self.num_adapter * (8 * (share if stage else 1) + 4 * masters),
                **({"average": 4 * self.num_adapter} if self.has_average else {}),
            },
            tensor=tokens * self.width * value_bytes,
            num_double=self.num_double,
            num_single=self.num_single,
            is_fused=not config.engine.takes_weights_apart,
        )

    @cached_property
    def keeps(self) -> tuple[Keep, ...]:
        """What each block keeps in the room that there is."""
        return self.footprint.keeps(self.config, self.room.gib * GIB if self.room else None)

    @cached_property
    def encoded(self) -> Encoded | None:
        """What is encoded already; None while there is no data set."""
        return None if self.index is None else encoded(self.config, self.index)

    @property
    def flops_per_sample(self) -> dict[str, float]:
        """FLOP of forward and backward: no weight gradients, as the base is frozen."""
        return self._flops(self.keeps, _ATTENTION_BACKWARD)

    @property
    def model_flops_per_sample(self) -> float:
        """FLOP that the gradients need, without what is computed again to save memory."""
        return sum(
            self._flops(self.footprint.everywhere("products"), attention_backward=2).values()
        )

    @property
    def least_flops_per_sample(self) -> dict[str, float]:
        """FLOP of forward and backward with nothing computed again but by attention itself."""
        return self._flops(self.footprint.everywhere("products"), _ATTENTION_BACKWARD)

    def _flops(self, keeps: tuple[Keep, ...], attention_backward: float) -> dict[str, float]:
        rank, tokens = self.config.adapter.rank, self.image_tokens + self.text_tokens
        linears, adapter = 0.0, 0.0
        for x in self.linears:
            again = int(keeps[x.block] != "products" and not x.is_last)
            linears += 2 * x.tokens * x.inputs * x.outputs * (2 + again)
            if x.name in self.adapted:
                adapter += 2 * x.tokens * rank * (x.inputs + x.outputs) * (3 + again)
        attention = 4 * tokens**2 * self.width
        times = len(keeps) * (1 + attention_backward) + keeps.count("inputs")
        return {"linears": linears, "adapter": adapter, "attention": attention * times}

    @property
    def floor_seconds(self) -> float:
        """Least seconds per forward and backward pass of a micro batch on one H200."""
        flops = self.flops_per_sample
        matmul = (flops["linears"] + flops["adapter"]) / _H200_MATMUL
        return self.config.scaling.micro_batch * (matmul + flops["attention"] / _H200_ATTENTION)

    @property
    def floor_of_step(self) -> float:
        """Least seconds per optimizer step on as many H200s as there are workers."""
        return self.floor_seconds * self.config.accumulation

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer steps in which every training sample is seen once."""
        if self.index is None:
            return None
        return self.num_samples("train") / self.config.data.global_batch

    def num_samples(self, split: Split) -> int:
        """Samples of a split: its bundles, or their rows; 0 while there is no data set."""
        if self.index is None:
            return 0
        pictures = self.index.layout.pictures(self.config.data.domains)
        return len(pictures) * sum(self.index.counts(split))

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        return (16 if self.has_average else 12) * self.num_adapter

    @property
    def has_average(self) -> bool:
        """Whether a moving average of the adapter is kept."""
        return self.config.optimizer.ema_decay is not None

    @property
    def _stage(self) -> int:
        engine = self.config.engine
        return engine.zero_stage if engine.kind == "deepspeed" else 0


def make_plan(config: TrainConfig) -> Plan:
    """Work out a recipe's figures; needs the base's configuration files, not its weights.

    Raises:
        InputError: the base's configuration cannot be read, the adapter's targets match nothing,
            the LoRA to start from does not fit, or the tiles of the data set cannot be trained on.
    """
    transformer = _meta_transformer(config.base.path)
    index = load_index(config.data.shards) if exists(config.data.shards) else None
    layout, tile = (index.layout, index.tile) if index else (PUBLISHED, ASSUMED_TILE)
    check_tile(tile, config.data.shards)
    width, height = layout.pictures(config.data.domains)[0].image_size(tile)
    image_tokens = (width // PIXELS_PER_TOKEN) * (height // PIXELS_PER_TOKEN)
    text_tokens = _text_tokens(config.base.path)
    plan = Plan(
        config=config,
        index=index,
        num_base=sum(parameter.numel() for parameter in transformer.parameters()),
        num_in_blocks=sum(
            parameter.numel()
            for name, parameter in transformer.named_parameters()
            if "blocks." in name and parameter.ndim == 2
        ),
        width=transformer.inner_dim,
        num_double=len(transformer.transformer_blocks),
        num_single=len(transformer.single_transformer_blocks),
        linears=_block_linears(transformer, image_tokens, text_tokens),
        adapted=frozenset(target_modules(transformer, config.adapter.targets)),
        image_tokens=image_tokens,
        text_tokens=text_tokens,
        takes_guidance=transformer.config.guidance_embeds,
        room=room_of(config),
    )
    init_from = config.adapter.init_from
    if init_from is not None and init_from.exists():
        add_adapter(transformer, config.adapter, config.run.seed)  # or says what does not fit
    return plan


def adapted_modules(config: TrainConfig) -> list[str]:
    """Names of the linears that get an adapter, from the base's configuration alone."""
    return target_modules(_meta_transformer(config.base.path), config.adapter.targets)


def _meta_transformer(base: Path) -> Any:
    from diffusers import FluxTransformer2DModel

    settings = read_config(base, "transformer/config.json")
    with torch.device("meta"):
        return FluxTransformer2DModel.from_config(settings)


def _text_tokens(base: Path) -> int:
    settings = read_config(base, "tokenizer_2/tokenizer_config.json")
    return min(512, int(settings["model_max_length"]))


def _block_linears(transformer: Any, image: int, text: int) -> tuple[Linear, ...]:
    """All linears of the blocks but the modulations, which one row per sample passes."""
    num_double = len(transformer.transformer_blocks)
    linears = []
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear) or "blocks." not in name or ".norm" in name:
            continue
        kind, number, *_ = name.split(".")
        is_single = kind == "single_transformer_blocks"
        is_text = ".add_" in name or "to_add_out" in name or "_context." in name
        linears.append(
            Linear(
                name,
                block=int(number) + num_double * is_single,
                is_last=name.endswith((".net.2", ".proj_out")),
                inputs=module.in_features,
                outputs=module.out_features,
                tokens=image + text if is_single else text if is_text else image,
            )
        )
    return tuple(linears)
