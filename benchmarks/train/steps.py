"""One optimizer step, by our trainer and as diffusers' public Flux LoRA script does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.train.model import InventedSamples, Size, random_transformer
from kiss3d_train.adapter import target_modules
from kiss3d_train.assembly import assemble
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.stream import Stream
from kiss3d_train.loop import Trainer
from kiss3d_train.memory import Keep
from kiss3d_train.objective import loss_per_sample

_GUIDANCE = 1.0


@dataclass(frozen=True)
class Training:
    """Something that trains, step by step.

    Attributes:
        step: does optimizer step number `n`, counted from 0.
        losses: fetches those since the last call.
        stream: of its batches.
    """

    step: Callable[[int], None]
    losses: Callable[[], list[float]]
    stream: Stream


def ours(
    size: Size, config: TrainConfig, device: torch.device, keeps: tuple[Keep, ...]
) -> Training:
    """`Trainer.train_step` on invented samples."""
    engine = assemble(random_transformer(size, device), config, device, keeps)
    stream = _stream(size, config)
    trainer = Trainer(
        config=config,
        engine=engine,
        stream=stream,
        loss_fn=lambda model, batch: loss_per_sample(model, batch, _GUIDANCE),
        validate=None,
        save=lambda step: None,
        sink=None,
    )
    done = 0

    def step(number: int) -> None:
        nonlocal done
        trainer.train_step(number)
        done = number + 1

    return Training(step, lambda: trainer.drain(done), stream)


def diffusers_recipe(
    size: Size, config: TrainConfig, device: torch.device, adapter_dtype: torch.dtype
) -> Training:
    """What `train_dreambooth_lora_flux.py` does with cached latents and embeddings.

    Eager, peft, bfloat16 autocast, gradient checkpointing of every block, AdamW, clipping, and the
    loss fetched in every step for the progress bar. cuDNN attention is off, as it crashes here.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    transformer = _with_peft(random_transformer(size, device), config, adapter_dtype)
    weights = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4)
    stream, losses = _stream(size, config), list[float]()

    def step(number: int) -> None:
        (batch,) = stream.micro_batches(number)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = loss_per_sample(transformer, batch.to(device), _GUIDANCE).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().item())

    return Training(step, lambda: _emptied(losses), stream)


def _with_peft(transformer: Any, config: TrainConfig, dtype: torch.dtype) -> Any:
    from peft import LoraConfig

    names = target_modules(transformer, config.adapter.targets)
    transformer.requires_grad_(False)
    rank = config.adapter.rank
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=names)
    )
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    transformer.enable_gradient_checkpointing()
    transformer.train()
    return transformer


def _stream(size: Size, config: TrainConfig) -> Stream:
    samples = InventedSamples(size)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return Stream(samples, lambda epoch, place: place, config, rank, world_size)


def _emptied(values: list[float]) -> list[float]:
    taken = list(values)
    values.clear()
    return taken
