"""A training run on two nodes that loses one of them."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from kiss3d_infer.config import load_config
from kiss3d_train.config import TrainConfig
from kiss3d_train.run import run_training
from kiss3d_train.summary import TrainSummary

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "train"))

from tiny_data import make_base, make_shards  # noqa: E402

STEPS = 40
RECIPE = ROOT / "configs" / "train" / "demo-mini.yaml"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core; jobs of this process and of those it starts find them."""
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        # Ray counts a lost node for some seconds more, and waits this long for its workers.
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        nodes.shutdown()


def overrides_of(folder: Path, run: str) -> list[str]:
    return [
        f"run.dir={folder / run}",
        f"run.steps={STEPS}",
        "run.log_every=1",
        f"base.path={folder / 'base'}",
        f"data.shards={folder / 'shards'}",
        "data.global_batch=4",
        "adapter={rank: 4}",
        "scaling.workers=2",
        "scaling.min_workers=1",
        "checkpoint.every=4",
        "checkpoint.keep=99",
        "validation.samples=0",
        f"tracking.uri=sqlite:///{folder / 'mlruns.db'}",
    ]


def train(folder: Path, run: str, *more: str) -> TrainSummary:
    return run_training(load_config(TrainConfig, RECIPE, [*overrides_of(folder, run), *more]))


def losses_of(folder: Path, run_id: str) -> dict[int, float]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlruns.db'}")
    assert client.get_run(run_id).info.status == "FINISHED"
    points = client.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in points) == list(range(1, STEPS + 1))
    return {point.step: point.value for point in points}


def remove_a_node_after(checkpoint: Path, cluster: Cluster) -> None:
    while not checkpoint.exists():
        time.sleep(0.01)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def test_a_run_that_loses_a_node_goes_on_with_the_other(cluster: Cluster, tmp_path: Path) -> None:
    make_shards(tmp_path)
    make_base(tmp_path)
    checkpoint = tmp_path / "lossy" / "checkpoints" / "step-00000008"
    killer = threading.Thread(target=remove_a_node_after, args=[checkpoint, cluster])
    killer.start()
    lossy = train(tmp_path, "lossy")
    killer.join()
    assert (lossy.status, lossy.steps) == ("finished", STEPS)
    assert 0 < len(lossy.losses) <= STEPS - 8  # by the worker that was left, from a checkpoint
    alone = train(tmp_path, "alone", "scaling.workers=1")
    # The same global batches on two workers and on one, with every step in MLflow once.
    found, expected = (losses_of(tmp_path, run.run_id) for run in (lossy, alone))
    assert found == pytest.approx(expected, rel=1e-4)
