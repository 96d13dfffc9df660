"""MLflow, and the one place that writes to it; `logged_run` reads what is there.

Nothing here ever waits for the server but `Tracker.open` and `Tracker.close`: records go into a
bounded buffer that a daemon thread empties, so that a slow or dead server never costs a step.
Points that are not delivered by the end are lost, unless a `PointLog` keeps them for the next one.
"""

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from kiss3d_infer.mlflow_server import (
    absolute_uri,
    explained,
    import_mlflow,
    is_refusal,
    new_client,
    open_run,
)
from kiss3d_infer.point_log import PointLog

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

CHANGED = "changed."
"""Before the key of a parameter that was logged with another value later: a tag."""
_MAX_POINTS_PER_REQUEST = 1000  # MLflow's own limits
_MAX_PARAMS_PER_REQUEST = 100
_MAX_PARAM_LENGTH = 6000
_MAX_DIGEST_LENGTH = 36

_MAX_PENDING = 20_000
"""Records kept while the server is away; at one a step this is hours."""
_FLUSH_EVERY_SECONDS = 1.0
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 30.0
_MAX_JOB_ATTEMPTS = 10
"""Tries of an upload, over some minutes; then it gives way to the points behind it."""
_CLOSE_SECONDS = 30.0
"""How long `close` goes on trying a server that does not answer."""
_LAST_REQUEST_SECONDS = 5.0
"""What a request that is under way then has to end."""
_SLOWEST_UPLOAD = 2e6
"""Bytes per second; `close` waits for an upload that is at least so fast."""

_log = logging.getLogger(__name__)

_Metrics = list[Any]  # of mlflow.entities.Metric
_Job = Callable[[Any], object]  # of an mlflow.MlflowClient


