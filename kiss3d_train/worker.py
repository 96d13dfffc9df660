"""What each training process does: build the model, take over a checkpoint, train, export."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import LoraMetadata, save_lora
from kiss3d_infer.tracking import Tracker
from kiss3d_train import checkpoint
from kiss3d_train.assembly import assemble
from kiss3d_train.average import AVERAGE_KIND, WeightAverage
from kiss3d_train.checkpoint import Best, Checkpoint, Identity, best_at, checkpoints_of
from kiss3d_train.config import TrainConfig
from kiss3d_train.curves import LossCurves, tile_losses, training_loss
from kiss3d_train.data.cache import DiskCache
from kiss3d_train.data.latents import LatentSplit, open_split
from kiss3d_train.data.lost import may_skip
from kiss3d_train.data.resident import ResidentStream, read_resident
from kiss3d_train.data.shards import load_index
from kiss3d_train.data.storage import Place
from kiss3d_train.data.stream import Stream
from kiss3d_train.engine import Engine, State
from kiss3d_train.logs import redirect_output
from kiss3d_train.loop import Batches, Sink, Trainer
from kiss3d_train.memory import Footprint, budget_of
from kiss3d_train.objective import Batch, squared_errors
from kiss3d_train.samples.rounds import Round
from kiss3d_train.summary import adapter_of, averaged_adapter_of, best_adapter_of
from kiss3d_train.validation import held_out_loss

LOG_FILE = "train.log"
"""Progress lines in run.dir."""
METRICS_FILE = "metrics.jsonl"
"""Every point of MLflow's curves, in run.dir; sent again where a crash or an outage lost some."""
_PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s by NVIDIA's data sheets."""


@dataclass(frozen=True)
class Job:
    """Everything a worker is told; all paths are absolute.

    Attributes:
        latents: cache written by `encode_shards`; None where whole parts train.
        layout: of the bundles that are trained on.
        initial: checkpoint to start from when run.dir has none.
        tracking_run: MLflow run id.
        flops_per_sample: arithmetic of the model, forward and backward; 0 where unknown.
        footprint: memory of a worker; None where whole parts train.
    """

    config: TrainConfig
    latents: Place | None
    layout: BundleLayout
    identity: Identity
    initial: Path | None
    tracking_run: str
    flops_per_sample: float
    footprint: Footprint | None


@dataclass(frozen=True)
class Outcome:
    """What rank 0 returns.

    Attributes:
        step: optimizer steps done since the beginning of training.
        losses: mean loss of each step done by this process.
        validation: last held-out metrics.
        seconds: spent in the loop.
        peak_memory_bytes: of rank 0; device memory on a GPU, resident memory on the CPU.
        validation_at_start: held-out metrics of the LoRA that training started from; empty without
            one, and for a run that was resumed.
        best: lowest held-out loss, if any was measured.
    """

    step: int
    losses: tuple[float, ...]
    validation: dict[str, float]
    seconds: float
    peak_memory_bytes: int
    validation_at_start: dict[str, float] = field(default_factory=dict)
    best: Best | None = None


def ray_worker(arguments: dict[str, Job]) -> Outcome:
    """The function that Ray Train runs on every worker; the process group is up by then."""
    import ray.train

    job = arguments["job"]
    do_work = work
    if job.config.full is not None:
        from kiss3d_train.whole.work import work as do_work
    rank = ray.train.get_context().get_world_rank()
    redirect_output(job.config.run.dir, f"worker-{rank}")
    if rank > 0:
        return do_work(job, None)
    with _opened_sink(job) as sink:
        return do_work(job, sink)


def work(job: Job, sink: Sink | None) -> Outcome:
    """Train on this worker, in the process group that exists. `sink` is None but on rank 0."""
    if job.latents is None or job.footprint is None:
        raise ValueError("an adapter trains on latents, within a footprint")
    config, device = job.config, device_of(job.config)
    index = load_index(config.data.shards)
    cache = _cache(config)
    may_lack = may_skip("train", config.data.on_corrupt)
    training = open_split(job.latents, index, "train", cache, may_lack=may_lack)
    held_out = open_split(job.latents, index, "val", cache)
    # Before the model, whose blocks keep what is left of the memory.
    stream = _open_stream(training, config, device, sink)
    transformer = load_base(
        config.base.path, dtype=config.base.dtype, parts=("transformer",)
    ).transformer
    guidance = config.objective.guidance if transformer.config.guidance_embeds else None
    keeps = job.footprint.keeps(config, budget_of(config, device))
    engine = assemble(transformer, config, device, keeps)
    first_step, average = restore(job, engine)
    validation: dict[str, float] = {}

    def tiles(model: torch.nn.Module, batch: Batch) -> Tensor:
        return tile_losses(squared_errors(model, batch, guidance), batch, job.layout)

    def validate() -> dict[str, float]:
        with average.in_place() if average else nullcontext():
            validation.update(held_out_loss(engine, tiles, held_out, config, job.layout))
        return validation

    def request_samples(step: int) -> None:
        try:
            _write_adapter(job, Round(config.run.dir, step).adapter, trainer.state())
        except InputError as error:  # a full disk, which the next checkpoint will not overlook
            if sink:
                sink.show(f"warning: no samples of step {step}: {error}")

    curves = LossCurves(job.layout, device)
    has_validation = config.validation.samples > 0 and len(held_out) > 0
    trainer = Trainer(
        config=config,
        engine=engine,
        stream=stream,
        loss_fn=training_loss(config.objective, guidance, curves),
        validate=validate if has_validation else None,
        save=lambda step: save(job, trainer.state(), step, trainer.best),
        sink=sink,
        mfu_per_rate=_mfu_per_rate(job, device),
        curves=curves,
        average=average,
        best=best_at(checkpoints_of(config), first_step),
        request_samples=request_samples if config.samples.num_drawings else None,
    )
    at_start: dict[str, float] = {}
    if has_validation and first_step == 0 and config.adapter.init_from is not None:
        at_start |= validate()
        trainer.log(at_start, 0)
    began = time.perf_counter()
    step, losses = trainer.run(first_step)
    seconds = time.perf_counter() - began
    stream.close()
    _export(job, trainer.state())
    peak = peak_memory(device)
    return Outcome(step, tuple(losses), validation, seconds, peak, at_start, trainer.best)


