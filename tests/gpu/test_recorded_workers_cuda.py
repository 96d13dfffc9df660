"""Two workers whose passes are recorded, each on a GPU of its own, train as one does."""

from pathlib import Path

import pytest
import torch
from tiny_data import make_base, make_shards
from whole_training import RECIPES, overrides_of

from kiss3d_infer.config import load_config
from kiss3d_train.config import TrainConfig
from kiss3d_train.ray_session import ray_session
from kiss3d_train.run import run_training
from kiss3d_train.summary import TrainSummary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize(
    "special",
    [
        pytest.param(("mini-base.yaml",), id="whole"),
        pytest.param(("mini.yaml", "adapter.rank=4"), id="adapter"),
    ],
)
def test_two_workers_with_recorded_passes_train_as_one(
    special: tuple[str, ...], tmp_path: Path
) -> None:
    recipe, *more = special
    shards, base = make_shards(tmp_path), make_base(tmp_path)

    def trained(name: str, scaling: str) -> TrainSummary:
        overrides = [
            *overrides_of(tmp_path / name, base, shards),
            "engine={kind: ddp, cuda_graphs: true}",
            f"scaling={scaling}",
            f"tracking.uri=sqlite:///{tmp_path / 'mlruns.db'}",
            *more,
        ]
        return run_training(load_config(TrainConfig, RECIPES / recipe, overrides))

    with ray_session(2):
        alone = trained("alone", "{use_gpu: true, micro_batch: 16}")
        both = trained("both", "{use_gpu: true, micro_batch: 8, workers: 2}")
    assert both.losses == pytest.approx(alone.losses, rel=3e-3)
    assert both.validation == pytest.approx(alone.validation, rel=3e-3)
    assert len(set(both.losses)) == len(both.losses)  # no pass replays old data
