"""Training of the 2D base: views and prompts, draws, resuming, and the base that comes out."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Records
from whole_training import (
    RECIPES,
    STEPS,
    check_that_it_resumes_bitwise,
    overrides_of,
    run_straight,
    train,
)

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.prompt import (
    clip_prompt,
    encode_captions,
    t5_length,
    t5_prompt,
    view_clip_prompt,
    view_t5_prompt,
)
from kiss3d_infer.flux.sampling import generate_bundle
from kiss3d_train.config import ObjectiveSection, TrainConfig
from kiss3d_train.data.draws import draw_timesteps, seeded
from kiss3d_train.data.shards import ShardReader, decode_sample
from kiss3d_train.objective import pack
from kiss3d_train.whole.flux import WholeFlux, view_losses
from kiss3d_train.whole.pictures import Pictures, read_pictures
from kiss3d_train.whole.views import Views, ViewStream, encode_views
from kiss3d_train.worker import Outcome

RECIPE = "mini-base.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def straight(
    shards: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome, Records]:
    return run_straight(RECIPE, tmp_path_factory.mktemp("views") / "run", base, shards)


@pytest.fixture(scope="module")
def pictures(shards: Path) -> Pictures:
    return read_pictures(ShardReader(shards), "train", readers=2, rows=slice(0, 1))


@pytest.fixture(scope="module")
def views(base: Path, pictures: Pictures) -> Views:
    return encode_views(load_base(base, dtype="float32"), pictures, PUBLISHED, "views", CPU)


def recipe(*more: str) -> TrainConfig:
    unused = Path("unused")
    overrides = [*overrides_of(unused, unused, unused), *more]
    return load_config(TrainConfig, RECIPES / RECIPE, overrides).config


def test_it_learns_and_is_measured(straight: tuple[Path, Outcome, Records]) -> None:
    _, outcome, records = straight
    assert outcome.step == STEPS
    assert records.steps_with("val/loss") == [3, 6]
    first, last = records.metrics[3], records.metrics[6]
    assert last["val/loss"] < first["val/loss"]
    by_sigma = [value for name, value in last.items() if name.startswith("val/loss_sigma_")]
    assert len(by_sigma) == 5
    assert last["val/loss"] == pytest.approx(sum(by_sigma) / 5)


def test_a_killed_run_ends_as_a_straight_one_bitwise(
    straight: tuple[Path, Outcome, Records], shards: Path, base: Path, tmp_path: Path, alone: None
) -> None:
    run_dir, outcome, _ = straight
    check_that_it_resumes_bitwise(RECIPE, run_dir, outcome, base, shards, tmp_path)


def test_the_base_that_comes_out_draws(
    straight: tuple[Path, Outcome, Records], base: Path, tmp_path: Path
) -> None:
    run_dir, _, _ = straight
    changed = {
        path.parent.name
        for path in base.rglob("*.safetensors")
        if path.read_bytes() != (run_dir / "base" / path.relative_to(base)).read_bytes()
    }
    assert changed == {"transformer", "text_encoder", "text_encoder_2"}
    before, after = (
        generate_bundle(load_base(path, dtype="float32"), "a chair", tile=32, steps=2).image
        for path in (base, run_dir / "base")
    )
    assert (before - after).abs().max() > 1e-3


def test_one_part_trains_and_is_saved_small(
    shards: Path, base: Path, tmp_path: Path, alone: None
) -> None:
    more = ["run.steps=1", "full={parts: [transformer], save_dtype: bfloat16}"]
    train(RECIPE, [*overrides_of(tmp_path, base, shards), *more, "validation.samples=0"])
    before, after = load_file_of(base), load_file_of(tmp_path / "base")
    assert {tensor.dtype for tensor in after["transformer"].values()} == {torch.bfloat16}
    for part in ("text_encoder", "text_encoder_2"):
        assert all(torch.equal(after[part][n], t) for n, t in before[part].items())


def test_whole_bundles_train_and_are_drawn_without_an_adapter(
    shards: Path, base: Path, tmp_path: Path, alone: None
) -> None:
    parts = "[transformer, text_encoder, text_encoder_2]"
    more = [f"full={{parts: {parts}, draws: bundles}}", "data.global_batch=4"]
    more += ["scaling={micro_batch: 2}", "optimizer.lr=1e-3"]
    records = Records()
    outcome = train(RECIPE, [*overrides_of(tmp_path, base, shards), *more], records)
    first, last = (records.metrics[step]["val/loss"] for step in (3, 6))
    assert outcome.step == STEPS and last < first
    pipeline = load_base(tmp_path / "base", dtype="float32")
    assert generate_bundle(pipeline, "a chair", tile=32, steps=2).image.isfinite().all()
    as_views = [f"full={{parts: {parts}}}", "run.resume=auto", "run.steps=9"]
    with pytest.raises(InputError, match="draws was bundles and is now views"):
        train(RECIPE, [*overrides_of(tmp_path, base, shards), *more, *as_views])


def test_a_bundle_and_its_prompt_are_what_an_adapter_sees(base: Path, shards: Path) -> None:
    pipeline = load_base(base, dtype="float32")
    whole = read_pictures(ShardReader(shards), "train", readers=2)
    views = encode_views(pipeline, whole, PUBLISHED, "bundles", CPU)
    bundle, meta = decode_sample(ShardReader(shards).read("train", 1))
    with torch.no_grad():
        mean = pipeline.vae.encode(bundle.image[None] * 2 - 1).latent_dist.mean
        model = WholeFlux(pipeline, ("transformer",), 1.0, clip_prompt(), compiled=False)
        states, pooled = model.embed(views.tokens_OVL[1])
        expected, expected_pooled = encode_captions(pipeline, [meta["caption"]])
        bare, _ = model.embed(views.bare_VL)
        expected_bare, _ = encode_captions(pipeline, [""])
    config = pipeline.vae.config
    latents = pack((mean[0] - config.shift_factor) * config.scaling_factor)
    assert torch.allclose(views.latents_OVNC[1, 0].float(), latents, atol=1e-2)
    assert views.grid == (4, 8)
    assert torch.allclose(states, expected, atol=1e-5)
    assert torch.allclose(pooled, expected_pooled, atol=1e-5)
    assert torch.allclose(bare, expected_bare, atol=1e-5)


def load_file_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {file.parent.name: load_file(file) for file in folder.glob("*/*.safetensors")}


def test_views_are_what_the_pipeline_makes_of_a_tile(
    base: Path, pictures: Pictures, views: Views
) -> None:
    pipeline = load_base(base, dtype="float32")
    with torch.no_grad():
        mean = pipeline.vae.encode(
            pictures.tiles_NRV3TT[2, 0, 3][None].float() / 127.5 - 1
        ).latent_dist.mean
    config = pipeline.vae.config
    expected = pack((mean[0] - config.shift_factor) * config.scaling_factor)
    assert torch.allclose(views.latents_OVNC[2, 3].float(), expected, atol=2e-3)
    assert views.grid == (2, 2)


@pytest.mark.parametrize(("index", "t5_reads"), [(1, t5_prompt), (2, str)])
def test_prompts_are_embedded_as_sampling_embeds_them(
    base: Path, pictures: Pictures, views: Views, index: int, t5_reads: Callable[[str], str]
) -> None:
    pipeline = load_base(base, dtype="float32")
    model = WholeFlux(pipeline, ("transformer",), 1.0, view_clip_prompt(), compiled=False)
    with torch.no_grad():
        found, found_pooled = model.embed(views.tokens_OVL[index])
        caption = pictures.captions[index]
        expected, pooled, _ = pipeline.encode_prompt(
            prompt=[view_clip_prompt()] * 4,
            prompt_2=[t5_reads(view_t5_prompt(caption, a)) for a in PUBLISHED.azimuths],
            max_sequence_length=t5_length(pipeline),
        )
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found_pooled.expand(4, -1), pooled, atol=1e-5)


def test_prompts_name_the_view() -> None:
    names = [view_t5_prompt("a cup", azimuth) for azimuth in PUBLISHED.azimuths]
    assert names == [f"a cup, {side} view" for side in ("front", "right", "back", "left")]
    assert view_t5_prompt(" ", 350) == "front view"
    assert view_t5_prompt("a cup", 135) == "a cup, back right view"


def test_two_workers_see_what_one_sees(views: Views) -> None:
    config = recipe()
    alone = ViewStream(views, config, 0, 1)
    both = [ViewStream(views, config, rank, 2) for rank in range(2)]
    for step in range(4):  # more than an epoch
        expected = alone.micro_batches(step)
        found = [batch for stream in both for batch in stream.micro_batches(step)]
        assert len(expected) == len(found) == 2
        for a, b in zip(expected, found, strict=True):
            for name in ("x0_BNC", "noise_BNC", "sigma_B", "tokens_BL"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize(("share", "num_bare"), [(0.0, 0), (1.0, 16)])
def test_a_dropped_caption_leaves_the_view(views: Views, share: float, num_bare: int) -> None:
    stream = ViewStream(views, recipe(f"objective.caption_dropout={share}"), 0, 1)
    bare = {tuple(row) for row in views.bare_VL.tolist()}
    assert len(bare) == PUBLISHED.num_views
    rows = [tuple(row) for batch in stream.micro_batches(5) for row in batch.tokens_BL.tolist()]
    assert sum(row in bare for row in rows) == num_bare


def test_timesteps_are_distributed_as_the_recipe_says() -> None:
    def drawn(**changes: object) -> torch.Tensor:
        objective = ObjectiveSection.model_validate(changes)
        return draw_timesteps(objective, 20_000, seeded("timesteps", CPU))

    logits = torch.logit(drawn(logit_mean=0.5, logit_std=2.0))
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(2.0, abs=0.05)
    uniform = drawn(timesteps="uniform")
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


def test_text_encoders_get_gradients_where_they_train(base: Path, views: Views) -> None:
    pipeline = load_base(base, dtype="float32")
    model = WholeFlux(pipeline, ("transformer", "text_encoder"), 1.0, "", compiled=False)
    (batch, *_) = ViewStream(views, recipe(), 0, 1).micro_batches(0)
    view_losses(model, batch).mean().backward()
    with_gradient = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"transformer", "text_encoder"}
