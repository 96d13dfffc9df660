"""What each process does that trains whole parts; beside `kiss3d_train.worker`, for adapters."""

import time
from contextlib import nullcontext

import torch
import torch.distributed as dist

from kiss3d_train.data.resident import ShowFn
from kiss3d_train.data.shards import ShardReader
from kiss3d_train.engine import create_engine
from kiss3d_train.loop import Sink, Trainer
from kiss3d_train.summary import base_of
from kiss3d_train.whole.export import require_folder
from kiss3d_train.whole.task import Task
from kiss3d_train.whole.vae_task import VaeTask
from kiss3d_train.whole.view_task import ViewTask
from kiss3d_train.worker import (
    Job,
    Outcome,
    device_of,
    measured_weights,
    peak_memory,
    restore,
    save,
)


def work(job: Job, sink: Sink | None) -> Outcome:
    """Train on this worker, in the process group that exists. `sink` is None but on rank 0."""
    config, device = job.config, device_of(job.config)
    task = _open_task(job, device, sink.show if sink else None)
    engine = create_engine(task.model, config, device)
    first_step, average = restore(job, engine)
    validation: dict[str, float] = {}

    def validate() -> dict[str, float]:
        # Validation's shapes and the lack of gradients would each be compiled anew.
        with (
            average.in_place() if average else nullcontext(),
            torch.compiler.set_stance("force_eager"),
        ):
            validation.update(task.validate(engine))
        return validation

    trainer = Trainer(
        config=config,
        engine=engine,
        stream=task.stream,
        loss_fn=task.losses,
        validate=validate if task.has_validation else None,
        save=lambda step: save(job, trainer.state(), step),
        sink=sink,
        average=average,
    )
    began = time.perf_counter()
    step, losses = trainer.run(first_step)
    seconds = time.perf_counter() - began
    task.stream.close()
    state = trainer.state()
    if dist.get_rank() == 0:
        task.export(measured_weights(state), base_of(config.run.dir))
    return Outcome(step, tuple(losses), validation, seconds, peak_memory(device))


def _open_task(job: Job, device: torch.device, show: ShowFn | None) -> Task:
    config, full = job.config, job.config.full
    if full is None:
        raise ValueError("this recipe trains an adapter")
    require_folder(config.base.path)
    kind = VaeTask if full.is_vae else ViewTask
    return kind(config, full, ShardReader(config.data.shards), device, show)
