import os
import subprocess
import sys

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_infer.mlflow_server import absolute_uri
from kiss3d_infer.tracking import Tracker


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db"


@pytest.fixture(scope="module")
def client(uri):
    import mlflow

    return mlflow.MlflowClient(uri)


def open_tracker(uri, run_id=None, **options):
    return Tracker.open(uri, "tests", "a run", run_id=run_id, **options)


def points(client, run_id, key):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def test_everything_logged_can_be_read_back(uri, client, tmp_path):
    (tmp_path / "adapter.txt").write_text("weights")
    with open_tracker(uri, tags={"kiss3d.kind": "train"}) as tracker:
        tracker.log_params({"rank": 4, "long": "x" * 7000})
        for step in range(1, 4):
            tracker.log_metrics({"train/loss": 1 / step, "train/lr": 0.1}, step)
        tracker.log_metrics({"val/loss": float("nan")}, 3)
        tracker.log_artifact(tmp_path / "adapter.txt", "adapter")
        tracker.log_text("a: 1", "config.yaml")
        tracker.log_dataset("toybox", "f" * 64, "/data/toybox")
    run = client.get_run(tracker.run_id)
    assert tracker.num_dropped == 0
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a run")
    assert run.data.tags["kiss3d.kind"] == "train"
    assert run.data.params["rank"] == "4"
    assert len(run.data.params["long"]) == 6000
    assert points(client, tracker.run_id, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert len(points(client, tracker.run_id, "val/loss")) == 1
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("toybox", "f" * 36)
    files = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert files == {"adapter", "config.yaml"}


def test_a_local_run_asks_no_host(tmp_path):
    code = """
import socket, sys, time

asked = []

def refuse(host, *rest, **options):
    asked.append(host)
    raise socket.gaierror("there is no network")

socket.getaddrinfo = refuse
from kiss3d_infer.tracking import Tracker

with Tracker.open(sys.argv[1], "tests", "a run") as tracker:
    tracker.log_metrics({"loss": 1.0}, 1)
time.sleep(1)  # MLflow's telemetry asks in a thread
sys.exit(f"asked {asked}" if asked else 0)
"""
    # Without the variables by which MLflow knows a test or a build server.
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/runs.db"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["runs.db", "runs"])
def test_artifacts_lie_beside_the_database(name, tmp_path):
    with open_tracker(f"sqlite:///{tmp_path}/{name}") as tracker:
        tracker.log_text("hello", "hello.txt")
    (stored,) = (tmp_path / "runs-artifacts" / "tests").rglob("hello.txt")
    assert stored.read_text() == "hello"
    assert tracker.num_dropped == 0


def test_a_resumed_run_gets_no_point_twice(uri, client):
    first = open_tracker(uri)
    for step in range(1, 6):
        first.log_metrics({"train/loss": step}, step)
    first.log_metrics({"val/loss": 9.0}, 2)
    first.close("FAILED")

    with open_tracker(uri, first.run_id) as again:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        for step in range(3, 8):  # steps 3 to 5 are done again
            again.log_metrics({"train/loss": step}, step)
        again.log_metrics({"val/loss": 8.0}, 4)
    assert again.run_id == first.run_id
    assert points(client, first.run_id, "train/loss") == [(s, float(s)) for s in range(1, 8)]
    assert points(client, first.run_id, "val/loss") == [(2, 9.0), (4, 8.0)]
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_repeated_step_within_a_run_is_left_out(uri, client):
    with open_tracker(uri) as tracker:
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.log_metrics({"loss": 2.0, "other": 3.0}, 0)
    assert points(client, tracker.run_id, "loss") == [(0, 1.0)]
    assert points(client, tracker.run_id, "other") == [(0, 3.0)]


def test_a_changed_parameter_becomes_a_tag(uri, client):
    with open_tracker(uri) as first:
        first.log_params({"steps": 10, "rank": 4})
    with open_tracker(uri, first.run_id) as again:
        again.log_params({"steps": 20, "rank": 4, "new": 1})
    data = client.get_run(first.run_id).data
    assert data.params == {"steps": "10", "rank": "4", "new": "1"}
    assert data.tags["changed.steps"] == "20"
    assert "changed.rank" not in data.tags


def test_many_parameters_and_points_pass_the_limits_of_one_request(uri, client):
    with open_tracker(uri) as tracker:
        tracker.log_params({f"p{i}": i for i in range(250)})
        for step in range(1500):
            tracker.log_metrics({"loss": step}, step)
    assert len(client.get_run(tracker.run_id).data.params) == 250
    assert len(points(client, tracker.run_id, "loss")) == 1500


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_the_status_says_how_the_run_ended(uri, client, error, status):
    with pytest.raises(error), open_tracker(uri) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        raise error
    assert client.get_run(tracker.run_id).info.status == status
    assert points(client, tracker.run_id, "loss") == [(1, 1.0)]


def test_what_mlflow_refuses_is_counted_and_the_rest_arrives(uri, client, tmp_path, caplog):
    tracker = open_tracker(uri)
    tracker.log_artifact(tmp_path / "missing.txt")
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close()
    tracker.close()
    assert tracker.num_dropped == 1
    assert "1 records never reached MLflow" in caplog.text
    assert points(client, tracker.run_id, "loss") == [(1, 1.0)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_run_can_lie_below_another(uri, client):
    with (
        open_tracker(uri) as parent,
        open_tracker(uri, tags={"mlflow.parentRunId": parent.run_id}) as child,
    ):
        pass
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_how_to_open_names_the_database(uri):
    with open_tracker(uri) as tracker:
        pass
    assert tracker.how_to_open.startswith(f"mlflow ui --backend-store-uri {uri}")
    assert tracker.run_id in tracker.how_to_open


def test_a_relative_database_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    assert absolute_uri("http://host:5000") == "http://host:5000"


@pytest.mark.parametrize("address", ["./mlruns", "file:///tmp/mlruns", "/data/mlruns"])
def test_a_folder_is_refused(address):
    with pytest.raises(InputError, match="no longer keeps runs in folders"):
        open_tracker(address)


def test_a_run_that_does_not_exist_is_an_input_error(uri):
    with pytest.raises(InputError, match="no run 0123"):
        open_tracker(uri, "0123")


def test_a_file_that_is_no_database_is_an_input_error(tmp_path):
    (tmp_path / "runs.db").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match="not a database"):
        open_tracker(f"sqlite:///{tmp_path}/runs.db")


def test_another_process_adds_points_and_leaves_the_status_alone(uri, client):
    with open_tracker(uri) as owner:
        owner.log_metrics({"train/loss": 1.0}, 1)
    reopened = open_tracker(uri, owner.run_id)
    with pytest.raises(ValueError), Tracker.attach(uri, owner.run_id) as worker:
        worker.log_metrics({"train/loss": 1.0}, 1)  # done again after a crash
        worker.log_metrics({"train/loss": 0.5}, 2)
        raise ValueError
    assert worker.num_dropped == 0
    assert points(client, owner.run_id, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert client.get_run(owner.run_id).info.status == "RUNNING"
    reopened.close("KILLED")
    assert client.get_run(owner.run_id).info.status == "KILLED"


def test_the_status_does_not_wait_for_an_upload(uri, client, tmp_path, monkeypatch):
    (tmp_path / "adapter.bin").write_bytes(b"weights")
    tracker = open_tracker(uri)
    upload, seen = tracker._client.log_artifact, []

    def slow_upload(*arguments):
        while client.get_run(tracker.run_id).info.status == "RUNNING":
            pass
        seen.append(client.get_run(tracker.run_id).info.status)
        upload(*arguments)

    monkeypatch.setattr(tracker._client, "log_artifact", slow_upload)
    tracker.log_artifact(tmp_path / "adapter.bin")
    tracker.close("KILLED")
    assert seen == ["KILLED"]
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["adapter.bin"]
