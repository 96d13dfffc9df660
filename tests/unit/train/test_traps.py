import shutil
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.config import load_config
from kiss3d_train import disk
from kiss3d_train import traps as module
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.encode import create_cache, describe_encoder
from kiss3d_train.data.shards import SPLITS, IndexedSample, IndexedShard, ShardIndex
from kiss3d_train.plan import make_plan
from kiss3d_train.traps import traps

ROOT = Path(__file__).parents[3]
FLUX = ROOT / "configs" / "models" / "flux1-dev"
Usage = namedtuple("Usage", "total used free")
Mount = namedtuple("Mount", "mountpoint fstype")


def warnings_of(shards: Path, *overrides: str) -> list[str]:
    base = [f"base.path={FLUX}", f"data.shards={shards}", *overrides]
    recipe = ROOT / "configs" / "train" / "flux-lora.yaml"
    return traps(make_plan(load_config(TrainConfig, recipe, base).config))


@pytest.fixture(autouse=True)
def one_machine_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index of a full-size data set, on a disk with room for it."""
    sample = IndexedSample(key="a", members={}, sha256="")
    folder = tmp_path / "shards"
    folder.mkdir()
    index = ShardIndex(
        layout=PUBLISHED,
        tile=512,
        image_format="webp",
        shards=tuple(
            IndexedShard(
                name=f"{split}-00000.tar",
                split=split,
                size=0,
                sha256=split,
                samples=(sample,) * 100,
            )
            for split in SPLITS
        ),
        digest="d",
    )
    (folder / "index.json").write_text(index.model_dump_json())
    free_bytes(monkeypatch, 1 << 50)
    return folder


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))


def test_a_sound_recipe_has_no_warning(shards: Path) -> None:
    assert warnings_of(shards) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.bucket_elements=500000000"], "overlaps with nothing"),
        (["engine.zero_stage=3"], "the base fits every worker whole"),
        (["base.dtype=float32", "base.gradient_checkpointing=true"], "base.dtype=float32 doubles"),
        (["scaling.use_gpu=false"], "hours per step on a CPU"),
        (
            ["base.gradient_checkpointing=false", "engine.memory_budget_gib=40"],
            "of which there are 40",
        ),
        (["base.gradient_checkpointing=true"], "computes every block twice"),
        (["optimizer.warmup_steps=20000"], "peak learning rate is never used"),
        (["checkpoint.every=20000"], "a crash loses the whole run"),
        (["scaling.max_failures=0"], "the first worker that dies ends the run"),
        (["engine.zero_stage=3", "engine.compile=true"], "engine.compile=true does nothing"),
        (["objective.guidance=3.5"], "objective.guidance=3.5 belongs to drawing"),
        (["objective.shift=3"], "far from 6.32, FLUX.1's own for 8192 image tokens"),
        (["objective.shift=none"], "trains mostly low noise at 8192 tokens"),
        (["data.global_batch=128"], "fewer than data.global_batch"),
        (["validation.samples=200"], "but 100 are held out"),
    ],
)
def test_every_trap_of_a_recipe_is_named(shards: Path, overrides: list[str], words: str) -> None:
    assert words in "\n".join(warnings_of(shards, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.shift=6"],
        ["objective.shift=3", "data.domains=switch"],  # half the tokens
        ["engine.compile=true"],
        ["objective.guidance=3.5", f"base.path={FLUX.with_name('mini')}"],  # it takes no guidance
    ],
)
def test_what_is_no_trap_is_not_named(shards: Path, overrides: list[str]) -> None:
    assert warnings_of(shards, *overrides) == []


def test_a_cluster_that_sees_no_disk_of_this_machine_is_named(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [Mount("/", "ext4"), Mount(str(shards), "nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    assert warnings_of(shards) == []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (sentence,) = warnings_of(shards, f"run.dir={shards}/run", "data.latents=s3://bucket/latents")
    assert sentence.startswith("base.path, tracking.uri: on a disk of this machine's own")
    mounts.append(Mount("/", "nfs4"))  # over the other
    assert warnings_of(shards) == []


def test_zero_3_is_right_where_a_whole_base_does_not_fit(shards: Path) -> None:
    words, zero_3 = "the base fits every worker whole", "engine.zero_stage=3"
    # Whole, the base alone takes 22.2 GiB; sharded, all of it takes 7.
    assert words not in "\n".join(warnings_of(shards, zero_3, "engine.memory_budget_gib=24"))
    assert words in "\n".join(warnings_of(shards, zero_3, "engine.memory_budget_gib=80"))
    keeps_all = [zero_3, "engine.memory_budget_gib=44", "base.gradient_checkpointing=false"]
    assert words not in "\n".join(warnings_of(shards, *keeps_all))


def test_a_deepspeed_that_is_quadratic_in_tensors_is_named(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "version", lambda _: "0.18.5")
    assert "install 0.18.7 or newer" in "\n".join(warnings_of(shards))
    assert warnings_of(shards, "engine.kind=ddp") == []


def on_one_disk(shards: Path, *overrides: str) -> list[str]:
    places = [f"run.dir={shards.parent}/run", f"tracking.uri=sqlite:///{shards.parent}/runs.db"]
    return warnings_of(shards, *places, *overrides)


def test_a_disk_that_will_be_full_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 1 << 29)
    (sentence,) = on_one_disk(shards)
    # 261 M weights: 3 checkpoints, the best and one more, of three float32 each; the adapter and
    # the best one, twice; and 200 samples of 2 MiB of latents and 4 MiB of text.
    assert "checkpoints 14.6 GiB, adapters 1.9 GiB, MLflow's copies 1.9 GiB, " in sentence
    assert "latents and text embeddings 1.2 GiB), and 512.0 MiB are free in" in sentence
    (sentence,) = on_one_disk(shards, "optimizer.ema_decay=0.99", "validation.samples=0")
    assert "checkpoints 15.6 GiB, adapters 1.9 GiB" in sentence
    (sentence,) = on_one_disk(shards, "samples.prompts=[a lamp]", "samples.every=5000")
    assert "samples 3.9 GiB" in sentence  # four adapters, and drawings of 6 MiB


def test_all_that_one_disk_takes_is_added_up(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 15 << 30)
    assert len(on_one_disk(shards)) == 1  # nothing alone is as large
    monkeypatch.setattr(disk, "_disk_of", lambda folder: hash(folder))
    assert on_one_disk(shards) == []


def test_latents_of_another_precision_are_named(shards: Path) -> None:
    root = shards.with_name("shards.latents")
    create_cache(describe_encoder(FLUX, "b" * 64, PUBLISHED, "float32"), root)
    assert "all will be encoded anew" in "\n".join(warnings_of(shards))
    assert "has another dtype" in "\n".join(warnings_of(shards))
    create_cache(describe_encoder(FLUX, "b" * 64, PUBLISHED, "bfloat16"), root)
    assert "2 of 2 shards are not encoded yet" in "\n".join(warnings_of(shards))
    assert "has another domains" in "\n".join(warnings_of(shards, "data.domains=switch"))


def test_latents_that_are_encoded_anew_need_room(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shards.with_name("shards.latents")
    create_cache(describe_encoder(FLUX, "b" * 64, PUBLISHED, "float32"), root)
    free_bytes(monkeypatch, 1 << 30)
    assert "latents and text embeddings 1.2 GiB" in "\n".join(on_one_disk(shards))


def test_a_data_set_without_held_out_samples_is_named(shards: Path) -> None:
    file = shards / "index.json"
    index = ShardIndex.model_validate_json(file.read_text())
    file.write_text(index.model_copy(update={"shards": index.shards[:1]}).model_dump_json())
    assert "there will be no val/loss" in "\n".join(warnings_of(shards))
