import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_training import tiny_config

from kiss3d_infer.config import Resolved
from kiss3d_infer.errors import InputError
from kiss3d_train.config import ScalingSection
from kiss3d_train.run import TrainSummary, check_resources, finished_at, run_training


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


def test_only_the_summary_of_the_newest_step_says_that_a_run_has_finished(tmp_path: Path) -> None:
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
    assert finished_at(12, tmp_path) is None
    (tmp_path / "summary.json").write_text(json.dumps(dataclasses.asdict(summary)))
    assert finished_at(12, tmp_path) == summary
    assert finished_at(20, tmp_path) is None  # it was given more steps, and died at the last one
    stopped = dataclasses.replace(summary, status="stopped")
    (tmp_path / "summary.json").write_text(json.dumps(dataclasses.asdict(stopped)))
    assert finished_at(12, tmp_path) is None


def test_an_unwritable_run_folder_is_refused(tmp_path: Path, shards: Path, base: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    paths = {"run.dir": tmp_path / "file" / "run", "base.path": base, "data.shards": shards}
    with pytest.raises(InputError, match="cannot write to the folder"):
        run_training(Resolved(tiny_config(paths), {}))
