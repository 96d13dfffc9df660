"""Tracking through a real MLflow server that comes and goes, and through one that hangs."""

import itertools
import logging
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from kiss3d_infer import tracking
from kiss3d_infer.errors import InputError
from kiss3d_infer.tracking import Tracker
from kiss3d_train.worker import _opened_sink, work

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "train"))

from tiny_data import encode_here, make_base, make_shards  # noqa: E402
from tiny_training import free_port, job_of, join_group  # noqa: E402


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """MLflow's own server application, with a database in a temporary folder."""
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/runs.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        # The first request makes the database, which takes longer than the tests' timeouts.
        app.test_client().get("/api/2.0/mlflow/experiments/search?max_results=1")
        yield app


@pytest.fixture
def impatient(monkeypatch):
    """Short pauses, so that an outage of the test need not last long."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "_FLUSH_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "_FIRST_RETRY_SECONDS", 0.05)


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(application, port):
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", port, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def steps_logged(port, run_id, key="loss"):
    import mlflow

    client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    return [point.step for point in client.get_metric_history(run_id, key)]


def open_tracker(port):
    return Tracker.open(f"http://127.0.0.1:{port}", "tests", "a run")


def test_points_of_an_outage_arrive_once_when_the_server_is_back(
    application, port, impatient, tmp_path
):
    (tmp_path / "adapter.bin").write_bytes(b"weights")
    with serving(application, port):
        tracker = open_tracker(port)
        tracker.log_metrics({"loss": 0.0}, 0)
    for step in range(1, 51):  # nobody listens
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.log_artifact(tmp_path / "adapter.bin", "adapter")
    with serving(application, port):
        tracker.close()
        assert steps_logged(port, tracker.run_id) == list(range(51))
        assert tracker.num_dropped == 0
        assert tracker.how_to_open.startswith(f"http://127.0.0.1:{port}/#/experiments/")


@pytest.fixture
def alone():
    """A process group of this process alone."""
    join_group(0, 1, free_port())
    yield
    dist.destroy_process_group()


def until(is_so):
    """Wait for what a thread of the tracker does."""
    while not is_so():
        threading.Event().wait(0.01)  # pytest's timeout ends what never comes


def test_a_run_trains_on_through_an_outage_and_every_step_is_there_once(
    application, port, impatient, alone, monkeypatch, caplog, tmp_path
):
    shards, base, steps = make_shards(tmp_path), make_base(tmp_path), 12
    overrides = [
        f"run={{dir: {tmp_path / 'run'}, steps: {steps}, log_every: 1}}",
        f"base.path={base}",
        f"data.shards={shards}",
        "validation={every: 3, samples: 1}",
        "checkpoint.every=5",
        f"tracking.uri=http://127.0.0.1:{port}",
    ]
    latents = encode_here(shards, base, tmp_path / "latents")
    job = job_of(ROOT / "configs" / "train" / "tiny.yaml", overrides, latents)
    job.config.run.dir.mkdir()
    with ExitStack() as server:
        server.enter_context(serving(application, port))
        driver = open_tracker(port)

        def take_away():
            until(lambda: steps_logged(port, driver.run_id, "train/loss"))
            server.close()

        def bring_back():
            until(lambda: "does not answer; trying again" in caplog.text)
            server.enter_context(serving(application, port))

        happens, count = {4: take_away, 9: bring_back}, itertools.count(1)
        with _opened_sink(replace(job, tracking_run=driver.run_id)) as sink:
            show = sink.show

            def show_and_go_on(line):
                show(line)
                happens.pop(next(count), lambda: None)()

            monkeypatch.setattr(sink, "show", show_and_go_on)
            outcome = work(job, sink)
        driver.close()
        assert outcome.step == steps and not happens
        for name in ("train/loss", "train/lr", "perf/step_s", "train/loss_by_region/rgb"):
            assert sorted(steps_logged(port, driver.run_id, name)) == list(range(1, steps + 1)), (
                name
            )
        assert sorted(steps_logged(port, driver.run_id, "val/loss")) == [3, 6, 9, 12]
        assert sink._tracker.num_dropped == driver.num_dropped == 0


def test_a_server_that_stays_away_costs_points_and_nothing_else(
    application, port, impatient, monkeypatch, caplog
):
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(tracking, "_MAX_PENDING", 10)
    with serving(application, port):
        tracker = open_tracker(port)
    for step in range(100):
        tracker.log_metrics({"loss": 0.0}, step)
    assert len(tracker._pending) <= 10  # the buffer is bounded
    tracker.close()
    assert tracker.num_dropped == 101  # every point, and the status
    assert "101 records never reached MLflow" in caplog.text


def test_a_worker_that_starts_during_an_outage_logs_when_the_server_is_back(
    application, port, impatient
):
    with serving(application, port):
        run_id = open_tracker(port).run_id
    worker = Tracker.attach(f"http://127.0.0.1:{port}", run_id)
    worker.log_metrics({"loss": 0.0}, 0)
    with serving(application, port):
        worker.close()
        assert steps_logged(port, run_id) == [0]
    assert worker.num_dropped == 0


def test_points_that_a_process_could_not_deliver_are_sent_by_the_next(
    application, port, impatient, monkeypatch, tmp_path
):
    points = tmp_path / "metrics.jsonl"
    with serving(application, port):
        run_id = open_tracker(port).run_id
        first = Tracker.attach(f"http://127.0.0.1:{port}", run_id, points)
        first.log_metrics({"loss": 0.0}, 0)
        first.close()
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.2)
    during = Tracker.attach(f"http://127.0.0.1:{port}", run_id, points)
    for step in range(1, 50):  # nobody listens until this process ends
        during.log_metrics({"loss": float(step), "other": 1.0}, step)
    during.close()
    assert during.num_dropped > 0
    with points.open("a") as file:
        file.write('[50, 1, {"lo')  # killed while it wrote
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 30)
    with serving(application, port):
        after = Tracker.attach(f"http://127.0.0.1:{port}", run_id, points)
        for step in range(45, 60):  # from a checkpoint: five steps are done again
            after.log_metrics({"loss": float(step)}, step)
        after.close()
        assert steps_logged(port, run_id) == list(range(60))
        assert steps_logged(port, run_id, "other") == list(range(1, 50))
    assert after.num_dropped == 0


def test_an_upload_has_the_time_that_its_size_takes(
    application, port, impatient, monkeypatch, tmp_path
):
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "_LAST_REQUEST_SECONDS", 0.0)
    adapter = tmp_path / "adapter.bin"
    with adapter.open("wb") as file:
        file.truncate(40_000_000)
    with serving(application, port):
        tracker = open_tracker(port)
        upload, never = tracker._client.log_artifact, threading.Event()

        def slow_upload(*arguments):
            never.wait(0.5)
            upload(*arguments)

        monkeypatch.setattr(tracker._client, "log_artifact", slow_upload)
        tracker.log_artifact(adapter)
        tracker.close()
    assert tracker.num_dropped == 0


def test_a_hanging_server_does_not_hold_the_caller(application, port, impatient, monkeypatch):
    monkeypatch.setattr(tracking, "_CLOSE_SECONDS", 0.2)
    with serving(application, port):
        tracker = open_tracker(port)
    with socket.create_server(("127.0.0.1", port)) as silent:  # accepts and never answers
        tracker.log_metrics({"loss": 0.0}, 0)
        connection, _ = silent.accept()  # the sender is inside its request now
        for step in range(1, 1001):
            tracker.log_metrics({"loss": 0.0}, step)
        assert len(tracker._pending) > 0  # logged while the sender hangs
        connection.close()
        tracker.close()
    assert tracker.num_dropped > 0


def test_opening_without_a_server_is_an_input_error(port, impatient):
    with pytest.raises(InputError, match=r"no MLflow server answers .*start it"):
        open_tracker(port)
