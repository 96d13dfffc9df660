"""Training of an adapter with its data on the device."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from tiny_training import Records, free_port, job_of, join_group, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from whole_training import as_if_killed_after

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_train import checkpoint
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.latents import LatentSplit, open_split
from kiss3d_train.data.resident import ResidentSamples, ResidentStream, read_resident
from kiss3d_train.data.shards import load_index
from kiss3d_train.figures import figures_of
from kiss3d_train.objective import Batch, pack
from kiss3d_train.plan import make_plan
from kiss3d_train.worker import Outcome, work

RECIPE = Path(__file__).parents[3] / "configs" / "train" / "mini.yaml"
CPU = torch.device("cpu")
STEPS = 6


@pytest.fixture(scope="module")
def split(shards: Path, latents: Path) -> LatentSplit:
    return open_split(latents, load_index(shards), "train")


@pytest.fixture(scope="module")
def samples(split: LatentSplit) -> ResidentSamples:
    return read_resident(split, CPU, threads=2)


def overrides_of(run_dir: Path, base: Path, shards: Path) -> list[str]:
    return [
        f"run.dir={run_dir}",
        f"run.steps={STEPS}",
        f"base.path={base}",
        "base.dtype=float32",
        "base.gradient_checkpointing=false",
        f"data.shards={shards}",
        "data.global_batch=8",
        "data.readers=2",
        "adapter.rank=2",
        "optimizer={lr: 0.02, ema_decay: 0.5}",
        "scaling={micro_batch: 4}",
        "engine={kind: ddp}",
        "checkpoint={every: 3, keep: 9}",
        "validation={every: 3, samples: 2}",
    ]


def train(overrides: list[str], latents: Path, sink: Records | None = None) -> Outcome:
    return work(job_of(RECIPE, overrides, latents), sink)


@pytest.fixture(scope="module")
def straight(
    shards: Path, base: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome, Records]:
    """A run that nothing interrupted: its folder, what it returned and what it logged."""
    run_dir, records = tmp_path_factory.mktemp("resident") / "run", Records()
    join_group(0, 1, free_port())
    outcome = train(overrides_of(run_dir, base, shards), latents, records)
    dist.destroy_process_group()
    return run_dir, outcome, records


def test_it_learns(straight: tuple[Path, Outcome, Records]) -> None:
    _, outcome, records = straight
    assert len(outcome.losses) == STEPS
    assert all(map(math.isfinite, outcome.losses))
    assert records.metrics[6]["val/loss"] < records.metrics[3]["val/loss"]


def test_a_killed_run_ends_as_a_straight_one_bitwise(
    straight: tuple[Path, Outcome, Records],
    shards: Path,
    base: Path,
    latents: Path,
    tmp_path: Path,
    alone: None,
) -> None:
    run_dir, outcome, _ = straight
    as_if_killed_after(3, run_dir, tmp_path)
    resumed = train(overrides_of(tmp_path, base, shards), latents)
    assert resumed.losses == outcome.losses[3:]
    assert resumed.validation == outcome.validation
    expected, found = (
        checkpoint.load(checkpoint.path_of(folder / "checkpoints", STEPS)).state
        for folder in (run_dir, tmp_path)
    )
    for kind, tensors in expected.items():
        assert all(torch.equal(found[kind][name], tensor) for name, tensor in tensors.items())


def test_a_run_does_not_go_on_with_data_that_streams(
    straight: tuple[Path, Outcome, Records],
    shards: Path,
    base: Path,
    latents: Path,
    tmp_path: Path,
    alone: None,
) -> None:
    as_if_killed_after(3, straight[0], tmp_path)
    with pytest.raises(InputError, match="resident was True and is now False"):
        train([*overrides_of(tmp_path, base, shards), "data.resident=false"], latents)


def test_it_is_measured_as_a_run_that_streams(
    shards: Path, base: Path, latents: Path, tmp_path: Path, alone: None
) -> None:
    at_start = ["run.steps=1", "optimizer={lr: 1.0e-12}"]
    found, expected = (
        train([*overrides_of(tmp_path / kind, base, shards), *at_start, *more], latents)
        for kind, more in (("resident", ()), ("streamed", ("data.resident=false",)))
    )
    assert found.validation == pytest.approx(expected.validation, rel=1e-6)
    assert found.losses != expected.losses


def test_two_workers_see_what_one_sees(samples: ResidentSamples) -> None:
    config = tiny_config({"scaling.micro_batch": 2, "objective.caption_dropout": 0.5})
    alone = ResidentStream(samples, config, 0, 1)
    both = [ResidentStream(samples, config, rank, 2) for rank in range(2)]
    for step in range(4):  # more than an epoch
        expected = alone.micro_batches(step)
        found = [batch for stream in both for batch in stream.micro_batches(step)]
        assert len(expected) == len(found) == 2
        for a, b in zip(expected, found, strict=True):
            for field in dataclasses.fields(Batch):
                if field.name != "grid":
                    assert torch.equal(getattr(a, field.name), getattr(b, field.name)), field.name


def test_an_epoch_holds_each_sample_once_with_its_prompt(
    split: LatentSplit, samples: ResidentSamples
) -> None:
    sure = dataclasses.replace(samples, logvar_SNC=torch.full_like(samples.logvar_SNC, -1e4))
    config = tiny_config({"data.global_batch": len(split), "objective.caption_dropout": 0.0})
    batch = Batch.stacked(ResidentStream(sure, config, 0, 1).micro_batches(1))
    seen = []
    for row, x0_NC in enumerate(batch.x0_BNC):
        for index in range(len(split)):
            sample = split[index]
            if torch.equal(pack(sample.mean_chw), x0_NC):
                seen.append(index)
                assert torch.equal(batch.prompt_BLD[row], sample.prompt_LD)
                assert torch.equal(batch.pooled_BP[row], sample.pooled_P)
    assert sorted(seen) == list(range(len(split)))
    assert len(samples.states_QLD) < len(split)  # captions come more than once


def test_latents_are_drawn_from_their_posterior(samples: ResidentSamples) -> None:
    unit = dataclasses.replace(
        samples,
        mean_SNC=torch.full_like(samples.mean_SNC, 5),
        logvar_SNC=torch.full_like(samples.logvar_SNC, 2 * math.log(3)),
    )
    config = tiny_config({"data.global_batch": 64})
    batch = Batch.stacked(ResidentStream(unit, config, 0, 1).micro_batches(0))
    posterior = (batch.x0_BNC - 5) / 3
    assert posterior.mean().item() == pytest.approx(0, abs=0.02)
    assert posterior.std().item() == pytest.approx(1, abs=0.02)
    both = torch.stack([posterior.flatten(), batch.noise_BNC.flatten()])
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(0, abs=0.02)


def test_a_dropped_caption_becomes_the_bare_prompt(
    split: LatentSplit, samples: ResidentSamples
) -> None:
    stream = ResidentStream(samples, tiny_config({"objective.caption_dropout": 1.0}), 0, 1)
    bare = split[0].bare_prompt_LD
    prompts = Batch.stacked(stream.micro_batches(3)).prompt_BLD
    assert torch.equal(prompts, bare.expand_as(prompts))


def test_no_value_is_fetched_from_the_device_in_a_step(samples: ResidentSamples) -> None:
    called: list[str] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            called.append(func.name())
            return func(*args, **(kwargs or {}))

    stream = ResidentStream(samples, tiny_config(), 0, 1)
    stream.micro_batches(0)  # draws the order of the epoch
    with Recorded():
        stream.micro_batches(1)
    assert "aten::index.Tensor" in called
    assert not {"aten::_local_scalar_dense", "aten::nonzero"} & set(called)


def test_reading_tells_how_far_it_is(split: LatentSplit) -> None:
    shown: list[str] = []
    read_resident(split, CPU, threads=2, show=shown.append)
    assert f"read {len(split)} of {len(split)} latents" in shown
    assert shown[-1].startswith("read 4 of 4 prompts")  # three captions, and none


def test_a_split_that_is_larger_than_the_memory_is_told(
    split: LatentSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(InputError, match=r"takes 0\.0 GiB, and 0\.0 GiB are free"):
        read_resident(split, CPU, threads=2)


def test_the_plan_says_what_it_takes(shards: Path, base: Path) -> None:
    def figures(*more: str) -> dict[str, str]:
        overrides = [*overrides_of(Path("unused"), base, shards), *more]
        return dict(figures_of(make_plan(load_config(TrainConfig, RECIPE, overrides).config)))

    assert "MiB of latents" in figures()["resident on each device"]
    assert "resident on each device" not in figures("data.resident=false")


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [("mini-vae.yaml", ["data.resident=true"]), ("mini.yaml", ["data.on_corrupt=skip"])],
)
def test_what_it_does_not_go_with_is_refused(recipe: str, overrides: list[str]) -> None:
    with pytest.raises(InputError, match=r"data\.resident"):
        load_config(TrainConfig, RECIPE.with_name(recipe), overrides)
