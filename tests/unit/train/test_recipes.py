"""Every recipe in configs/train: valid, planned with its base's configuration, and trainable."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import free_port, job_of, join_group, run_workers, tiny_engine, train_steps

from kiss3d_infer.config import load_config
from kiss3d_train.cli import plan, validate
from kiss3d_train.config import TrainConfig
from kiss3d_train.plan import make_plan
from kiss3d_train.summary import adapter_of
from kiss3d_train.worker import work

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted((CONFIGS / "train").glob("*.yaml"))
MINI_BASE = load_config(TrainConfig, CONFIGS / "train" / "mini-base.yaml").config.run.dir
PACKAGED = Path("kiss3d_infer", "mini", "base")
FLUX = CONFIGS / "models" / "flux1-dev"
ON_CPU = [
    "base.dtype=float32",
    "base.gradient_checkpointing=false",
    "data.global_batch=2",
    "adapter.init_from=null",
    "engine={kind: ddp}",
    "scaling={}",
]
SEEDS = {"base-147k": 1, "base-50k": 0, "doll": 0}
"""The paper's bases, and what goes on from the first one's adapter; with seeds that tell whose
adapter is whose."""
ON_TWO_CORES = [
    "run.steps=2",
    "data.global_batch=8",
    "scaling.use_gpu=false",
    "scaling.workers=2",
    "scaling.cpus_per_worker=1",
]


def model_of(recipe: Path) -> Path:
    """The configuration of the base that the recipe is for."""
    config = load_config(TrainConfig, recipe).config
    if config.full is not None or config.base.path in (MINI_BASE / "base", PACKAGED):
        return CONFIGS / "models" / "mini"
    return CONFIGS / "models" / "tiny" if config.base.path.name == "tiny" else FLUX


def trains_adapter_alone(recipe: Path) -> bool:
    return load_config(TrainConfig, recipe).config.full is None and recipe.stem not in SEEDS


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    join_group(0, 1, free_port())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_it_validates_and_plans(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validate(recipe)
    plan(recipe, [f"base.path={model_of(recipe)}"])
    printed = capsys.readouterr().out
    assert f"{recipe} is valid" in printed
    assert "memory per worker" in printed


@pytest.mark.parametrize(
    "recipe", filter(trains_adapter_alone, RECIPES), ids=lambda recipe: recipe.stem
)
def test_it_trains_a_tiny_model(recipe: Path, group: None) -> None:
    config = load_config(TrainConfig, recipe, ON_CPU).config
    engine = tiny_engine(config)
    before = {name: p.detach().clone() for name, p in engine.parameters.items()}
    losses = train_steps(engine, config, 0, 2)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(not torch.equal(before[n], p) for n, p in engine.parameters.items() if "_B" in n)


@pytest.mark.parametrize(("name", "samples"), [("base-147k", 147_000), ("base-50k", 50_000)])
def test_the_bases_see_their_data_sixteen_times(name: str, samples: int) -> None:
    config = load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml").config
    assert config.run.steps * config.data.global_batch == 16 * samples


def test_the_switcher_differs_from_its_base_in_the_switch_alone() -> None:
    base, switcher = (
        load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml").config.model_dump()
        for name in ("base-50k", "switcher")
    )
    assert switcher["data"].pop("domains") == "switch"
    assert base["data"].pop("domains") == "bundle"
    assert (base["run"].pop("dir").name, switcher["run"].pop("dir").name) == (
        "base-50k",
        "switcher",
    )
    assert switcher == base


@pytest.mark.parametrize("name", ["base-147k", "base-50k", "doll", "flux-lora", "switcher"])
def test_they_fit_on_cards_of_80_gb(name: str) -> None:
    recipe = CONFIGS / "train" / f"{name}.yaml"
    figures = make_plan(load_config(TrainConfig, recipe, [f"base.path={FLUX}"]).config)
    assert sum(figures.memory.values()) < 77


def test_the_doll_starts_from_what_the_base_leaves() -> None:
    doll, base = (
        load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml").config
        for name in ("doll", "base-147k")
    )
    assert doll.adapter.init_from == base.run.dir / "adapter"
    assert doll.adapter.model_copy(update={"init_from": None}) == base.adapter


def train_in_turn(rank: int, port: int, folder: Path, latents: Path) -> None:
    """What each of two workers does with these recipes, in a folder that holds what they name."""
    os.chdir(folder)
    join_group(rank, 2, port)
    for name, seed in SEEDS.items():
        recipe = CONFIGS / "train" / f"{name}.yaml"
        outcome = work(job_of(recipe, ON_TWO_CORES, latents, f"run.seed={seed}"), None)
        if rank == 0:
            (folder / f"{name}.json").write_text(json.dumps(asdict(outcome)))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(
    shards: Path, base: Path, latents: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder in which they ran, one after the other."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in SEEDS:
        config = load_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml").config
        for place, target in ((config.data.shards, shards), (config.base.path, base)):
            (folder / place).parent.mkdir(exist_ok=True)
            if not (folder / place).exists():
                (folder / place).symlink_to(target)
    context = multiprocessing.get_context("spawn")
    run_workers(context, 2, train_in_turn, free_port(), folder, latents)
    return folder


@pytest.mark.parametrize("name", SEEDS)
def test_a_recipe_of_the_paper_trains_and_leaves_its_adapter(trained: Path, name: str) -> None:
    outcome = outcome_of(trained, name)
    assert (outcome["step"], len(outcome["losses"])) == (2, 2)
    assert all(torch.isfinite(torch.tensor(outcome["losses"])))
    weights = load_file(adapter_of(trained / "runs" / name))
    trained_from_zero = [tensor for key, tensor in weights.items() if "lora_B" in key]
    assert trained_from_zero and all(tensor.any() for tensor in trained_from_zero)
    checkpoints = trained / "runs" / name / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000002"]


def test_the_doll_goes_on_from_the_adapter_that_the_base_left(trained: Path) -> None:
    base, doll = (outcome_of(trained, name) for name in ("base-147k", "doll"))
    assert base["validation_at_start"] == {}
    assert doll["validation_at_start"] == pytest.approx(base["validation"])
    before, after = (
        load_file(adapter_of(trained / "runs" / name)) for name in ("base-147k", "doll")
    )
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert not torch.equal(after[key], tensor), key
        # Two steps of the warm-up change little, and weights of the doll's own seed are far away.
        assert torch.allclose(after[key], tensor, atol=1e-4), key


def outcome_of(folder: Path, name: str) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return outcome
