"""RGB and normals as samples of their own: encoded, trained by the recipe, and drawn."""

import json
from functools import partial
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors import safe_open
from tiny_data import TILE, bundle_of, caption_of, encode_here
from tiny_training import Records

from kiss3d_infer import cli
from kiss3d_infer.bundle import PUBLISHED, load_bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import apply_lora
from kiss3d_infer.flux.prompt import encode_captions
from kiss3d_infer.flux.sampling import generate_bundle
from kiss3d_train.data.latents import Encoder, open_split
from kiss3d_train.data.shards import ShardReader, load_index
from kiss3d_train.samples.drawing import draw_round
from kiss3d_train.samples.rounds import waiting_rounds
from kiss3d_train.summary import adapter_of
from kiss3d_train.worker import work

RECIPE = Path(__file__).parents[3] / "configs" / "train" / "switcher.yaml"
job_of = partial(tiny_training.job_of, RECIPE)
PROMPT = "a wooden lamp"


@pytest.fixture(scope="module")
def rows(shards: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards` encoded row by row."""
    return encode_here(shards, base, tmp_path_factory.mktemp("rows"), "switch")


@pytest.fixture
def overrides(shards: Path, base: Path, tmp_path: Path) -> list[str]:
    """What takes the recipe to the mini scale."""
    return [
        f"run.dir={tmp_path / 'run'}",
        f"base.path={base}",
        "base.dtype=float32",
        f"data.shards={shards}",
        "data.global_batch=4",
        "adapter.rank=2",
        "optimizer.lr=0.01",
        "optimizer.warmup_steps=0",
        "optimizer.schedule=constant",
        "engine.kind=ddp",
        "scaling={micro_batch: 2}",
        "validation.samples=3",
        "run.log_every=1",
    ]


def test_a_bundle_gives_its_rows_with_words_of_their_own(
    rows: Path, shards: Path, base: Path
) -> None:
    pipeline = load_base(base, dtype="float32", parts=("vae", "text_encoder", "text_encoder_2"))
    split, reader = open_split(rows, load_index(shards), "train"), ShardReader(shards)
    assert len(split) == 2 * reader.num_samples("train")
    last = reader.num_samples("train") - 1
    for index, row in ((0, 0), (0, 1), (last, 0), (last, 1)):
        sample = split[2 * index + row]
        number = int(json.loads(reader.read("train", index)["json"])["number"])
        strip = bundle_of(number).image[:, row * TILE : (row + 1) * TILE]
        with torch.no_grad():
            mean = pipeline.vae.encode(strip[None] * 2 - 1).latent_dist.mean[0]
        config = pipeline.vae.config
        expected = (mean - config.shift_factor) * config.scaling_factor
        torch.testing.assert_close(sample.mean_chw, expected, atol=2e-3, rtol=0)
        layout = PUBLISHED.pictures("switch")[row]
        states, pooled = encode_captions(pipeline, [caption_of(number), ""], layout)
        torch.testing.assert_close(sample.prompt_LD, states[0])
        torch.testing.assert_close(sample.bare_prompt_LD, states[1])
        torch.testing.assert_close(sample.pooled_P, pooled[0])
        assert sample.row == row
    assert not torch.allclose(split[0].bare_pooled_P, split[1].bare_pooled_P, atol=1e-3)


def test_an_epoch_visits_every_row_once(rows: Path, shards: Path) -> None:
    split = open_split(rows, load_index(shards), "train")
    order = split.order(seed=3)
    assert sorted(order(1, place) for place in range(len(split))) == list(range(len(split)))


def test_rows_and_bundles_have_caches_of_their_own(rows: Path, latents: Path) -> None:
    assert rows.name != latents.name
    # This is what caches of bundles were called before there was a choice.
    whole = Encoder(base="b", dtype="float32", layout=PUBLISHED, scaling=1, shift=0)
    assert whole.name == "29dc316ca800fff5"
    assert whole.model_copy(update={"domains": "switch"}).name != whole.name


@pytest.mark.usefixtures("alone")
def test_the_recipe_trains_and_both_rows_are_drawn(
    overrides: list[str], rows: Path, base: Path, tmp_path: Path
) -> None:
    asks = f"samples={{prompts: [{PROMPT}], steps: 2, seed: 5}}"  # on the CPU, unlike the recipe's
    job, sink = job_of(overrides, rows, "run.steps=4", asks), Records()
    outcome = work(job, sink)
    for split in ("train", "val"):
        names = {f"{split}/loss_by_region/{name}" for name in ("rgb", "normal", "view_3")}
        assert names <= sink.metrics[4].keys()
    found = [outcome.validation[f"val/loss_by_region/{name}"] for name in PUBLISHED.rows]
    # Of the three held-out samples two are the RGB and the normals of the first bundle.
    assert outcome.validation["val/loss"] == pytest.approx((2 * found[0] + found[1]) / 3, rel=1e-5)

    (waiting,) = waiting_rounds(job.config.run.dir)
    draw_round(job.config, waiting)
    beside = load_bundle(waiting.folder / "0.bundle.png")
    adapter, out = adapter_of(job.config.run.dir), tmp_path / "lamp.bundle.png"
    how = {"tile": TILE, "steps": 2, "guidance": 3.5, "seed": 5}
    cli.generate(PROMPT, out, model=str(base), lora=adapter, device="cpu", **how)
    assert torch.equal(load_bundle(out).image, beside.image)
    pipeline = load_base(base, dtype="float32")
    assert apply_lora(pipeline, adapter).domains == "switch"
    by_switch = generate_bundle(pipeline, PROMPT, domains="switch", **how)
    assert (by_switch.image - beside.image).abs().max() < 0.01  # eight bits
    whole = generate_bundle(pipeline, PROMPT, **how)
    assert (by_switch.image - whole.image).abs().max() > 0.05


@pytest.mark.usefixtures("alone")
def test_a_resumed_run_sees_what_a_straight_one_does(overrides: list[str], rows: Path) -> None:
    straight = work(job_of(overrides, rows, "run.steps=3"), None)
    other = [f"{overrides[0]}-2", *overrides[1:]]
    first = work(job_of(other, rows, "run.steps=1"), None)
    further = work(job_of(other, rows, "run.steps=3"), None)
    assert first.losses + further.losses == straight.losses
    assert further.validation == straight.validation


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_rows_does_not_go_on_with_bundles(
    overrides: list[str], rows: Path, latents: Path
) -> None:
    work(job_of(overrides, rows, "run.steps=1"), None)
    with pytest.raises(InputError, match="encoder was"):
        work(job_of(overrides, latents, "run.steps=2", "data.domains=bundle"), None)


@pytest.mark.usefixtures("alone")
def test_an_adapter_of_bundles_does_not_name_rows(overrides: list[str], latents: Path) -> None:
    job = job_of(overrides, latents, "run.steps=1", "data.domains=bundle")
    work(job, None)
    with safe_open(adapter_of(job.config.run.dir), "pt") as file:
        assert json.loads(file.metadata()["kiss3d"])["domains"] == "bundle"