class Tracker:
    """One MLflow run; also a context manager that closes it with the right status.

    The process that opened the run ends it: an exception leaves it FAILED, Ctrl-C leaves it KILLED.
    Others may attach to it. A run that is reopened by its id continues: no point is logged twice,
    so the steps that are done again after a crash leave no double points.

    Attributes:
        run_id: of the run; give it to `open` to go on with it.
        num_dropped: metric points and other records that never reached the server.
    """

    def __init__(self, uri: str, run_id: str, client: Any = None, run: Any = None) -> None:
        self.run_id = run_id
        self.num_dropped = 0
        self._uri = uri
        self._client: Any = None
        self._experiment_id = ""
        self._ends_run = client is not None
        self._params: dict[str, str] = {}
        self._last_step: dict[str, int] = {}
        self._last_step_before: dict[str, int] = {}
        self._points: PointLog | None = None
        self._upload_bytes = 0
        self._pending: deque[_Metrics | _Job] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._deadline = float("inf")
        if client is not None:
            self._connect(client, run)
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a run, or go on with one.

        Args:
            uri: `sqlite:///file.db`, `http://host:port` or another database MLflow knows.
            experiment: made if needed.
            run_name: shown in the list of runs.
            run_id: of the run to go on with; the experiment and the name then stay as they are.
            tags: e.g. `mlflow.parentRunId` to place the run below another.

        Raises:
            InputError: no server answers, the run does not exist, or the address cannot be used.
        """
        uri = absolute_uri(uri)
        import_mlflow()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            client = new_client(uri)
            run = open_run(client, uri, experiment, run_name, run_id, dict(tags or {}))
        except (MlflowException, SQLAlchemyError, ImportError) as error:
            raise explained(error, uri, run_id) from error
        return cls(uri, run.info.run_id, client, run)

    @classmethod
    def attach(cls, uri: str, run_id: str, points: Path | None = None) -> Self:
        """Log points into a run that another process has opened and will end.

        Does not wait for the server: one that is away now is asked again until it is back.

        Args:
            uri: as `absolute_uri` gives it.
            run_id: of the run.
            points: a file that keeps all points of the run. Those of earlier processes that never
                arrived are sent first.
        """
        import_mlflow()
        tracker = cls(uri, run_id)
        if points:
            tracker._points = PointLog(points)
            tracker._last_step = tracker._points.last_steps()
            tracker._submit(partial(tracker._send_earlier, tracker._points))
        return tracker

    @property
    def how_to_open(self) -> str:
        """What to do to see the run: its web address, or the command that serves it."""
        page = f"#/experiments/{self._experiment_id}/runs/{self.run_id}"
        if self._uri.startswith("http"):
            return f"{self._uri.rstrip('/')}/{page}"
        return f"mlflow ui --backend-store-uri {self._uri}   # http://127.0.0.1:5000/{page}"

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; MLflow never changes one, so a new value becomes a tag `changed.<key>`.

        Values are cut at 6000 characters; log the whole configuration with `log_text`.
        """
        from mlflow.entities import Param, RunTag

        values = {key: str(value)[:_MAX_PARAM_LENGTH] for key, value in params.items()}
        new = [Param(key, value) for key, value in values.items() if key not in self._params]
        changed = [
            RunTag(f"{CHANGED}{key}", value)
            for key, value in values.items()
            if self._params.get(key, value) != value
        ]
        self._params = values | self._params
        for first in range(0, len(new), _MAX_PARAMS_PER_REQUEST):
            part = new[first : first + _MAX_PARAMS_PER_REQUEST]
            self._submit(methodcaller("log_batch", self.run_id, params=part))
        if changed:
            self._submit(methodcaller("log_batch", self.run_id, tags=changed))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log points; one whose metric already has a point at this step or later is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {key: value for key, value in metrics.items() if step > self._last_step.get(key, -1)}
        self._last_step |= dict.fromkeys(new, step)
        if new and self._points:
            self._points.append(new, now, step)
        if new:
            self._submit([Metric(key, float(value), now, step) for key, value in new.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Upload a file; it must stay as it is until the tracker is closed."""
        self._upload_bytes += path.stat().st_size if path.is_file() else 0
        self._submit(methodcaller("log_artifact", self.run_id, str(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Upload text as an artifact, e.g. `config.yaml`."""
        self._submit(methodcaller("log_text", self.run_id, text, name))

    def log_dataset(self, name: str, digest: str, source: str, context: str = "training") -> None:
        """Say which data the run used; the digest is cut at MLflow's 36 characters."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        where = json.dumps({"uri": source})
        dataset = Dataset(name, digest[:_MAX_DIGEST_LENGTH], "local", where)
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self._submit(methodcaller("log_inputs", self.run_id, [entry]))

    def close(self, status: RunStatus = "FINISHED") -> None:
        """End the run and deliver what is pending; a second call is void.

        The status goes first, past what is pending, so that it is set whatever happens to an
        upload. A server that does not answer is given up after half a minute; uploads that go on
        have the time their size takes.
        """
        if self._closing.is_set():
            return
        self._deadline = time.monotonic() + _CLOSE_SECONDS
        with self._changed:
            self._closing.set()
            self._changed.notify()
        ended = not self._ends_run or self._deliver(
            methodcaller("set_terminated", self.run_id, status)
        )
        left = self._deadline - time.monotonic() + self._upload_bytes / _SLOWEST_UPLOAD
        self._thread.join(max(0.0, left) + _LAST_REQUEST_SECONDS)
        with self._changed:
            self.num_dropped += sum(_size(record) for record in self._pending) + (not ended)
            self._pending.clear()
        if self._points:
            self._points.close()
        if self.num_dropped:
            _log.warning("%d records never reached MLflow at %s", self.num_dropped, self._uri)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self.close("KILLED")
        else:
            self.close("FAILED")

    def _submit(self, record: _Metrics | _Job) -> None:
        with self._changed:
            if len(self._pending) >= _MAX_PENDING and isinstance(record, list):
                self.num_dropped += len(record)
                return
            self._pending.append(record)
            self._changed.notify()

    def _deliver_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing.is_set())
                if not self._pending:
                    return
            # Points gather meanwhile: one request a second instead of one a step.
            self._closing.wait(_FLUSH_EVERY_SECONDS)
            with self._changed:
                record = self._take()
            if not self._deliver(record):
                self.num_dropped += _size(record)
                if time.monotonic() >= self._deadline:
                    return

    def _take(self) -> _Metrics | _Job:
        """Remove the oldest record, joined with the points that follow it directly."""
        record = self._pending.popleft()
        if isinstance(record, list):
            while self._pending and isinstance(following := self._pending[0], list):
                if len(record) + len(following) > _MAX_POINTS_PER_REQUEST:
                    break
                record = record + following
                self._pending.popleft()
        return record

    def _deliver(self, record: _Metrics | _Job) -> bool:
        """Retry until the server has taken the record, has refused it, or time is up.

        A point that was taken although the answer was lost does no harm when it is sent again:
        MLflow keeps one of several equal points.
        """
        pause = _FIRST_RETRY_SECONDS
        for attempt in itertools.count(1):
            try:
                client = self._client or self._connect(new_client(self._uri))
                if isinstance(record, list):
                    client.log_batch(self.run_id, metrics=self._not_yet_there(record))
                else:
                    record(client)
                return True
            except Exception as error:
                if is_refusal(error):
                    _log.warning("MLflow refused a record: %s", error)
                    return False
                if attempt == 1:
                    _log.warning("MLflow at %s does not answer; trying again", self._uri)
                is_upload = not isinstance(record, list) and not self._closing.is_set()
                if is_upload and attempt >= _MAX_JOB_ATTEMPTS:
                    _log.warning("MLflow: gave up an upload: %s", error)
                    return False
            if not self._closing.wait(pause):
                pause = min(2 * pause, _LAST_RETRY_SECONDS)
            elif time.monotonic() >= self._deadline:
                return False
            else:
                time.sleep(_FIRST_RETRY_SECONDS)
        raise AssertionError("unreachable")

    def _connect(self, client: Any, run: Any = None) -> Any:
        """Learn from the server what the run holds already."""
        run = run or client.get_run(self.run_id)
        self._experiment_id = run.info.experiment_id
        self._params |= run.data.params
        # The latest point of each metric; its step is part of the public protobuf form only.
        self._last_step_before = {point.key: point.step for point in run.to_proto().data.metrics}
        self._client = client
        return client

    def _send_earlier(self, log: PointLog, client: Any) -> None:
        """Send what earlier processes logged and the server lacks."""
        from mlflow.entities import Metric

        for part in log.earlier(_MAX_POINTS_PER_REQUEST):
            if points := self._not_yet_there([Metric(*point) for point in part]):
                client.log_batch(self.run_id, metrics=points)

    def _not_yet_there(self, points: _Metrics) -> _Metrics:
        """The points without those that an earlier process has logged."""
        before = self._last_step_before
        return [point for point in points if point.step > before.get(point.key, -1)]


def _size(record: _Metrics | _Job) -> int:
    return len(record) if isinstance(record, list) else 1
