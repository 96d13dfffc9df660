"""A run over whole parts of the tiny base, in this process and without Ray."""

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_training import Records, free_port, join_group
from torch import Tensor

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.config import load_config
from kiss3d_infer.flux.base import base_identity
from kiss3d_train import checkpoint
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import load_index
from kiss3d_train.loop import Sink
from kiss3d_train.resume import identity_of
from kiss3d_train.whole.work import work
from kiss3d_train.worker import Job, Outcome

RECIPES = Path(__file__).parents[3] / "configs" / "train"
STEPS = 6


def overrides_of(run_dir: Path, base: Path, shards: Path) -> list[str]:
    return [
        f"run.dir={run_dir}",
        f"run.steps={STEPS}",
        f"base.path={base}",
        "base.dtype=float32",
        f"data.shards={shards}",
        "data.global_batch=16",
        "data.readers=2",
        "optimizer.warmup_steps=0",
        "optimizer.ema_decay=0.5",
        "scaling={micro_batch: 8}",
        "engine={kind: ddp}",
        "checkpoint={every: 3, keep: 9}",
        "validation.every=3",
        "validation.samples=3",
    ]


def train(recipe: str, overrides: list[str], sink: Sink | None = None) -> Outcome:
    config = load_config(TrainConfig, RECIPES / recipe, overrides).config
    identity = identity_of(config, base_identity(config.base.path), load_index(config.data.shards))
    return work(Job(config, None, PUBLISHED, identity, None, "run-1", 0.0, None), sink)


def run_straight(
    recipe: str, run_dir: Path, base: Path, shards: Path
) -> tuple[Path, Outcome, Records]:
    """A run that nothing interrupts, alone: its folder, what it returned and what it logged."""
    records = Records()
    join_group(0, 1, free_port())
    outcome = train(recipe, overrides_of(run_dir, base, shards), records)
    dist.destroy_process_group()
    return run_dir, outcome, records


def as_if_killed_after(step: int, straight: Path, killed: Path) -> None:
    """Leave in `killed` what the run in `straight` had written when it was at that step."""
    found = checkpoint.path_of(straight / "checkpoints", step)
    shutil.copytree(found, checkpoint.path_of(killed / "checkpoints", step))


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    """All weights of the base that a run has left, by part and name."""
    files = sorted((run_dir / "base").glob("*/*.safetensors"))
    return {f"{file.parent.name}.{n}": t for file in files for n, t in load_file(file).items()}


def check_that_it_resumes_bitwise(
    recipe: str, run_dir: Path, outcome: Outcome, base: Path, shards: Path, folder: Path
) -> None:
    """Go on in `folder` from the middle of a straight run, and end as that did."""
    as_if_killed_after(3, run_dir, folder)
    resumed = train(recipe, overrides_of(folder, base, shards))
    assert resumed.losses == outcome.losses[3:]
    assert resumed.validation == outcome.validation
    expected, found = weights_of(run_dir), weights_of(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
