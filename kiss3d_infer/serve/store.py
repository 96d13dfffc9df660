"""The task table: a durable queue in one SQLite file, shared by every process of one machine."""

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writable_folder

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)

MAX_CRASHES = 2
"""A task that was being worked on when the server died this often is the likely cause: it fails."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    request TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    stage TEXT NOT NULL DEFAULT 'queued',
    progress REAL NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    result TEXT NOT NULL DEFAULT '{}',
    created REAL NOT NULL,
    started REAL,
    finished REAL
);
CREATE INDEX tasks_by_status ON tasks (status, number);
"""


class QueueFullError(Exception):
    """The queue holds as many waiting tasks as it may."""


class TaskStoppedError(Exception):
    """The task was cancelled, or another attempt took it over: whoever works on it must stop."""


@dataclass(frozen=True)
class Task:
    """One row: what was asked for and how far it has come. Times are seconds since the epoch."""

    id: str
    type: str
    request: dict[str, Any]
    status: Status
    stage: str
    progress: float
    attempt: int
    error: str | None
    result: dict[str, Any]
    created: float
    started: float | None
    finished: float | None


class TaskStore:
    """Tasks in SQLite (write-ahead log); every method is atomic and safe from any thread.

    A finished task never changes again. A running task belongs to one attempt: `report`, `succeed`
    and `fail` of an older attempt, or of a cancelled task, change nothing.
    """

    def __init__(self, path: Path) -> None:
        """Open the table, creating it when the file is new.

        Raises:
            InputError: the folder is not writable, or the file is no task table of this version.
        """
        writable_folder(path.parent)
        self._lock = threading.Lock()
        # isolation_level=None: each statement commits by itself, and each method is one statement.
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._create(path)
        except sqlite3.DatabaseError as error:
            raise InputError(f"cannot open the task table: {error}", where=path) from error

    def close(self) -> None:
        """Close the connection; the store cannot be used afterwards."""
        self._db.close()

    def add(self, task_id: str, type_: str, request: Mapping[str, Any], *, max_queued: int) -> Task:
        """Queue a task.

        Raises:
            QueueFullError: `max_queued` tasks are waiting already.
        """
        rows = self._execute(
            "INSERT INTO tasks (id, type, request, created) SELECT ?, ?, ?, ? "
            "WHERE (SELECT count(*) FROM tasks WHERE status = 'queued') < ? RETURNING *",
            (task_id, type_, json.dumps(request), time.time(), max_queued),
        )
        if not rows:
            raise QueueFullError
        return rows[0]

    def get(self, task_id: str) -> Task | None:
        """The task, or None when there is none of that id."""
        rows = self._execute("SELECT * FROM tasks WHERE id = ?", (task_id,))
        return rows[0] if rows else None

    def newest(self, status: Status | None = None, limit: int = 50) -> list[Task]:
        """The last `limit` tasks, newest first, of one status or of all."""
        return self._execute(
            "SELECT * FROM tasks WHERE ? IS NULL OR status = ? ORDER BY number DESC LIMIT ?",
            (status, status, limit),
        )

    def counts(self) -> dict[Status, int]:
        """How many tasks have each status."""
        with self._lock:
            rows = self._db.execute("SELECT status, count(*) FROM tasks GROUP BY status").fetchall()
        found = dict(tuple(row) for row in rows)
        return {status: found.get(status, 0) for status in STATUSES}

    def claim(self) -> Task | None:
        """Start the oldest waiting task and return it, or None when nothing waits."""
        rows = self._execute(
            "UPDATE tasks SET status = 'running', attempt = attempt + 1, started = ? "
            "WHERE number = (SELECT min(number) FROM tasks WHERE status = 'queued') RETURNING *",
            (time.time(),),
        )
        return rows[0] if rows else None

    def report(self, task: Task, stage: str, progress: float) -> None:
        """Record how far an attempt has come; `progress` is the share done of this stage.

        Raises:
            TaskStoppedError: the attempt no longer holds the task.
        """
        if not self._execute(
            "UPDATE tasks SET stage = ?, progress = ? "
            "WHERE id = ? AND attempt = ? AND status = 'running' RETURNING *",
            (stage, min(max(progress, 0.0), 1.0), task.id, task.attempt),
        ):
            raise TaskStoppedError(task.id)

    def succeed(self, task: Task, result: Mapping[str, Any]) -> None:
        """Finish an attempt with its result; changes nothing when the task was taken from it."""
        self._execute(
            "UPDATE tasks SET status = 'succeeded', stage = 'done', progress = 1, result = ?, "
            "finished = ? WHERE id = ? AND attempt = ? AND status = 'running' RETURNING *",
            (json.dumps(result), time.time(), task.id, task.attempt),
        )

    def fail(self, task: Task, error: str, result: Mapping[str, Any] | None = None) -> None:
        """Finish an attempt with an error; the stage stays, to show where it happened."""
        self._execute(
            "UPDATE tasks SET status = 'failed', error = ?, result = ?, finished = ? "
            "WHERE id = ? AND attempt = ? AND status = 'running' RETURNING *",
            (error, json.dumps(result or {}), time.time(), task.id, task.attempt),
        )

    def release(self, task: Task) -> None:
        """Put a running task back at its old place in the queue."""
        self._execute(
            "UPDATE tasks SET status = 'queued', stage = 'queued', progress = 0, started = NULL "
            "WHERE id = ? AND attempt = ? AND status = 'running' RETURNING *",
            (task.id, task.attempt),
        )

    def cancel(self, task_id: str) -> Task | None:
        """Cancel the task unless it has finished; return it as it stands now, None if unknown."""
        self._execute(
            "UPDATE tasks SET status = 'cancelled', finished = ? "
            "WHERE id = ? AND status IN ('queued', 'running') RETURNING *",
            (time.time(), task_id),
        )
        return self.get(task_id)

    def recover(self) -> list[Task]:
        """Deal with tasks that a dead server left running: queue them again, or give them up.

        Call it once at start, before anything claims. Returns the tasks it changed.
        """
        error = f"the server died {MAX_CRASHES} times while it worked on this task"
        return self._execute(
            "UPDATE tasks SET (crashes, status, stage, progress, error, finished) = ("
            "SELECT crashes + 1, iif(hopeless, 'failed', 'queued'), iif(hopeless, stage, 'queued'),"
            " 0, iif(hopeless, ?, NULL), iif(hopeless, ?, NULL) "
            "FROM (SELECT tasks.crashes + 1 >= ? AS hopeless)) "
            "WHERE status = 'running' RETURNING *",
            (error, time.time(), MAX_CRASHES),
        )

    def finished(self) -> list[Task]:
        """Every task that has ended, the longest ended first."""
        return self._execute(
            "SELECT * FROM tasks WHERE finished IS NOT NULL ORDER BY finished",
            (),
        )

    def forget(self, task_ids: Sequence[str]) -> None:
        """Remove rows."""
        with self._lock:
            self._db.executemany("DELETE FROM tasks WHERE id = ?", [(id_,) for id_ in task_ids])

    def _create(self, path: Path) -> None:
        # The write lock is taken before looking, as several processes open the file at start.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        finally:
            self._db.execute("COMMIT")
        if version not in (0, _SCHEMA_VERSION):
            raise InputError(
                f"the task table has version {version}, this program knows {_SCHEMA_VERSION}",
                where=path,
                fix="choose another data folder, or run the version that wrote it",
            )

    def _execute(self, sql: str, values: Sequence[object]) -> list[Task]:
        with self._lock:
            rows = self._db.execute(sql, values).fetchall()
        return [_task(row) for row in rows]


def _task(row: sqlite3.Row) -> Task:
    columns = {key: row[key] for key in row.keys() if key not in ("number", "crashes")}  # noqa: SIM118
    columns |= {key: json.loads(columns[key]) for key in ("request", "result")}
    return Task(**columns)
