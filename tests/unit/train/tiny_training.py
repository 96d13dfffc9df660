"""A Flux transformer of a few thousand weights, invented samples, and a run over both."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kiss3d_infer.config import load_config
from kiss3d_infer.flux.base import base_identity
from kiss3d_train.assembly import assemble
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import load_index
from kiss3d_train.data.stream import Sample, Stream
from kiss3d_train.engine import Engine, State
from kiss3d_train.loop import learning_rate
from kiss3d_train.objective import loss_per_sample
from kiss3d_train.plan import make_plan
from kiss3d_train.resume import identity_of
from kiss3d_train.worker import Job

NUM_SAMPLES = 6


def tiny_transformer() -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


class TinySamples:
    """Encoded samples made up from their index: 4-channel latents of 4 x 8, 5 text tokens."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        mean, std = normal(4, 4, 8), 0.1 * normal(4, 4, 8).abs()
        return Sample(mean, std, normal(5, 16), normal(8), torch.zeros(5, 16), torch.zeros(8))


def reversed_on_odd_epochs(epoch: int, place: int) -> int:
    return place if epoch % 2 == 0 else NUM_SAMPLES - 1 - place


def tiny_config(changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """A recipe for the above; `changes` maps dotted keys to values."""
    raw: dict[str, Any] = {
        "run": {"dir": "unused", "steps": 100, "seed": 3},
        "base": {"path": "unused", "dtype": "float32", "gradient_checkpointing": False},
        "data": {"shards": "unused", "global_batch": 4},
        "adapter": {"rank": 2},
        "optimizer": {"lr": 1e-2},
    }
    for key, value in (changes or {}).items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    return TrainConfig.model_validate(raw)


def tiny_engine(config: TrainConfig) -> Engine:
    transformer = tiny_transformer().to(getattr(torch, config.base.dtype))
    device = "cuda" if config.scaling.use_gpu else "cpu"
    return assemble(transformer, config, torch.device(device), ("products", "products"))


def train_steps(engine: Engine, config: TrainConfig, first: int, last: int) -> list[float]:
    """Mean loss over all workers for each of the steps [first, last)."""
    stream = Stream(
        TinySamples(), reversed_on_odd_epochs, config, dist.get_rank(), dist.get_world_size()
    )
    losses = []
    for step in range(first, last):
        batches = stream.micro_batches(step)
        loss = engine.forward_backward(lambda m, b: loss_per_sample(m, b, 1.0), batches)
        engine.step(learning_rate(config, step))
        dist.all_reduce(loss)
        losses.append(loss.item() / dist.get_world_size())
    stream.close()
    return losses


class Records:
    """Metrics by step."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics.setdefault(step, {}).update(metrics)

    def show(self, line: str) -> None:
        pass

    def steps_with(self, name: str) -> list[int]:
        return sorted(step for step, metrics in self.metrics.items() if name in metrics)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_workers(
    context: BaseContext, num: int, target: Callable[..., None], *arguments: object
) -> None:
    """Call `target(rank, *arguments)` in a process for each of `num` ranks; all must succeed."""
    workers = [
        context.Process(target=target, args=(rank, *arguments))  # type: ignore[attr-defined]
        for rank in range(num)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def join_group(rank: int, world_size: int, port: int, backend: str = "gloo") -> None:
    """Start a process group as Ray Train or torchrun would."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cuda" if backend == "nccl" else "cpu",
    }
    torch.set_num_threads(1)
    dist.init_process_group(backend, rank=rank, world_size=world_size)


def state_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def flat(state: State) -> dict[str, torch.Tensor]:
    return {f"{kind}/{name}": t for kind, tensors in state.items() for name, t in tensors.items()}


def job_of(recipe: Path, overrides: Sequence[str], latents: Path, *more: str) -> Job:
    """What a worker is told of a recipe that trains an adapter."""
    config = load_config(TrainConfig, recipe, [*overrides, *more]).config
    plan, index = make_plan(config), load_index(config.data.shards)
    identity = identity_of(config, base_identity(config.base.path), index)
    flops = plan.model_flops_per_sample
    return Job(config, latents, index.layout, identity, None, "run-1", flops, plan.footprint)
