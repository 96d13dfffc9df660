"""A data job as an MLflow run: its settings, what it has to tell, and how it ended.

MLflow opens in a thread while the job works, and what the job tells is sent at its end. A server
that does not answer costs the record and never the job.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kiss3d_infer import __version__
from kiss3d_infer.errors import InputError
from kiss3d_infer.mlflow_server import absolute_uri, import_mlflow
from kiss3d_infer.tracking import RunStatus, Tracker
from kiss3d_train.data.storage import Place, exists, folder_at

EXPERIMENT = "kiss3d-data"
NOT_TRACKED = "none"
"""In the place of a tracking URI: no run at all."""
TRACKING_NAME = ".tracking"
"""JSON left in the folder that a job made: the id of its run."""
DATA_RUN_TAG = "data.run_id"
"""Of a run: the one that made what it works on."""
_OPEN_SECONDS = 45.0
"""How long the end of a job waits for a run that is still being opened."""

Record = Callable[[Tracker, Path], None]
"""Tells a run something; it may put files for it into the folder."""


class JobRun:
    """What a job tells about itself."""

    def __init__(self) -> None:
        self.status: RunStatus = "FINISHED"
        """How the run ends if no exception does it; KILLED for a job that goes on another time."""
        self._records: list[Record] = []

    def at_end(self, record: Record) -> None:
        """Have something told at the job's end, however it ends; what fails is only reported."""
        self._records.append(record)

    def made(self, folder: Place) -> None:
        """Leave the run's id in a folder, for `data_run_tags` of the jobs that work on it."""
        self.at_end(lambda tracker, _: _leave_id(folder, tracker.run_id))

    def tell(self, tracker: Tracker) -> None:
        """Tell everything, and end the run."""
        with tempfile.TemporaryDirectory(prefix="kiss3d-run-") as folder:
            for record in self._records:
                try:
                    record(tracker, Path(folder))
                except Exception as error:
                    _warn(f"the MLflow run is not complete: {type(error).__name__}: {error}")
            tracker.close(self.status)


@contextmanager
def job_run(
    job: str, uri: str, params: Mapping[str, object], *, made_of: Place | None = None
) -> Iterator[JobRun]:
    """Track a job for the length of a block.

    An exception leaves the run FAILED, Ctrl-C or SIGTERM leaves it KILLED.

    Args:
        job: e.g. "render"; names the run.
        uri: where runs are kept, or "none".
        params: the job's settings.
        made_of: folder that it works on; a run that made it is linked.

    Raises:
        InputError: runs cannot be kept at such an address.
    """
    run = JobRun()
    if uri == NOT_TRACKED:
        yield run
        return
    tags = {"kiss3d.job": job} | (data_run_tags(made_of) if made_of else {})
    opening = _Opening(absolute_uri(uri), job, params, tags)
    try:
        with _ended_by_sigterm():
            yield run
    except BaseException as error:
        is_stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        run.status = "KILLED" if is_stopped else "FAILED"
        raise
    finally:
        if tracker := opening.tracker():
            run.tell(tracker)


def data_run_tags(folder: Place) -> dict[str, str]:
    """The tag that links a run to the one that made a folder; empty if none is known."""
    try:
        return {DATA_RUN_TAG: str(json.loads(folder_at(folder).read(TRACKING_NAME))["run_id"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class _Opening:
    """A run that is being opened."""

    def __init__(
        self, uri: str, job: str, params: Mapping[str, object], tags: dict[str, str]
    ) -> None:
        import_mlflow()  # here: an import in a thread may meet those of the job half-way
        self._uri, self._job, self._tags = uri, job, tags
        self._params = {**params, "kiss3d_version": __version__}
        self._tracker: Tracker | None = None
        self._problem = "it does not answer in time"
        self._thread = threading.Thread(target=self._open, name="mlflow-open", daemon=True)
        self._thread.start()

    def tracker(self) -> Tracker | None:
        """The run, once it is open; None, with a warning, if it cannot be opened."""
        self._thread.join(_OPEN_SECONDS)
        if self._tracker is None:
            _warn(f"the job is not tracked: {self._problem}")
        return self._tracker

    def _open(self) -> None:
        try:
            tracker = Tracker.open(self._uri, EXPERIMENT, self._job, tags=self._tags)
            tracker.log_params(self._params)
            self._tracker = tracker
        except InputError as error:
            self._problem = error.what
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end the block as an exception, so that the run does not stay RUNNING."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave_id(folder: Place, run_id: str) -> None:
    if not exists(folder):
        return  # writing would make it
    with folder_at(folder).writing(TRACKING_NAME) as aside:
        aside.write_text(json.dumps({"run_id": run_id}), encoding="utf-8")


def _warn(text: str) -> None:
    print(f"kiss3d: {text}", file=sys.stderr)
