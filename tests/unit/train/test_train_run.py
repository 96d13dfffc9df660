import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tiny_training import tiny_config

from kiss3d_infer.config import Resolved, load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked
from kiss3d_infer.tracking import Tracker
from kiss3d_train import run
from kiss3d_train.config import ScalingSection, TrainConfig
from kiss3d_train.run import check_resources, run_training, with_absolute_paths
from kiss3d_train.samples.painter import Easel
from kiss3d_train.summary import TrainSummary, adapter_of, finished_at, values_of
from kiss3d_train.worker import Job


@pytest.mark.parametrize(
    ("scaling", "available", "message"),
    [
        (
            {"workers": 4, "cpus_per_worker": 2},
            {"CPU": 6.0},
            "need 8 CPUs, the cluster has 6 .*lower scaling.cpus_per_worker or scaling.workers",
        ),
        (
            {"workers": 2, "use_gpu": True},
            {"CPU": 64.0},
            "need 2 GPUs, the cluster has 0 .*lower scaling.workers, or set scaling.use_gpu=false",
        ),
    ],
)
def test_workers_that_the_cluster_cannot_hold_are_refused(
    scaling: dict[str, Any], available: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_resources(ScalingSection(**scaling), available)


def test_workers_that_fill_the_cluster_are_accepted() -> None:
    scaling = ScalingSection(workers=2, use_gpu=True, cpus_per_worker=4)
    check_resources(scaling, {"CPU": 8.0, "GPU": 2.0})


@pytest.fixture
def finished(tmp_path: Path) -> TrainSummary:
    """A run of 12 steps as it lies in its folder."""
    summary = TrainSummary(
        status="finished",
        run_dir=str(tmp_path),
        run_id="run-1",
        steps=12,
        losses=(0.5, 0.25),
        validation={"val/loss": 0.3},
        seconds=1.0,
        peak_memory_bytes=1,
        adapter="adapter",
        how_to_open="mlflow ui",
    )
    (tmp_path / "summary.json").write_text(json.dumps(dataclasses.asdict(summary)))
    recipe = values_of(config_of(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps({"recipe": recipe}))
    adapter_of(tmp_path).parent.mkdir()
    adapter_of(tmp_path).touch()
    return summary


def config_of(run_dir: Path, **changes: object) -> TrainConfig:
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny_config({"run.dir": str(run_dir), "run.steps": 12} | changed)


def test_only_the_summary_of_the_newest_step_says_that_a_run_has_finished(
    finished: TrainSummary, tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    assert finished_at(12, config) == finished
    assert finished_at(20, config) is None  # it was given more steps, and died at the last one
    stopped = dataclasses.replace(finished, status="stopped")
    (tmp_path / "summary.json").write_text(json.dumps(dataclasses.asdict(stopped)))
    assert finished_at(12, config) is None
    (tmp_path / "summary.json").unlink()
    assert finished_at(12, config) is None


def test_a_run_without_its_adapter_has_not_finished(finished: TrainSummary, tmp_path: Path) -> None:
    adapter_of(tmp_path).unlink()
    assert finished_at(12, config_of(tmp_path)) is None


def test_another_recipe_is_not_called_finished(finished: TrainSummary, tmp_path: Path) -> None:
    other = config_of(tmp_path, optimizer__lr=1e-5, objective__caption_dropout=0.5)
    with pytest.raises(InputError, match=r"optimizer\.lr was 0\.01 and is now 1e-05") as caught:
        finished_at(12, other)
    assert "objective.caption_dropout was 0.1 and is now 0.5" in str(caught.value)
    # Checksums say that data and base are the same, wherever they lie.
    moved = config_of(tmp_path, base__path="elsewhere", data__shards="there", run__resume="auto")
    assert finished_at(12, moved) == finished


def test_a_run_folder_in_use_is_refused(tmp_path: Path, shards: Path, base: Path) -> None:
    paths = {"run.dir": tmp_path / "run", "base.path": base, "data.shards": shards}
    with locked(tmp_path / "run"), pytest.raises(InputError, match="another job is working here"):
        run_training(Resolved(tiny_config(paths), {}))


@pytest.mark.parametrize(
    ("is_there", "message"), [(True, "a shard is 1000 bytes long"), (False, "a shard is missing")]
)
def test_a_tar_that_is_cut_or_missing_is_refused_before_ray_starts(
    tmp_path: Path, shards: Path, base: Path, is_there: bool, message: str
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    tar = copy / "train-00000.tar"
    tar.write_bytes(bytes(1000)) if is_there else tar.unlink()
    paths = {"run.dir": tmp_path / "run", "base.path": base, "data.shards": copy}
    with pytest.raises(InputError, match=message):
        run_training(Resolved(tiny_config(paths), {}))
    assert not (tmp_path / "run").exists()


def test_an_unwritable_run_folder_is_refused(tmp_path: Path, shards: Path, base: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    paths = {"run.dir": tmp_path / "file" / "run", "base.path": base, "data.shards": shards}
    with pytest.raises(InputError, match="cannot write to the folder"):
        run_training(Resolved(tiny_config(paths), {}))


def test_workers_get_paths_that_do_not_depend_on_where_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_paths(tiny_config({"adapter.init_from": "runs/a/adapter"}))
    assert config.adapter.init_from == tmp_path / "runs" / "a" / "adapter"
    assert config.run.dir == tmp_path / "unused"
    assert with_absolute_paths(tiny_config()).adapter.init_from is None


def begin_late(run_dir: Path) -> None:
    time.sleep(0.3)


def begin_at_once(run_dir: Path) -> None:
    (run_dir / "logs" / "worker-0.log").write_text("worker-0 on a machine")
    time.sleep(0.3)


@pytest.mark.parametrize(("begin", "times"), [(begin_late, 1), (begin_at_once, 0)])
def test_a_wait_for_room_is_explained_once(
    begin: Callable[[Path], None],
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.log").write_text("of a driver that was killed")

    def fit() -> SimpleNamespace:
        begin(tmp_path)
        return SimpleNamespace(return_value="outcome")

    monkeypatch.setattr(run, "create_trainer", lambda *_: SimpleNamespace(fit=fit))
    monkeypatch.setattr(run, "keep_ray_logs", lambda *_: None)
    monkeypatch.setattr(run, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(run, "_LONG_START_SECONDS", 0.1)
    job = SimpleNamespace(config=config_of(tmp_path))
    easel = Easel(job.config, cast(Tracker, None))
    assert run._fit(cast(Job, job), easel) == "outcome"
    assert capsys.readouterr().err.count("no worker has begun yet") == times


@pytest.mark.parametrize("recipe", ["mini", "mini-base"])
def test_warnings_come_before_any_device_is_taken(
    recipe: str,
    shards: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class TakenError(Exception):
        pass

    def take(_: int) -> None:
        raise TakenError

    monkeypatch.setattr(run, "ray_session", take)
    overrides = [f"run.dir={tmp_path}", f"base.path={base}", f"data.shards={shards}"]
    overrides += ["run.steps=5", "engine.cuda_graphs=false", "tracking.uri=http://nowhere:1"]
    path = Path(__file__).parents[3] / "configs" / "train" / f"{recipe}.yaml"
    with pytest.raises(TakenError):
        run_training(load_config(TrainConfig, path, overrides))
    assert "warning: optimizer.warmup_steps reaches run.steps" in capsys.readouterr().err
