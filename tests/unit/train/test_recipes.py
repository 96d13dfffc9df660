"""Every recipe in configs/train: valid, planned with its base's configuration, and trainable."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_training import free_port, join_group, tiny_engine, train_steps

from kiss3d_infer.config import load_config
from kiss3d_train.cli import plan, validate
from kiss3d_train.config import TrainConfig
from kiss3d_train.plan import make_plan

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


def model_of(recipe: Path) -> Path:
    """The configuration of the base that the recipe is for."""
    config = load_config(TrainConfig, recipe).config
    if config.full is not None or config.base.path in (MINI_BASE / "base", PACKAGED):
        return CONFIGS / "models" / "mini"
    return CONFIGS / "models" / "tiny" if config.base.path.name == "tiny" else FLUX


def trains_adapter(recipe: Path) -> bool:
    return load_config(TrainConfig, recipe).config.full is None


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


@pytest.mark.parametrize("recipe", filter(trains_adapter, RECIPES), ids=lambda recipe: recipe.stem)
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
