"""Runs over Ray on a data set whose tars are missing, cut or altered."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.ray_session import ray_session
from kiss3d_train.run import run_training
from kiss3d_train.summary import TrainSummary

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "train"))

from tiny_data import make_base, make_shards  # noqa: E402

STEPS, BATCH = 6, 4  # four epochs
LOST, IN_LOST = "train-00000.tar", 5


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a data set of two tars for training; not to be changed."""
    folder = tmp_path_factory.mktemp("lost")
    make_shards(folder)
    make_base(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with ray_session(2):
        yield


@pytest.fixture
def workspace(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source / "shards", tmp_path / "shards")
    (tmp_path / "base").symlink_to(source / "base")
    return tmp_path


def train(workspace: Path, run: str, *more: str) -> TrainSummary:
    overrides = [
        f"run.dir={workspace / run}",
        f"run.steps={STEPS}",
        f"base.path={workspace / 'base'}",
        f"data.shards={workspace / 'shards'}",
        f"data.global_batch={BATCH}",
        "adapter={rank: 2}",
        "optimizer.schedule=constant",
        "scaling.micro_batch=2",
        "validation.samples=1",
        f"tracking.uri=sqlite:///{workspace / 'mlruns.db'}",
        *more,
    ]
    recipe = ROOT / "configs" / "train" / "demo-mini.yaml"
    return run_training(load_config(TrainConfig, recipe, overrides))


def num_skipped(workspace: Path, summary: TrainSummary) -> float:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlruns.db'}")
    value: float = client.get_run(summary.run_id).data.metrics["data/skipped_samples"]
    return value


def test_others_take_the_place_of_a_lost_shards_samples_and_of_the_same_when_resumed(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace / "shards" / LOST).unlink()
    with pytest.raises(InputError, match=f"a shard is missing.*{LOST}"):
        train(workspace, "stopped")
    straight = train(workspace, "straight", "data.on_corrupt=skip")
    assert (straight.status, straight.steps) == ("finished", STEPS)
    assert num_skipped(workspace, straight) >= 4 * IN_LOST  # some find another one of them
    lines = [line for line in capsys.readouterr().err.splitlines() if "are skipped" in line]
    assert len(lines) == 1 and LOST in lines[0]
    first = train(workspace, "resumed", "data.on_corrupt=skip", f"run.steps={STEPS // 2}")
    then = train(workspace, "resumed", "data.on_corrupt=skip")
    assert first.losses + then.losses == straight.losses


def test_an_altered_tar_stops_a_run_or_is_skipped(workspace: Path) -> None:
    tar = workspace / "shards" / LOST  # of the right length, so that only encoding finds it out
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(InputError, match="differ from the index"):
        train(workspace, "run")
    summary = train(workspace, "run", "data.on_corrupt=skip")
    assert (summary.status, summary.steps) == ("finished", STEPS)
    assert num_skipped(workspace, summary) > 0


def test_a_run_needs_no_tar_that_is_encoded(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = train(workspace, "before")
    assert "encoded before" not in capsys.readouterr().err
    for tar in (workspace / "shards").glob("*.tar"):
        tar.unlink()
    after = train(workspace, "after", "data.on_corrupt=skip")
    assert after.losses == before.losses
    assert num_skipped(workspace, after) == 0
    assert capsys.readouterr().err.count("were encoded before") == 1
