from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_training import tiny_config

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig, latents_beside
from kiss3d_train.loop import learning_rate

RECIPES = Path(__file__).parents[3] / "configs" / "train"


@pytest.mark.parametrize("name", ["demo-mini.yaml", "flux-lora.yaml"])
def test_recipes_of_the_project_are_valid(name: str) -> None:
    load_config(TrainConfig, RECIPES / name)


def test_an_indivisible_batch_says_what_must_divide_it() -> None:
    with pytest.raises(InputError, match=r"global_batch \(4\) must be a multiple .*\(1 x 3 = 3\)"):
        load_config(
            TrainConfig,
            RECIPES / "demo-mini.yaml",
            ["scaling.workers=3", "scaling.micro_batch=1", "data.global_batch=4"],
        )


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        load_config(
            TrainConfig,
            RECIPES / "demo-mini.yaml",
            ["optimizer.learning_rat=1", "adapter.rank=big"],
        )
    assert "optimizer.learning_rat" in str(caught.value)
    assert "adapter.rank" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps=true", "'run.steps': must be a number, not True"),
        ("engine.zero_stage=true", "'engine.zero_stage': must be a number"),
        ("optimizer.betas=[true, 0.9]", r"'optimizer.betas.0': must be a number"),
        ("optimizer.lr=.inf", "'optimizer.lr': input should be a finite number"),
        ("objective.guidance=.nan", "'objective.guidance': input should be a finite number"),
        ("adapter.targets=[]", "at least 1 item"),
        ("adapter.targets=['']", "at least 1 character"),
        ("samples.prompts=[a lamp, ' ']", "'samples.prompts.1': .*at least 1 character"),
        ("data.shards='pipe:cat secret'", "data is not read from 'pipe:' addresses"),
        ("data.latents=https://host/latents", "data is not read from 'https:' addresses"),
    ],
)
def test_values_that_are_no_numbers_or_name_nothing_are_refused(
    override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_config(TrainConfig, RECIPES / "demo-mini.yaml", [override])


def test_every_number_of_a_recipe_refuses_a_truth_value() -> None:
    config = tiny_config({"adapter.alpha": 1.0, "engine.bucket_elements": 1})
    for name, section in config.model_dump().items():
        for key, value in (section or {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                with pytest.raises(ValidationError, match="must be a number"):
                    tiny_config({f"{name}.{key}": True})


def test_whole_numbers_and_yamls_exponents_are_numbers() -> None:
    recipe = RECIPES / "demo-mini.yaml"
    overrides = ["optimizer.lr=1e-4", "objective.guidance=1"]  # the first is text to YAML
    config = load_config(TrainConfig, recipe, overrides).config
    assert (config.optimizer.lr, config.objective.guidance) == (1e-4, 1.0)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("demo-mini.yaml", [], "needs engine.kind=ddp"),
        ("mini-vae.yaml", [], "for transformers"),
        ("mini.yaml", ["scaling.micro_batch=32"], "one forward pass per worker and step"),
        (
            "mini.yaml",
            ["scaling.workers=2", "scaling.min_workers=1", "scaling.micro_batch=32"],
            "one forward pass per worker and step",
        ),
    ],
)
def test_passes_are_recorded_only_where_a_gradient_is_not_overwritten(
    recipe: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_config(TrainConfig, RECIPES / recipe, ["engine.cuda_graphs=true", *overrides])


def test_passes_are_recorded_on_gpus_alone() -> None:
    overrides = ["engine.cuda_graphs=true"]
    engine = load_config(TrainConfig, RECIPES / "mini.yaml", overrides).config.engine
    assert engine.records_on("cuda")
    assert not engine.records_on("cpu")


def test_alpha_defaults_to_the_rank() -> None:
    assert tiny_config({"adapter.rank": 8}).adapter.resolved_alpha == 8.0
    assert tiny_config({"adapter.alpha": 0.5}).adapter.resolved_alpha == 0.5


def test_accumulation_follows_from_the_global_batch() -> None:
    config = tiny_config({"data.global_batch": 12, "scaling.workers": 2, "scaling.micro_batch": 3})
    assert config.accumulation == 2


def test_learning_rate_warms_up_then_follows_the_schedule() -> None:
    changes = {
        "run.steps": 14,
        "optimizer.lr": 1.0,
        "optimizer.warmup_steps": 4,
        "optimizer.schedule": "cosine",
    }
    config = tiny_config(changes)
    rates = [learning_rate(config, step) for step in range(14)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[9] == pytest.approx(0.5)
    assert rates[-1] < 0.03
    constant = tiny_config({"optimizer.lr": 0.3})
    assert learning_rate(constant, 10_000) == 0.3


def test_data_may_lie_in_a_store_or_on_disk() -> None:
    config = tiny_config({"data.shards": "s3://bucket/set/"})
    assert (config.data.shards, config.latents_root) == (
        "s3://bucket/set",
        "s3://bucket/set.latents",
    )
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert tiny_config({"data.shards": "file:///data/set"}).data.shards == Path("/data/set")
    assert latents_beside(Path("/data/set")) == Path("/data/set.latents")


def test_the_batch_must_divide_by_every_number_of_workers_that_may_run() -> None:
    def recipe(batch: int, fewest: int) -> TrainConfig:
        scaling = {"scaling.workers": 4, "scaling.min_workers": fewest}
        return tiny_config({"data.global_batch": batch} | scaling)

    assert recipe(12, 2).scaling.min_workers == 2
    with pytest.raises(ValueError, match=r"\(1 x 3 = 3\)"):
        recipe(8, 2)
    with pytest.raises(ValueError, match="more than scaling"):
        recipe(12, 5)
