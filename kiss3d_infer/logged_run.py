"""Runs read back from MLflow: what they were told, their points, and what they uploaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError
from kiss3d_infer.mlflow_server import SQLITE, absolute_uri, import_mlflow, new_client
from kiss3d_infer.tracking import CHANGED

_RUN_ID = re.compile(r"[0-9a-f]{1,32}")
_NUM_NAMED = 5


@dataclass(frozen=True)
class LoggedRun:
    """A run as the server holds it.

    Attributes:
        experiment: its name.
        params: by key; `0.1, later 0.2` if the run went on with another value.
        metrics: those that have points.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    params: dict[str, str]
    metrics: frozenset[str]
    _uri: str
    _client: Any

    def points(self, metric: str) -> dict[int, float]:
        """The value of a metric by step."""
        with _explaining(self._uri):
            history = self._client.get_metric_history(self.run_id, metric)
        return {point.step: point.value for point in history}

    def files(self) -> frozenset[str]:
        """Paths of all that was uploaded."""
        with _explaining(self._uri):
            return frozenset(self._files_in(None))

    def download(self, path: str, folder: Path) -> Path:
        """Fetch an uploaded file into a folder; returns where it lies."""
        with _explaining(self._uri):
            return Path(self._client.download_artifacts(self.run_id, path, str(folder)))

    def _files_in(self, folder: str | None) -> Iterator[str]:
        for entry in self._client.list_artifacts(self.run_id, folder):
            if entry.is_dir:
                yield from self._files_in(entry.path)
            else:
                yield entry.path


def find_run(uri: str, run_id: str) -> LoggedRun:
    """Look a run up in all experiments.

    Args:
        uri: as for `Tracker.open`.
        run_id: its id, or the beginning of it.

    Raises:
        InputError: there is no such run or more than one, or MLflow cannot be read.
    """
    # MLflow would make an empty one.
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        raise InputError("there is no such database", where=uri, fix="check --tracking-uri")
    uri = absolute_uri(uri)
    import_mlflow()
    with _explaining(uri):
        client = new_client(uri)
        experiments = {entry.experiment_id: entry.name for entry in client.search_experiments()}
        found = _beginning_with(client, list(experiments), run_id)
    if not found:
        raise InputError(f"MLflow has no run {run_id}", where=uri, fix="check --tracking-uri")
    if len(found) > 1:
        ids = [run.info.run_id for run in found]
        more = " ..." if len(ids) > _NUM_NAMED else ""
        raise InputError(
            f"several runs begin with {run_id}: {', '.join(ids[:_NUM_NAMED])}{more}",
            where=uri,
            fix="give more of the id",
        )
    (run,) = found
    return LoggedRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment=experiments[run.info.experiment_id],
        status=run.info.status,
        params=_params(run),
        metrics=frozenset(run.data.metrics),
        _uri=uri,
        _client=client,
    )


def _beginning_with(client: Any, experiments: list[str], run_id: str) -> list[Any]:
    if not _RUN_ID.fullmatch(run_id):
        return []
    return list(client.search_runs(experiments, f"attributes.run_id LIKE '{run_id}%'"))


def _params(run: Any) -> dict[str, str]:
    """A new value of a parameter stands in a tag, see `Tracker.log_params`."""
    later = {
        key.removeprefix(CHANGED): value
        for key, value in run.data.tags.items()
        if key.startswith(CHANGED)
    }
    return {
        key: f"{value}, later {later[key]}" if key in later else value
        for key, value in run.data.params.items()
    }


@contextmanager
def _explaining(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"MLflow cannot be read: {reason}", where=uri, fix="check --tracking-uri"
        ) from error
