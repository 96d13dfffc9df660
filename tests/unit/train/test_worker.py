"""What a worker does with a recipe, alone in a process group of its own and without Ray."""

from functools import partial
from itertools import count
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from tiny_data import TILE
from tiny_training import Records

from kiss3d_infer.errors import InputError
from kiss3d_train import checkpoint, worker
from kiss3d_train.average import AVERAGE_KIND
from kiss3d_train.disk import disk_needs
from kiss3d_train.plan import make_plan
from kiss3d_train.samples.rounds import waiting_rounds
from kiss3d_train.summary import adapter_of, averaged_adapter_of
from kiss3d_train.worker import work

DEMO = Path(__file__).parents[3] / "configs" / "train" / "demo-mini.yaml"
job_of = partial(tiny_training.job_of, DEMO)


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def overrides(shards: Path, base: Path, tmp_path: Path) -> list[str]:
    return [
        f"run.dir={tmp_path / 'run'}",
        f"base.path={base}",
        f"data.shards={shards}",
        "data.global_batch=2",
        "adapter={rank: 2}",
        "optimizer.lr=1e-2",
        "optimizer.warmup_steps=0",
        "engine.kind=ddp",
        "scaling.workers=1",
        "scaling.micro_batch=2",
        "validation.samples=1",
    ]


def test_the_average_is_validated_saved_and_exported(overrides: list[str], latents: Path) -> None:
    job = job_of(overrides, latents, "run.steps=3", "optimizer.ema_decay=0.5")
    run_dir, sink = job.config.run.dir, Records()
    outcome = work(job, sink)
    weights, averages = load_file(adapter_of(run_dir)), load_file(averaged_adapter_of(run_dir))
    saved = checkpoint.load(checkpoint.path_of(checkpoint.checkpoints_of(job.config), 3)).state
    assert weights.keys() == averages.keys()
    for name, tensor in saved[AVERAGE_KIND].items():
        assert torch.equal(averages[f"transformer.{name}"], tensor)
        assert torch.equal(weights[f"transformer.{name}"], saved["weight"][name])
    planned = job.footprint.weights["average"]
    assert planned == sum(t.nbytes for t in saved[AVERAGE_KIND].values())
    assert any(not torch.equal(weights[name], tensor) for name, tensor in averages.items())
    assert {"train/loss_by_region/rgb", "val/loss_by_region/view_3"} <= sink.metrics[3].keys()

    # It changes what is validated and nothing of the training.
    other = [f"{overrides[0]}-plain", *overrides[1:], "run.steps=3"]
    plain = work(job_of(other, latents), None)
    assert plain.losses == outcome.losses
    assert plain.validation["val/loss"] != outcome.validation["val/loss"]
    # To go on without one leaves no old one behind.
    work(job_of(overrides, latents, "run.steps=3"), None)
    assert adapter_of(run_dir).exists() and not averaged_adapter_of(run_dir).exists()


def test_samples_that_cannot_be_written_are_a_warning(
    overrides: list[str], latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    class Shown(Records):
        def show(self, line: str) -> None:
            shown.append(line)

    def full(*_: object) -> None:
        raise InputError("the disk is full")

    asks = ["run.steps=2", "samples.every=1", "samples.prompts=[a lamp]", "validation.samples=0"]
    with monkeypatch.context() as patch:
        patch.setattr("kiss3d_train.worker._write_adapter", full)
        assert work(job_of(overrides, latents, *asks), Shown()).step == 2
    warnings = [line for line in shown if line.startswith("warning")]
    assert warnings == [f"warning: no samples of step {s}: the disk is full" for s in (1, 2)]
    job = job_of([f"{overrides[0]}-2", *overrides[1:]], latents, *asks)
    work(job, None)
    assert [what.step for what in waiting_rounds(job.config.run.dir)] == [1, 2]


def test_the_recipes_weighting_is_trained(overrides: list[str], latents: Path) -> None:
    overrides += ["run.steps=1", "validation.samples=0"]
    plain = work(job_of(overrides, latents), None)
    other = [f"{overrides[0]}-2", *overrides[1:], "objective.weighting=cosmap"]
    weighted = work(job_of(other, latents), None)
    ratio = weighted.losses[0] / plain.losses[0]
    # 2 / pi at the ends of the noise levels, 4 / pi between.
    assert 0.6366 < ratio < 1.2733
    assert ratio != pytest.approx(1, abs=1e-3)


def test_a_run_that_starts_from_a_lora_first_says_how_good_that_is(
    overrides: list[str], latents: Path, tmp_path: Path
) -> None:
    first = work(job_of(overrides, latents, "run.steps=2"), None)
    assert first.validation_at_start == {}
    trained = adapter_of(tmp_path / "run")
    further = [f"run.dir={tmp_path / 'further'}", *overrides[1:]]
    further += [f"adapter.init_from={trained}", "run.steps=1"]
    sink = Records()
    outcome = work(job_of(further, latents), sink)
    assert outcome.validation_at_start == first.validation  # the same weights on the same samples
    assert sink.metrics[0] == outcome.validation_at_start
    assert outcome.validation != outcome.validation_at_start
    resumed = work(job_of(further, latents, "run.steps=2"), None)
    assert resumed.validation_at_start == {}


def weight_bytes(folder: Path) -> int:
    files = folder.rglob("*.safetensors")
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


def test_the_plan_knows_all_the_weights_that_a_run_writes(
    overrides: list[str], latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = count()
    monkeypatch.setattr(worker, "held_out_loss", lambda *_: {"val/loss": float(next(rising))})
    asks = ["run.steps=3", "checkpoint.every=1", "checkpoint.keep=1", "validation.every=1"]
    asks += ["optimizer.ema_decay=0.5", "samples.every=2", "samples.prompts=[a lamp, a boat]"]
    job = job_of(overrides, latents, *asks)
    plan, run_dir = make_plan(job.config), job.config.run.dir
    work(job, None)
    needs = {need.what: need for need in disk_needs(plan)}
    assert needs["MLflow's copies"].num_bytes == needs["adapters"].num_bytes
    checkpoints = needs["checkpoints"].folder
    assert len(list(checkpoints.iterdir())) == 2  # the newest, and the best, which was the first
    being_written = plan.checkpoint_bytes
    assert needs["checkpoints"].num_bytes == weight_bytes(checkpoints) + being_written
    adapters = list(run_dir.glob("adapter*"))
    assert len(adapters) == 3
    assert needs["adapters"].num_bytes == sum(weight_bytes(folder) for folder in adapters)
    drawings = 2 * 2 * 3 * (4 * TILE) * (2 * TILE)  # of two prompts in two rounds
    assert needs["samples"].num_bytes == weight_bytes(run_dir / "samples") + drawings
    counted = sum(needs[name].num_bytes for name in ("checkpoints", "adapters", "samples"))
    assert weight_bytes(run_dir) == counted - being_written - drawings
