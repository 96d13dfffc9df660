import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_training import tiny_config

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.config import Resolved, load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.lora import FILE_NAME
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.encode import create_cache, describe_encoder
from kiss3d_train.data.shards import IndexedSample, IndexedShard, ShardIndex
from kiss3d_train.disk import disk_needs
from kiss3d_train.figures import figures_of, show_plan
from kiss3d_train.plan import Plan, make_plan

ROOT = Path(__file__).parents[3]
FLUX = ROOT / "configs" / "models" / "flux1-dev"


@pytest.fixture
def full_size(tmp_path: Path) -> Path:
    """The index of 100 bundles of 1024 x 2048 pixels."""
    sample = IndexedSample(key="a", members={}, sha256="")
    shard = IndexedShard(
        name="train-00000.tar", split="train", size=0, sha256="", samples=(sample,) * 100
    )
    index = ShardIndex(layout=PUBLISHED, tile=512, image_format="webp", shards=(shard,), digest="d")
    (tmp_path / "index.json").write_text(index.model_dump_json())
    return tmp_path


def recipe_of(shards: Path, *overrides: str) -> Resolved[TrainConfig]:
    base = [f"base.path={FLUX}", f"data.shards={shards}", *overrides]
    return load_config(TrainConfig, ROOT / "configs" / "train" / "flux-lora.yaml", base)


def plan_of(shards: Path, *overrides: str) -> Plan:
    return make_plan(recipe_of(shards, *overrides).config)


def test_flux_figures_are_those_worked_out_by_hand(full_size: Path) -> None:
    plan = plan_of(full_size, "base.gradient_checkpointing=false")
    assert plan.num_base == pytest.approx(11.90e9, rel=1e-3)
    assert plan.num_adapter == pytest.approx(261.5e6, rel=1e-3)
    assert (plan.image_tokens, plan.text_tokens) == (8192, 512)
    flops = plan.flops_per_sample
    assert flops["linears"] == pytest.approx(2 * 112.4e12, rel=2e-3)
    assert flops["attention"] == pytest.approx(53.1e12 + 132.7e12, rel=2e-3)
    # 24.28 M weights of rank 64 x 3 passes x 2: 10.2 TFLOP with the tokens each one sees.
    assert flops["adapter"] == pytest.approx(10.2e12, rel=0.05)
    again = plan_of(full_size, "base.gradient_checkpointing=true")
    assert sum(again.flops_per_sample.values()) > sum(flops.values())
    needed = sum(flops.values()) - flops["attention"] / 7  # flash attention's own recomputation
    assert again.model_flops_per_sample == plan.model_flops_per_sample == pytest.approx(needed)
    assert 0.58 < plan.floor_seconds < 0.66


def test_memory_is_near_what_was_measured(full_size: Path) -> None:
    # Measured with rank 64 on all linears; see benchmarks/results.
    single = ["scaling.workers=1", "data.global_batch=1"]
    single.append("engine.kind=ddp")
    without = plan_of(full_size, "base.gradient_checkpointing=false", *single).memory
    assert without["base"] == pytest.approx(22.2, abs=0.1)
    assert sum(without.values()) == pytest.approx(52.7, abs=2)
    with_checkpointing = plan_of(full_size, "base.gradient_checkpointing=true", *single).memory
    assert 26 < sum(with_checkpointing.values()) < 34


def test_zero_stages_shard_what_they_name(full_size: Path) -> None:
    memory = {
        stage: plan_of(full_size, f"engine.zero_stage={stage}").memory for stage in (0, 1, 2, 3)
    }
    assert memory[1]["optimizer"] < memory[0]["optimizer"]
    assert memory[2]["gradients"] == pytest.approx(memory[1]["gradients"] / 8)
    assert memory[3]["base"] == pytest.approx(memory[2]["base"] / 8)
    assert memory[1]["base"] == memory[0]["base"]


