"""A row that is measured by the workers of a Ray Train job, started as the trainer starts its own.

Apart from the program that lists the rows: what Ray's workers run must come from a module.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.train.model import Size
from benchmarks.train.rows import Figures, Row, measured
from kiss3d_train.config import TrainConfig
from kiss3d_train.logs import logs_of, redirect_output
from kiss3d_train.run import check_resources, create_trainer
from kiss3d_train.worker import device_of

_BY_RANK = ("step_s", "slowest_step_s", "peak_allocated_gib", "peak_reserved_gib")
_LOG_CHARACTERS = 4000


@dataclass(frozen=True)
class Task:
    """What the workers of a row are told.

    Attributes:
        row: what is measured.
        config: its recipe, with a `run.dir` for logs and Ray's files.
    """

    row: Row
    size: Size
    config: TrainConfig
    num_steps: int


def measured_by_workers(task: Task, resources: Mapping[str, float]) -> Figures:
    """Figures of rank 0, with lists by rank where ranks differ; `error` where the job failed.

    Args:
        resources: `CPU` and `GPU` of the cluster, as Ray counts them.
    """
    began = time.perf_counter()
    try:
        check_resources(task.config.scaling, resources)  # Ray would wait for them without end
        by_rank = create_trainer(_worker, {"task": task}, task.config).fit().return_value
    except Exception as error:  # the other rows are still worth having
        print(error, file=sys.stderr, flush=True)
        _show_logs(task.config.run.dir)
        return {"error": _reason(error), "job_s": time.perf_counter() - began}
    figures: Figures = dict(by_rank[0])
    for key in _BY_RANK:
        if key in figures:
            figures[f"{key}_by_rank"] = [each[key] for each in by_rank]
    return figures | {"job_s": time.perf_counter() - began}


def _worker(arguments: dict[str, Task]) -> list[Figures]:
    """Measure on every worker of a job; returns the figures of all ranks."""
    task = arguments["task"]
    redirect_output(task.config.run.dir, f"worker-{dist.get_rank()}")
    figures = measured(task.row, task.size, device_of(task.config), task.num_steps)
    by_rank: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(by_rank, figures)
    return by_rank


def _reason(error: Exception) -> str:
    """The last line of an error, or of the lowest rank's whose worker failed."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    cause = failures[min(failures)] if failures else error
    *_, last = ["", *str(cause).strip().splitlines()]
    return f"{type(cause).__name__}: {last[:500]}"


def _show_logs(folder: Path) -> None:
    """The end of what the workers of a failed row said."""
    for log in sorted(logs_of(folder).glob("worker-*.log")):
        text = log.read_text(encoding="utf-8", errors="replace")
        print(f"--- {log.name} ---\n{text[-_LOG_CHARACTERS:]}", file=sys.stderr, flush=True)
