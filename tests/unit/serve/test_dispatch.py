import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.serve import dispatch
from kiss3d_infer.serve.assets import MESH, AssetStore, new_task_id
from kiss3d_infer.serve.config import QueueConfig
from kiss3d_infer.serve.dispatch import Dispatcher, Engine
from kiss3d_infer.serve.stages import StageResult, run_stage
from kiss3d_infer.serve.store import Status, Task, TaskStore

FAST = QueueConfig()


def add(store: TaskStore, type_: str = "bundle_to_mesh") -> str:
    task_id = new_task_id()
    store.add(task_id, type_, {}, max_queued=100)
    return task_id


async def until(store: TaskStore, task_id: str, *wanted: Status) -> Task:
    while True:
        task = store.get(task_id)
        if task and task.status in wanted:
            return task
        await asyncio.sleep(0.01)


def run(
    dispatcher: Dispatcher, steps: Callable[[], Awaitable[None]], grace_seconds: float = 5
) -> None:
    async def main() -> None:
        await dispatcher.start()
        try:
            await asyncio.wait_for(steps(), 20)
        finally:
            await dispatcher.stop(grace_seconds)

    asyncio.run(main())


def returning(result: StageResult) -> Engine:
    async def engine(_: Task) -> StageResult:
        return result

    return engine


def test_a_prompt_goes_through_both_stages_and_their_figures_are_joined(
    store: TaskStore, assets: AssetStore
) -> None:
    engines = {
        "generate": returning(StageResult(seconds={"generate": 2.0}, warnings=("dark",))),
        "mesh": returning(StageResult({"iou": 0.97}, {"fit": 3.0})),
    }
    task_id = add(store, "text_to_3d")

    async def steps() -> None:
        task = await until(store, task_id, "succeeded", "failed")
        assert task.status == "succeeded"
        assert task.result == {
            "measurements": {"iou": 0.97},
            "seconds": {"generate": 2.0, "fit": 3.0},
            "warnings": ["dark"],
        }

    run(Dispatcher(store, assets, engines, 1, FAST), steps)


def test_a_problem_in_the_first_stage_ends_the_task_before_the_second(
    store: TaskStore, assets: AssetStore
) -> None:
    async def never(_: Task) -> StageResult:
        raise AssertionError("the second stage must not run")

    engines = {"generate": returning(StageResult(problem="noise")), "mesh": never}
    task_id = add(store, "text_to_3d")

    async def steps() -> None:
        task = await until(store, task_id, "succeeded", "failed")
        assert (task.status, task.error) == ("failed", "noise")

    run(Dispatcher(store, assets, engines, 1, FAST), steps)


def test_a_task_queued_before_the_generator_was_taken_away_fails_with_a_reason(
    store: TaskStore, assets: AssetStore
) -> None:
    task_id = add(store, "text_to_3d")

    async def steps() -> None:
        task = await until(store, task_id, "succeeded", "failed")
        assert task.error == "this server has nothing to generate with"

    run(Dispatcher(store, assets, {"mesh": returning(StageResult())}, 1, FAST), steps)


def test_a_lost_worker_fails_its_task_and_the_next_one_still_runs(
    store: TaskStore, assets: AssetStore
) -> None:
    first, second = add(store), add(store)

    async def dies_once(task: Task) -> StageResult:
        if task.id == first:
            raise ConnectionError("actor died at 10.0.0.7")
        return StageResult()

    async def steps() -> None:
        lost = await until(store, first, "failed")
        assert lost.error == "the worker process died; try again"
        await until(store, second, "succeeded")

    run(Dispatcher(store, assets, {"mesh": dies_once}, 1, FAST), steps)


