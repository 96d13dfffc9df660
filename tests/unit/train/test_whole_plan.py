"""What a recipe for whole parts says before it starts."""

from pathlib import Path

import pytest

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import SPLITS, IndexedSample, IndexedShard, ShardIndex
from kiss3d_train.whole.plan import WholePlan, plan_whole, whole_figures
from kiss3d_train.whole.traps import whole_traps

CONFIGS = Path(__file__).parents[3] / "configs"
VAE, BASE = "mini-vae", "mini-base"


@pytest.fixture(autouse=True)
def one_machine_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """The index of 100 bundles of 128-pixel tiles per split."""
    sample = IndexedSample(key="a", members={}, sha256="")
    shards = tuple(
        IndexedShard(
            name=f"{split}-00000.tar", split=split, size=0, sha256=split, samples=(sample,) * 100
        )
        for split in SPLITS
    )
    index = ShardIndex(layout=PUBLISHED, tile=128, image_format="webp", shards=shards, digest="d")
    (tmp_path / "index.json").write_text(index.model_dump_json())
    return tmp_path


def plan_of(recipe: str, shards: Path, *overrides: str) -> WholePlan:
    base = [f"base.path={CONFIGS / 'models' / 'mini'}", f"data.shards={shards}"]
    path = CONFIGS / "train" / f"{recipe}.yaml"
    return plan_whole(load_config(TrainConfig, path, [*base, *overrides]).config)


@pytest.mark.parametrize("recipe", [VAE, BASE])
def test_the_recipes_of_the_mini_have_no_warning(recipe: str, toys: Path) -> None:
    assert whole_traps(plan_of(recipe, toys)) == []
    assert whole_traps(plan_of(recipe, toys / "nowhere")) == []


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        (VAE, "scaling.micro_batch=4", "give a multiple of 8, the tiles of a bundle"),
        (VAE, "engine.compile=true", "never compiled"),
        (VAE, "engine.memory_budget_gib=0.01", "of which there are 0"),
        (BASE, "base.gradient_checkpointing=true", "does nothing where whole parts train"),
        (BASE, "base.dtype=float32", "several times slower"),
        (BASE, "objective.shift=6", "FLUX.1's own for 64 image tokens"),
        (BASE, "optimizer.warmup_steps=20000", "peak learning rate is never used"),
        (BASE, "checkpoint.every=20000", "a crash loses the whole run"),
        (BASE, "validation.samples=200", "but 100 are held out"),
    ],
)
def test_every_trap_of_a_recipe_is_named(
    recipe: str, override: str, words: str, toys: Path
) -> None:
    (sentence,) = whole_traps(plan_of(recipe, toys, override))
    assert words in sentence


def test_too_few_units_are_named_in_what_a_batch_is_counted_in(toys: Path) -> None:
    many = ["data.global_batch=512", "scaling.micro_batch=512"]
    assert whole_traps(plan_of(VAE, toys, *many)) == []  # 100 bundles are 800 tiles
    (sentence,) = whole_traps(plan_of(BASE, toys, *many))
    assert "the 400 training samples are fewer" in sentence


def test_figures_are_those_worked_out_by_hand(toys: Path) -> None:
    figures = dict(whole_figures(plan_of(BASE, toys)))
    assert figures["steps per epoch"] == "1.6"
    assert figures["end of an epoch"].startswith("144 views are left")
    # 34.7 M weights with their gradients, moments and average, float32.
    assert figures["memory per worker"].startswith("662.5 MiB of weights")
    assert figures["card"].endswith("76.4 GiB left for the pictures and the passes")
    assert figures["disk: checkpoints"] == "1.6 GiB"  # two and the next, of four tensors each
    two = ["scaling={workers: 2, micro_batch: 128}", "engine={kind: ddp}"]
    assert "gradient buckets" in dict(whole_figures(plan_of(BASE, toys, *two)))


def test_tokens_are_those_of_what_is_drawn(toys: Path) -> None:
    assert plan_of(BASE, toys).image_tokens == 64
    assert plan_of(BASE, toys, "full.draws=bundles").image_tokens == 512
    assert plan_of(VAE, toys).image_tokens is None


def test_a_base_in_one_file_is_refused_before_it_is_read(toys: Path, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    file.touch()
    with pytest.raises(InputError, match="in folders, one per part"):
        plan_of(VAE, toys, f"base.path={file}")
