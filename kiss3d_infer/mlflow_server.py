"""The way to MLflow: its address, a client, the run to write to, and what its errors mean."""

import logging
import os
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writable_folder

DEFAULT_URI = "sqlite:///mlruns.db"
"""A database in the working directory."""
SQLITE = "sqlite:///"
"""What the address of a database on this machine begins with."""


def import_mlflow() -> None:
    """Import MLflow with its habits changed."""
    # Its defaults hold every call to a dead server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow  # noqa: F401

    for noisy in ("alembic", "mlflow.store"):  # the migrations of a new database
        logging.getLogger(noisy).setLevel(logging.WARNING)


def new_client(uri: str) -> Any:
    """An `mlflow.MlflowClient`; `import_mlflow` comes first."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def absolute_uri(uri: str) -> str:
    """Make a relative SQLite address independent of the working directory.

    Raises:
        InputError: a folder was given, or the database cannot be written.
    """
    if uri.startswith("file:") or "://" not in uri:
        raise InputError(
            "MLflow no longer keeps runs in folders",
            where=uri,
            fix=f"use {DEFAULT_URI} or a server",
        )
    if not uri.startswith(SQLITE):
        return uri
    database = Path(uri.removeprefix(SQLITE)).absolute()
    writable_folder(database.parent)
    return f"{SQLITE}{database}"


def open_run(
    client: Any, uri: str, experiment: str, run_name: str, run_id: str | None, tags: dict[str, str]
) -> Any:
    """Start a run, or go on with one; see `Tracker.open`."""
    if run_id is not None:
        client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        return client.get_run(run_id)
    known = client.get_experiment_by_name(experiment)
    experiment_id = known.experiment_id if known else _new_experiment(client, uri, experiment)
    return client.create_run(experiment_id, tags=tags, run_name=run_name)


def explained(error: Exception, uri: str, run_id: str | None) -> InputError:
    """The sentence for what went wrong while a run was opened."""
    if run_id is not None and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return InputError(f"MLflow has no run {run_id}", where=uri, fix="check tracking.uri")
    if uri.startswith("http") and not is_refusal(error):
        what, fix = "no MLflow server answers", "start it"
    else:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what, fix = f"MLflow cannot be used: {reason}", "correct this"
    return InputError(what, where=uri, fix=f"{fix}, or set tracking.uri={DEFAULT_URI}")


def _new_experiment(client: Any, uri: str, name: str) -> str:
    """Make an experiment; with SQLite, its artifacts lie beside the database."""
    location = None
    if uri.startswith(SQLITE):
        database = Path(uri.removeprefix(SQLITE))
        location = (database.with_name(f"{database.stem}-artifacts") / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def is_refusal(error: Exception) -> bool:
    """Whether sending the same again can never succeed."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | TypeError):
        return True
    if hasattr(error, "get_http_status_code"):  # MlflowException
        status = error.get_http_status_code()
    else:  # requests.HTTPError, from an upload
        status = getattr(getattr(error, "response", None), "status_code", 500)
    return 400 <= status < 500 and status not in (408, 429)