def test_epochs_follow_from_the_data(full_size: Path) -> None:
    plan = plan_of(full_size)
    assert plan.steps_per_epoch == pytest.approx(100 / 32)
    text = dict(figures_of(plan))
    assert text["epochs in all"] == "6400.0 in 20000 steps"
    assert text["global batch"].startswith("32 = 1 per pass x 8 workers x 4")


def test_an_epoch_ends_within_a_batch_and_drops_nothing(full_size: Path) -> None:
    figures = dict(figures_of(plan_of(full_size)))
    assert figures["end of an epoch"].startswith("4 samples are left, and the next epoch fills")
    assert "shards (1 to train on) need not divide" in figures["samples among 8 workers"]
    even = dict(figures_of(plan_of(full_size, "data.global_batch=100", "scaling.workers=1")))
    assert even["end of an epoch"] == "falls between two batches"
    assert "samples among 1 workers" not in even


def test_epochs_and_runs_have_a_least_time(full_size: Path) -> None:
    plan = plan_of(full_size)
    figures, hours = dict(figures_of(plan)), plan.floor_seconds * 4 * 20000 / 3600
    assert figures["no run faster than"] == f"{hours:.1f} h for 20000 steps"
    assert figures["no epoch faster than"] == f"{plan.floor_seconds * 4 * 100 / 32:.3g} s"
    on_cpu = dict(figures_of(plan_of(full_size, "scaling.use_gpu=false")))
    assert "no epoch faster than" not in on_cpu  # nothing was measured there


def test_buckets_are_those_of_the_engine(full_size: Path) -> None:
    plan = plan_of(full_size)
    figures, eighth = dict(figures_of(plan)), plan.num_adapter // 8
    assert figures["gradient buckets"] == f"about 8 of {eighth:,} elements, 124.7 MiB"
    set_to = dict(figures_of(plan_of(full_size, "engine.bucket_elements=100000000")))
    assert set_to["gradient buckets"] == "about 3 of 100,000,000 elements, 381.5 MiB"
    for without in (["scaling.workers=1"], ["engine.zero_stage=0"]):
        assert "gradient buckets" not in dict(figures_of(plan_of(full_size, *without)))


def test_memory_is_held_against_the_card(full_size: Path) -> None:
    figures = dict(figures_of(plan_of(full_size, "engine.memory_budget_gib=80")))
    assert figures["memory per worker, about"] == "52.5 GiB"
    assert figures["card"] == "80.0 GiB, as engine.memory_budget_gib says; 27.5 GiB left"
    too_small = ["engine.memory_budget_gib=40", "base.gradient_checkpointing=false"]
    assert "12.5 GiB too few" in dict(figures_of(plan_of(full_size, *too_small)))["card"]


def test_disks_have_a_figure_for_all_that_is_written(
    full_size: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 30))
    monkeypatch.chdir(full_size)
    figures = dict(figures_of(plan_of(full_size)))
    assert figures["disk: checkpoints"] == "11.7 GiB"  # three, and one that is being written
    assert figures["disk: adapters"] == figures["disk: MLflow's copies"] == "997.5 MiB"
    assert figures["disk: latents and text embeddings"] == "600.0 MiB"
    assert figures["disk, at most"] == f"14.2 GiB, and 100.0 GiB are free in {full_size}"


def test_the_state_of_the_latents_is_told(full_size: Path) -> None:
    def said(*overrides: str) -> str:
        return dict(figures_of(plan_of(full_size, *overrides)))["latents and embeddings"]

    root = full_size.with_name(f"{full_size.name}.latents")
    assert said() == f"absent; all of 1 shards will be encoded into {root}"
    create_cache(describe_encoder(FLUX, "b" * 64, PUBLISHED, "float32"), root)
    assert said().startswith(f"none in {root} match, and all will be encoded anew: ")
    cache = create_cache(describe_encoder(FLUX, "b" * 64, PUBLISHED, "bfloat16"), root)
    assert said() == f"1 of 1 shards are not encoded yet ({cache})"
    remote = "data.latents=s3://bucket/latents"
    assert said(remote) == "cannot be checked from here: s3://bucket/latents is remote"


