import sqlite3
import threading
from pathlib import Path

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_infer.serve.store import QueueFullError, TaskStoppedError, TaskStore


def add(store: TaskStore, *ids: str) -> None:
    for task_id in ids:
        store.add(task_id, "text_to_3d", {"prompt": "a chair"}, max_queued=100)


def test_tasks_are_claimed_oldest_first_and_once(store: TaskStore) -> None:
    add(store, "a", "b", "c")
    claimed = [task.id for task in (store.claim(), store.claim(), store.claim()) if task]
    assert claimed == ["a", "b", "c"]
    assert store.claim() is None


def test_many_threads_and_two_connections_never_claim_the_same_task(tmp_path: Path) -> None:
    stores = [TaskStore(tmp_path / "tasks.sqlite3") for _ in range(2)]
    add(stores[0], *(f"{i}" for i in range(60)))
    claimed: list[str] = []

    def work(store: TaskStore) -> None:
        while task := store.claim():
            claimed.append(task.id)

    threads = [threading.Thread(target=work, args=(stores[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed, key=int) == [f"{i}" for i in range(60)]


def test_a_full_queue_refuses_and_counts_only_waiting_tasks(store: TaskStore) -> None:
    store.add("a", "text_to_3d", {}, max_queued=1)
    with pytest.raises(QueueFullError):
        store.add("b", "text_to_3d", {}, max_queued=1)
    assert store.get("b") is None
    store.claim()
    store.add("b", "text_to_3d", {}, max_queued=1)


def test_progress_and_result_are_kept_across_a_reopening(tmp_path: Path) -> None:
    store = TaskStore(tmp_path / "tasks.sqlite3")
    add(store, "a", "b")
    first, second = store.claim(), store.claim()
    assert first and second
    store.succeed(first, {"measurements": {"iou": 0.98}})
    store.report(second, "mesh", 0.25)
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite3")
    done, going = reopened.get("a"), reopened.get("b")
    assert done and going
    assert (done.status, done.progress, done.result) == (
        "succeeded",
        1.0,
        {"measurements": {"iou": 0.98}},
    )
    assert done.request == {"prompt": "a chair"}
    assert (going.status, going.stage, going.progress) == ("running", "mesh", 0.25)


def test_cancelling_a_running_task_stops_its_worker_at_the_next_report(store: TaskStore) -> None:
    add(store, "a")
    task = store.claim()
    assert task
    store.cancel("a")
    with pytest.raises(TaskStoppedError):
        store.report(task, "generate", 0.5)
    store.succeed(task, {})
    after = store.get("a")
    assert after and after.status == "cancelled"


def test_a_finished_task_cannot_be_cancelled(store: TaskStore) -> None:
    add(store, "a")
    task = store.claim()
    assert task
    store.fail(task, "no object in the bundle")
    after = store.cancel("a")
    assert after and (after.status, after.error) == ("failed", "no object in the bundle")


def test_a_restart_queues_running_tasks_again_and_fences_off_the_old_attempt(
    store: TaskStore,
) -> None:
    add(store, "a", "b")
    old = store.claim()
    assert old
    assert [task.status for task in store.recover()] == ["queued"]
    new = store.claim()
    assert new and new.id == "a"
    with pytest.raises(TaskStoppedError):
        store.report(old, "generate", 0.9)
    store.report(new, "generate", 0.1)


def test_a_task_that_keeps_killing_the_server_is_given_up_with_a_reason(store: TaskStore) -> None:
    add(store, "a")
    for _ in range(2):
        store.claim()
        store.recover()
    task = store.get("a")
    assert task and task.status == "failed" and task.finished
    assert "died 2 times" in (task.error or "")


def test_tasks_put_back_at_a_clean_stop_are_never_given_up(store: TaskStore) -> None:
    add(store, "a", "b")
    for _ in range(5):
        task = store.claim()
        assert task and task.id == "a"
        store.release(task)
        assert store.recover() == []


def test_newest_filters_by_status(store: TaskStore) -> None:
    add(store, "a", "b", "c")
    store.claim()
    assert [task.id for task in store.newest()] == ["c", "b", "a"]
    assert [task.id for task in store.newest("running")] == ["a"]
    assert [task.id for task in store.newest("queued", limit=1)] == ["c"]
    assert store.counts() == {
        "queued": 2,
        "running": 1,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 0,
    }


def test_a_file_that_is_no_task_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.sqlite3"
    path.write_bytes(b"this is a text file, not a database" * 100)
    with pytest.raises(InputError, match="cannot open the task table"):
        TaskStore(path)


def test_a_table_of_another_version_is_refused_unharmed(tmp_path: Path) -> None:
    path = tmp_path / "tasks.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(InputError, match="version 9"):
        TaskStore(path)
