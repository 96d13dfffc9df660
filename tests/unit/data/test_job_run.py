import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiss3d_infer import tracking
from kiss3d_infer.errors import InputError
from kiss3d_train import cli
from kiss3d_train.data.captions.job import CaptionSummary
from kiss3d_train.data.job_records import manifest_digest, record_captions, record_render
from kiss3d_train.data.job_run import TRACKING_NAME, data_run_tags, job_run
from kiss3d_train.data.render import RenderSummary
from kiss3d_train.data.shards import load_index, verify, write_shards


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('runs')}/runs.db"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tracking, "_FLUSH_EVERY_SECONDS", 0.01)
    yield


def last_run(uri: str) -> Any:
    import mlflow

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("kiss3d-data")
    return client.search_runs([experiment.experiment_id], max_results=1)[0]


def artifacts(uri: str, run: Any) -> set[str]:
    import mlflow

    return {file.path for file in mlflow.MlflowClient(uri).list_artifacts(run.info.run_id)}


def test_a_render_job_is_a_run_with_counts_data_and_pictures(
    uri: str, quick: None, samples: Path
) -> None:
    (samples / "quarantine.jsonl").write_text("{}\n")
    with job_run("render", uri, {"tile": 24, "layout": None}) as run:
        record_render(run, RenderSummary(samples, 10, 4, 1, 2.0), "toybox:14")
    found = last_run(uri)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "render")
    assert found.data.params.items() >= {"tile": "24", "layout": "None"}.items()
    assert found.data.metrics == {
        **{"data/rendered": 10, "data/kept": 4, "data/quarantined": 1},
        **{"perf/seconds": 2.0, "perf/samples_per_s": 5.0},
    }
    (used,) = found.inputs.dataset_inputs
    assert used.dataset.digest == manifest_digest(samples)[:36]
    assert (used.dataset.name, used.tags[0].value) == (samples.name, "rendered")
    assert "toybox:14" in used.dataset.source
    assert artifacts(uri, found) == {"contact_sheet.png", "quarantine.jsonl"}
    assert data_run_tags(samples) == {"data.run_id": found.info.run_id}


def test_the_manifest_changes_with_a_caption(rendered: Path, samples: Path) -> None:
    before = manifest_digest(samples)
    assert before == manifest_digest(samples) != manifest_digest(rendered)
    path = min(samples.glob("[!.]*.json"))
    path.write_text(path.read_text().replace('"caption": "', '"caption": "big '))
    assert manifest_digest(samples) != before


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("a bug"), "FAILED"),
        (InputError("wrong"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "KILLED"),
    ],
)
def test_a_run_ends_as_its_job_does(
    uri: str, quick: None, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), job_run("render", uri, {}) as run:
        run.at_end(lambda tracker, _: tracker.log_metrics({"data/rendered": 3}, step=0))
        raise error
    found = last_run(uri)
    assert (found.info.status, found.data.metrics) == (status, {"data/rendered": 3})


def test_sigterm_leaves_no_run_behind_as_running(uri: str, quick: None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, job_run("render", uri, {}):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert last_run(uri).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_cannot_be_told_fails_no_job(
    uri: str, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text("no JSON")
    with job_run("caption", uri, {}) as run:
        record_captions(run, CaptionSummary(tmp_path, captioned=1))
        run.made(tmp_path / "gone")
        run.at_end(lambda tracker, _: tracker.log_metrics({"data/x": 1}, step=0))
    assert last_run(uri).info.status == "FINISHED"
    assert last_run(uri).data.metrics.items() >= {"data/x": 1, "data/captioned": 1}.items()
    assert not (tmp_path / "gone").exists()
    assert "the MLflow run is not complete" in capsys.readouterr().err


def test_a_server_that_does_not_answer_fails_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with job_run("render", "http://127.0.0.1:9", {}) as run:
        run.made(tmp_path)
    assert "the job is not tracked: no MLflow server answers" in capsys.readouterr().err
    assert data_run_tags(tmp_path) == {}


def test_an_address_that_cannot_hold_runs_is_refused_before_the_work(tmp_path: Path) -> None:
    begun: list[str] = []
    refused = pytest.raises(InputError, match="no longer keeps runs in folders")
    with refused, job_run("render", str(tmp_path / "runs"), {}):
        begun.append("the job")
    assert not begun


def test_none_asks_mlflow_for_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kiss3d_train.data.job_run import job_run\n"
        "with job_run('render', 'none', {}) as run: run.made(Path('.'))\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_jobs_link_to_the_runs_whose_work_they_use(
    uri: str, quick: None, samples: Path, tmp_path: Path
) -> None:
    with job_run("render", uri, {}) as run:
        run.made(samples)
    rendering = last_run(uri)
    cli.caption(samples, "metadata", tracking_uri=uri)
    captioning = last_run(uri)
    assert captioning.data.params["captioner"] == "metadata"
    assert captioning.data.metrics["data/captioned"] == 4
    assert captioning.data.tags["data.run_id"] == rendering.info.run_id
    out = tmp_path / "shards"
    cli.shard(samples, out, tracking_uri=uri)
    sharding = last_run(uri)
    assert sharding.data.tags["data.run_id"] == captioning.info.run_id
    assert sharding.data.metrics["data/train"] + sharding.data.metrics["data/val"] == 4
    assert sharding.inputs.dataset_inputs[0].dataset.digest == load_index(out).digest[:36]
    # What a training on these shards will carry:
    assert data_run_tags(out) == {"data.run_id": sharding.info.run_id}


def test_the_run_is_no_part_of_the_data(
    uri: str, quick: None, samples: Path, tmp_path: Path
) -> None:
    cli.shard(samples, tmp_path / "tracked", tracking_uri=uri)
    plain = write_shards(samples, tmp_path / "plain")
    assert (tmp_path / "tracked" / TRACKING_NAME).is_file()
    assert verify(tmp_path / "tracked").digest == plain.digest
    assert write_shards(samples, tmp_path / "tracked").digest == plain.digest


def test_a_caption_job_that_goes_on_another_time_is_killed(
    uri: str, quick: None, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = CaptionSummary(samples, captioned=1, stopped="the money is spent")
    monkeypatch.setattr("kiss3d_train.data.captions.caption_samples", lambda *_, **__: stopped)
    with pytest.raises(SystemExit, match="the same command goes on"):
        cli.caption(samples, "metadata", tracking_uri=uri)
    assert last_run(uri).info.status == "KILLED"