def test_latents_that_match_are_told(shards: Path, base: Path, latents: Path) -> None:
    recipe = {"base.path": str(base), "data.shards": str(shards)}
    plan = make_plan(tiny_config(recipe | {"data.latents": str(latents.parent)}))
    assert plan.encoded is not None
    assert plan.encoded.said.startswith(f"match, in {latents}")
    assert "latents and text embeddings" not in [need.what for need in disk_needs(plan)]


def test_a_plan_needs_neither_weights_nor_data(full_size: Path) -> None:
    plan = plan_of(Path("nowhere"))
    figures = dict(figures_of(plan))
    assert figures["no run faster than"].endswith("for 20000 steps")
    assert "no epoch faster than" not in figures
    assert "does not exist yet" in figures["data"]
    assert figures["tokens"] == "8192 image + 512 text, assumed: tiles of 512 pixels"
    assert plan.memory == plan_of(full_size).memory
    assert figures["memory: base"] == "22.2 GiB"
    for item in ("adapter", "gradients", "optimizer", "activations"):
        assert f"memory: {item}" in figures
    assert "memory per worker, about" in figures


def test_a_row_has_half_the_tokens_and_a_bundle_two_rows(full_size: Path) -> None:
    plan = plan_of(full_size, "data.domains=switch")
    assert (plan.image_tokens, plan.text_tokens) == (4096, 512)
    assert plan.steps_per_epoch == pytest.approx(200 / 32)
    assert dict(figures_of(plan))["data"].endswith("a sample per row")
    whole = plan_of(full_size)
    assert plan.flops_per_sample["attention"] < whole.flops_per_sample["attention"] / 3


@pytest.mark.parametrize("file", ["docs/training.md", "configs/train/flux-lora.yaml"])
def test_the_plan_command_works_as_it_is_written(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (ROOT / file).read_text().splitlines()
    (line,) = (line for line in lines if "kiss3d train plan" in line)
    _, _, _, recipe, *options = shlex.split(line.removeprefix("#"))
    overrides = [option for option in options if option != "--set"]
    monkeypatch.chdir(ROOT)
    assert make_plan(load_config(TrainConfig, Path(recipe), overrides).config).num_base > 11e9


def test_tiles_that_cannot_be_trained_on_are_refused(full_size: Path) -> None:
    path = full_size / "index.json"
    path.write_text(path.read_text().replace('"tile":512', '"tile":100'))
    with pytest.raises(InputError, match="a tile of 100 pixels cannot be trained on"):
        plan_of(full_size)


def test_it_prints_every_value_with_its_origin(
    full_size: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = recipe_of(full_size, "adapter.rank=8")
    show_plan(resolved, figures_of(make_plan(resolved.config)))
    printed = capsys.readouterr().out
    assert "adapter.rank" in printed
    assert "--set" in printed
    assert "memory per worker" in printed


def test_no_value_is_cut_on_a_narrow_screen_or_in_a_pipe(
    full_size: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = "runs/" + "a" * 150
    show_plan(recipe_of(full_size, f"run.dir={long}"), [])
    assert f"'{long}'  # --set" in capsys.readouterr().out


def test_a_base_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="configuration cannot be read"):
        make_plan(tiny_config({"base.path": str(tmp_path)}))


def test_the_lora_to_start_from_is_named_and_checked(tmp_path: Path, full_size: Path) -> None:
    base = f"base.path={ROOT / 'configs' / 'models' / 'tiny'}"
    start = [base, f"adapter.init_from={tmp_path / 'lora'}"]
    figures = dict(figures_of(plan_of(full_size, *start)))
    assert figures["starts from"] == f"{tmp_path / 'lora'} does not exist yet"
    (tmp_path / "lora").mkdir()
    name = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    save_file({name: torch.ones(2, 32)}, tmp_path / "lora" / FILE_NAME)
    with pytest.raises(InputError, match="this LoRA does not fit the adapter"):
        plan_of(full_size, *start)
