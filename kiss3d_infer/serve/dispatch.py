"""Takes waiting tasks from the store and leads each through its stages."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kiss3d_infer.serve.assets import AssetStore
from kiss3d_infer.serve.config import QueueConfig
from kiss3d_infer.serve.stages import STAGES, StageResult
from kiss3d_infer.serve.store import Task, TaskStore

# Ray Serve writes this logger to the log file of the replica.
logger = logging.getLogger("ray.serve")

Engine = Callable[[Task], Awaitable[StageResult]]

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0


class Dispatcher:
    """A few workers on the event loop, each leading one task at a time, oldest first.

    Args:
        store: where tasks wait.
        assets: their files.
        engines: stage name -> what does the work, elsewhere.
        num_workers: tasks in progress at once; one per engine replica keeps all of them busy.
        queue: what is kept of finished tasks.
    """

    def __init__(
        self,
        store: TaskStore,
        assets: AssetStore,
        engines: Mapping[str, Engine],
        num_workers: int,
        queue: QueueConfig,
    ) -> None:
        self._store, self._assets, self._engines, self._queue = store, assets, engines, queue
        self._num_workers = num_workers
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether new tasks are no longer started."""
        return self._stopping.is_set()

    async def start(self) -> None:
        """Recover what a dead server left behind, then begin to work."""
        for task in await asyncio.to_thread(self._store.recover):
            logger.warning("task %s was left running: %s now", task.id, task.status)
        await asyncio.to_thread(self._prune)
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._num_workers)]

    async def stop(self, grace_seconds: float) -> None:
        """Start nothing more, let running tasks finish, and put back those that take too long.

        Called again meanwhile, the shorter grace counts.
        """
        self._stopping.set()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=grace_seconds + 2 * _POLL_SECONDS)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._workers = []

    async def _work(self) -> None:
        while not self.is_stopping:
            try:
                task = await asyncio.to_thread(self._store.claim)
                if task:
                    await self._lead_or_release(task)
                    await asyncio.to_thread(self._prune)
                else:
                    await asyncio.sleep(_POLL_SECONDS)
            except Exception:
                # A full disk or a locked table must not end the worker for good.
                logger.exception("the dispatcher stumbled")
                await asyncio.sleep(_RETRY_SECONDS)

    async def _lead_or_release(self, task: Task) -> None:
        try:
            await self._lead(task)
        except asyncio.CancelledError:
            self._store.release(task)
            raise

    async def _lead(self, task: Task) -> None:
        result: dict[str, Any] = {"measurements": {}, "seconds": {}, "warnings": []}
        problem = None
        try:
            for stage in STAGES[task.type]:
                if stage not in self._engines:  # queued when the server was configured otherwise
                    problem = f"this server has nothing to {stage} with"
                    break
                outcome = await self._engines[stage](task)
                if outcome.stopped:
                    return
                result["measurements"] |= outcome.measurements
                result["seconds"] |= outcome.seconds
                result["warnings"] += outcome.warnings
                if problem := outcome.problem:
                    break
        except Exception:
            logger.exception("task %s lost its worker", task.id)
            problem = "the worker process died; try again"
        if problem:
            await self._insist(self._store.fail, task, problem, result)
        else:
            await self._insist(self._store.succeed, task, result)

    async def _insist(self, write: Callable[..., None], *values: object) -> None:
        """Write how a task ended; without it the task would look as if it ran for ever."""
        while True:
            try:
                return await asyncio.to_thread(write, *values)
            except Exception:
                logger.exception("the end of a task cannot be written; trying again")
                await asyncio.sleep(_RETRY_SECONDS)

    def _prune(self) -> None:
        dropped = self._assets.over_budget(
            [task.id for task in self._store.finished()],
            max_bytes=int(self._queue.max_asset_gib * 2**30),
            max_tasks=self._queue.max_finished,
        )
        for task_id in dropped:
            self._assets.remove(task_id)
        self._store.forget(dropped)
