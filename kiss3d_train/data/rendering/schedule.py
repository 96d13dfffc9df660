"""Meshes to Ray's workers and back: how many at a time, and what follows when a worker is lost."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from kiss3d_infer.errors import InputError
from kiss3d_train.data.quarantine import Record
from kiss3d_train.data.rendering.process import render_watched
from kiss3d_train.data.rendering.record import record_of
from kiss3d_train.data.rendering.sample import RenderJob, RenderRequest
from kiss3d_train.data.sources import MeshItem

_MOST_PER_GPU = 16
"""Workers that share one; each holds some 2 GiB of its memory."""
_MOST_TRIES = 3
"""Of a mesh whose workers die: what it does itself ends its process only, not its worker."""
_GRACE_SECONDS = 30.0
"""How long an interrupted job waits for the meshes that it had begun."""


def gpu_share(device: str, resources: Mapping[str, float], workers: int) -> float:
    """What of a GPU each worker gets: one alone would mostly wait for its own CPU.

    Raises:
        InputError: Ray has no GPU.
    """
    if device == "cpu":
        return 0.0
    num_gpus = int(resources.get("GPU", 0))
    if num_gpus == 0:
        raise InputError("Ray has no GPU to render on", where="device", fix="use the device cpu")
    return 1 / min(math.ceil(workers / num_gpus), _MOST_PER_GPU)


def task_options(share: float) -> dict[str, Any]:
    """How Ray is to run a mesh with this share of a GPU.

    With retries of its own, Ray would repeat without end what its memory monitor has killed. A
    process that has used a GPU it would end after each mesh (max_calls), and the next one start
    CUDA anew, for seconds.
    """
    return {"num_cpus": 1, "num_gpus": share, "max_retries": 0, "max_calls": 0}


def outcomes(
    job: RenderJob, items: Sequence[MeshItem], workers: int, share: float = 0.0
) -> Generator[tuple[str, Record | None]]:
    """Each item's key and, if it failed, its record, in the order in which they end.

    A mesh whose worker or node died is tried again.
    """
    import ray
    from ray.exceptions import (
        LocalRayletDiedError,
        NodeDiedError,
        OutOfMemoryError,
        WorkerCrashedError,
    )

    lost = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError)
    requests: TypeAdapter[RenderRequest] = TypeAdapter(RenderRequest)
    task = ray.remote(**task_options(share))(render_watched)
    running: dict[Any, MeshItem] = {}
    waiting, tries = deque(items), Counter[str]()
    try:
        while waiting or running:
            # One more than there are workers, so that none waits for the driver.
            while waiting and len(running) < workers + 1:
                item = waiting.popleft()
                tries[item.key] += 1
                request = requests.dump_json(RenderRequest(job, item)).decode()
                running[task.remote(request)] = item
            (reference, *_), _ = ray.wait(list(running))
            item = running.pop(reference)
            try:
                yield item.key, ray.get(reference)
            except lost as error:
                if tries[item.key] < _MOST_TRIES:
                    waiting.append(item)
                    continue
                reason = f"its worker died {_MOST_TRIES} times, last with {type(error).__name__}"
                yield item.key, record_of(asdict(item), reason)
    finally:
        # Interrupted: what is being rendered becomes whole. Not ray.cancel: a task that ends while
        # it is cancelled makes Ray 2.60 abort this process ("complete task that was not pending").
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_GRACE_SECONDS)