class UnwritableStore(TaskStore):
    """Cannot write how a task ended, the first `failures` times."""

    failures = 0

    def succeed(self, task: Task, result: Mapping[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        super().succeed(task, result)


def test_the_end_of_a_task_is_written_once_the_disk_has_room_again(
    tmp_path: Path, assets: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_RETRY_SECONDS", 0.01)
    store = UnwritableStore(tmp_path / "tasks.sqlite3")
    store.failures = 2
    task_id = add(store)

    async def steps() -> None:
        task = await until(store, task_id, "succeeded")
        assert task.attempt == 1
        assert store.failures == 0

    run(Dispatcher(store, assets, {"mesh": returning(StageResult())}, 1, FAST), steps)


def test_stopping_puts_back_a_task_whose_end_cannot_be_written(
    tmp_path: Path, assets: AssetStore
) -> None:
    store = UnwritableStore(tmp_path / "tasks.sqlite3")
    store.failures = 10**6
    task_id = add(store)

    async def steps() -> None:
        while store.failures == 10**6:
            await asyncio.sleep(0.01)

    run(Dispatcher(store, assets, {"mesh": returning(StageResult())}, 1, FAST), steps, 0)
    task = store.get(task_id)
    assert task and task.status == "queued"


def test_stopping_waits_for_a_running_task_within_the_grace(
    store: TaskStore, assets: AssetStore
) -> None:
    async def slow(_: Task) -> StageResult:
        await asyncio.sleep(0.3)
        return StageResult()

    running, waiting = add(store), add(store)

    async def steps() -> None:
        await until(store, running, "running")

    run(Dispatcher(store, assets, {"mesh": slow}, 1, FAST), steps)
    first, second = store.get(running), store.get(waiting)
    assert first and first.status == "succeeded"
    assert second and second.status == "queued"


def test_stopping_puts_back_a_task_that_takes_longer_than_the_grace(
    store: TaskStore, assets: AssetStore
) -> None:
    async def endless(_: Task) -> StageResult:
        await asyncio.Event().wait()
        raise AssertionError

    task_id = add(store)

    async def steps() -> None:
        await until(store, task_id, "running")

    run(Dispatcher(store, assets, {"mesh": endless}, 1, FAST), steps, grace_seconds=0)
    task = store.get(task_id)
    assert task and task.status == "queued"


def test_a_second_less_patient_stop_puts_tasks_back_at_once(
    store: TaskStore, assets: AssetStore
) -> None:
    async def endless(_: Task) -> StageResult:
        await asyncio.Event().wait()
        raise AssertionError

    task_id = add(store)
    dispatcher = Dispatcher(store, assets, {"mesh": endless}, 1, FAST)

    async def steps() -> None:
        await until(store, task_id, "running")
        patient = asyncio.create_task(dispatcher.stop(3600))
        await asyncio.sleep(0)
        await dispatcher.stop(0)
        await patient

    run(dispatcher, steps)
    assert store.recover() == []
    task = store.get(task_id)
    assert task and task.status == "queued"


def test_a_task_left_running_by_a_dead_server_is_done_again(
    store: TaskStore, assets: AssetStore
) -> None:
    task_id = add(store)
    store.claim()

    async def steps() -> None:
        task = await until(store, task_id, "succeeded")
        assert task.attempt == 2

    run(Dispatcher(store, assets, {"mesh": returning(StageResult())}, 1, FAST), steps)


def test_only_so_many_finished_tasks_are_kept(store: TaskStore, assets: AssetStore) -> None:
    ids = [add(store) for _ in range(4)]

    async def writes(task: Task) -> StageResult:
        path = assets.path(task.id, MESH)
        path.parent.mkdir()
        path.write_bytes(b"glTF")
        return StageResult()

    async def steps() -> None:
        await until(store, ids[-1], "succeeded")

    run(Dispatcher(store, assets, {"mesh": writes}, 1, QueueConfig(max_finished=2)), steps)
    assert [task.id for task in store.newest()] == [ids[3], ids[2]]
    assert [assets.names(task_id) for task_id in ids] == [[], [], [MESH], [MESH]]


def test_cancelling_ends_the_work_at_its_next_step(store: TaskStore) -> None:
    task_id = add(store)
    task = store.claim()
    assert task
    steps_done: list[int] = []

    def work(_: Task, report: ProgressFn) -> StageResult:
        for step in range(10):
            report("fit", step / 10)
            steps_done.append(step)
            if step == 3:
                store.cancel(task_id)
        return StageResult()

    assert run_stage(store, task, work).stopped
    assert steps_done == [0, 1, 2, 3]


def test_bad_input_becomes_the_task_s_problem(store: TaskStore) -> None:
    add(store)
    task = store.claim()
    assert task

    def work(_: Task, __: ProgressFn) -> StageResult:
        raise InputError("the bundle is empty", fix="send one with an object")

    result = run_stage(store, task, work)
    assert result.problem == "the bundle is empty: send one with an object"


def test_an_internal_error_is_logged_and_not_shown_to_clients(
    store: TaskStore, caplog: pytest.LogCaptureFixture
) -> None:
    add(store)
    task = store.claim()
    assert task

    def work(_: Task, __: ProgressFn) -> StageResult:
        raise RuntimeError("secret path /srv/key")

    result = run_stage(store, task, work)
    assert result.problem == "internal error (RuntimeError); the server's log tells more"
    assert "secret path" in caplog.text