@contextmanager
def _opened_sink(job: Job) -> Iterator[Sink]:
    """MLflow for metrics, and a file in run.dir for lines that the driver shows."""
    with (
        Tracker.attach(
            job.config.tracking.uri, job.tracking_run, job.config.run.dir / METRICS_FILE
        ) as tracker,
        (job.config.run.dir / LOG_FILE).open("a", encoding="utf-8", buffering=1) as log,
    ):
        yield _RunSink(tracker, log)


class _RunSink:
    def __init__(self, tracker: Tracker, log: TextIO) -> None:
        self._tracker, self._log = tracker, log

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._tracker.log_metrics(metrics, step)

    def show(self, line: str) -> None:
        self._log.write(f"{line}\n")


def _open_stream(
    training: LatentSplit, config: TrainConfig, device: torch.device, sink: Sink | None
) -> Batches:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if not config.data.resident:
        return Stream(training, training.order(config.run.seed), config, rank, world_size)
    show = sink.show if sink else None
    samples = read_resident(training, device, threads=config.data.readers, show=show)
    return ResidentStream(samples, config, rank, world_size)


def _cache(config: TrainConfig) -> DiskCache | None:
    folder = config.data.cache
    return None if folder is None else DiskCache(folder, int(config.data.cache_gb * 1e9))


def device_of(config: TrainConfig) -> torch.device:
    """This worker's device; must be asked before CUDA starts."""
    if config.scaling.use_gpu:
        import ray.train.torch

        # Otherwise gaps between the tensors of a step stay unused; must be set before CUDA starts.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

        device: torch.device = ray.train.torch.get_device()
        return device
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(config.scaling.cpus_per_worker)
    return torch.device("cpu")


def restore(job: Job, engine: Engine) -> tuple[int, WeightAverage | None]:
    """Take over the newest checkpoint, the same on all workers: its steps, and the average."""
    folder = checkpoints_of(job.config)
    found: Checkpoint | None = None
    if dist.get_rank() == 0:
        found = checkpoint.load_newest(folder)
    step = torch.tensor(-1 if found is None else found.step, device=engine.device)
    dist.broadcast(step, src=0)
    if found is None:
        if int(step) >= 0:
            found = checkpoint.load(checkpoint.path_of(folder, int(step)))
        elif job.initial is not None:
            found = checkpoint.load(job.initial)
    if found is not None:
        checkpoint.require_same(found.identity, job.identity, found.path)
        engine.scatter(found.state, found.step)
    decay, average = job.config.optimizer.ema_decay, None
    if decay is not None:
        earlier = found.state.get(AVERAGE_KIND) if found else None
        average = WeightAverage(engine.parameters, decay, earlier)
    return found.step if found else 0, average


def save(job: Job, state: State, step: int, best: Best | None = None) -> None:
    """Write, on rank 0, a checkpoint after so many steps."""
    if best and best.step == step:
        # Before the checkpoint: a run that is killed in between does the step again.
        _write_adapter(job, best_adapter_of(job.config.run.dir).parent, state)
    if dist.get_rank() == 0:
        checkpoint.save(
            checkpoints_of(job.config),
            step,
            state,
            job.identity,
            job.tracking_run,
            keep=job.config.checkpoint.keep,
            best=best,
        )


def _export(job: Job, state: State) -> None:
    """Write the adapter, and its average, where `kiss3d generate --lora` and diffusers find it."""
    if dist.get_rank() == 0:
        metadata = _metadata(job)
        averaged = averaged_adapter_of(job.config.run.dir)
        averaged.unlink(missing_ok=True)  # of an earlier end, when the run kept one
        if AVERAGE_KIND in state:
            save_lora(averaged.parent, state[AVERAGE_KIND], metadata)
        save_lora(adapter_of(job.config.run.dir).parent, state["weight"], metadata)


def measured_weights(state: State) -> dict[str, Tensor]:
    """Of a gathered state, the weights whose held-out losses are measured."""
    return state.get(AVERAGE_KIND, state["weight"])


def _write_adapter(job: Job, folder: Path, state: State) -> None:
    """Write, on rank 0, the adapter whose held-out losses are measured."""
    if dist.get_rank() == 0:
        save_lora(folder, measured_weights(state), _metadata(job))


def _metadata(job: Job) -> LoraMetadata:
    adapter = job.config.adapter
    return LoraMetadata(
        rank=adapter.rank,
        alpha=adapter.resolved_alpha,
        base=job.identity.base,
        data=job.identity.data,
        layout=job.layout,
        domains=job.config.data.domains,
    )


def _mfu_per_rate(job: Job, device: torch.device) -> float | None:
    if device.type != "cuda" or job.config.base.dtype != "bfloat16":
        return None
    peak = _PEAK_FLOPS.get(torch.cuda.get_device_name(device))
    return job.flops_per_sample / (peak * dist.get_world_size()) if peak else None


def peak_memory(device: torch.device) -> int:
    """Bytes of device memory on a GPU, of resident memory on the CPU, at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
