"""Whole parts over Ray Train on two workers: the same losses as alone, and what a run leaves."""

import json
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from kiss3d_infer.config import load_config
from kiss3d_infer.flux.base import load_base
from kiss3d_train.config import TrainConfig
from kiss3d_train.ray_session import ray_session
from kiss3d_train.run import run_training
from kiss3d_train.summary import TrainSummary

sys.path.append(str(Path(__file__).parents[1] / "unit" / "train"))

from tiny_data import make_base, make_shards
from tiny_training import free_port, join_group
from whole_training import RECIPES, STEPS, overrides_of, train


def train_over_ray(recipe: str, overrides: list[str]) -> TrainSummary:
    return run_training(load_config(TrainConfig, RECIPES / recipe, overrides))


def test_two_workers_train_as_one_and_leave_a_base(tmp_path: Path) -> None:
    shards, base = make_shards(tmp_path), make_base(tmp_path)
    with ray_session(2):
        for recipe, metric, special in (
            ("mini-vae.yaml", "val/psnr", []),
            # Recorded on GPUs only; but the gradients are averaged as for recorded passes.
            ("mini-base.yaml", "val/loss", ["engine.cuda_graphs=true"]),
        ):
            folder = tmp_path / recipe
            join_group(0, 1, free_port())
            alone = train(recipe, overrides_of(folder / "alone", base, shards))
            dist.destroy_process_group()
            summary = train_over_ray(
                recipe,
                [
                    *overrides_of(folder / "both", base, shards),
                    "scaling={micro_batch: 8, workers: 2}",
                    f"tracking.uri=sqlite:///{tmp_path / 'mlruns.db'}",
                    *special,
                ],
            )
            assert summary.losses == pytest.approx(alone.losses, rel=1e-4)
            assert summary.validation[metric] == pytest.approx(alone.validation[metric], rel=1e-4)
            assert summary.steps == STEPS
            assert summary.adapter == str(folder / "both" / "base")
            load_base(Path(summary.adapter), dtype="float32")
            record = json.loads((folder / "both" / "run.json").read_text())
            assert record["tracking_run"] == summary.run_id
            base = Path(summary.adapter)  # the next stage goes on from it
