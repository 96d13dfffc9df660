"""Training of the autoencoder: batches, losses, resuming, and the base that comes out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import TILE, bundle_of, make_base
from tiny_training import Records
from whole_training import (
    RECIPES,
    STEPS,
    check_that_it_resumes_bitwise,
    overrides_of,
    run_straight,
)

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.draws import EpochOrder
from kiss3d_train.data.shards import ShardReader
from kiss3d_train.whole.autoencoder import PictureBatch, WholeVae, psnr, vae_losses
from kiss3d_train.whole.calibrate import calibrate
from kiss3d_train.whole.pictures import read_pictures
from kiss3d_train.whole.tiles import TileStream, joined
from kiss3d_train.worker import Outcome

RECIPE = "mini-vae.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def straight(
    shards: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome, Records]:
    return run_straight(RECIPE, tmp_path_factory.mktemp("vae") / "run", base, shards)


def test_it_learns_and_is_measured(straight: tuple[Path, Outcome, Records]) -> None:
    _, outcome, records = straight
    assert outcome.step == STEPS
    assert outcome.losses[-2] < outcome.losses[0]  # both of tiles
    assert records.steps_with("val/psnr") == [3, 6]
    last = records.metrics[6]
    assert last["val/psnr"] > records.metrics[3]["val/psnr"]
    assert last["val/psnr"] == pytest.approx((last["val/psnr_rgb"] + last["val/psnr_normal"]) / 2)
    assert last["val/psnr_bundle"] > 0
    assert 0 < last["val/loss"] < records.metrics[3]["val/loss"]


def test_a_killed_run_ends_as_a_straight_one_bitwise(
    straight: tuple[Path, Outcome, Records], shards: Path, base: Path, tmp_path: Path, alone: None
) -> None:
    run_dir, outcome, _ = straight
    check_that_it_resumes_bitwise(RECIPE, run_dir, outcome, base, shards, tmp_path)


def test_the_base_is_whole_and_only_the_vae_is_new(
    straight: tuple[Path, Outcome, Records], base: Path, shards: Path
) -> None:
    run_dir, _, _ = straight
    made = run_dir / "base"
    names = {path.relative_to(base) for path in base.rglob("*") if path.is_file()}
    assert names == {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    changed = {n.parts[0] for n in names if (base / n).read_bytes() != (made / n).read_bytes()}
    assert changed == {"vae"}
    vae = load_base(made, dtype="float32", parts=("vae",)).vae
    tiles = read_pictures(ShardReader(shards), "train", readers=1).tiles_NRV3TT.flatten(0, 2)
    with torch.no_grad():
        latents = vae.encode(tiles.float() / 127.5 - 1).latent_dist.mean
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.mean().item() == pytest.approx(0, abs=1e-3)
    deviations = scaled.transpose(0, 1).flatten(1).std(dim=1)
    assert torch.allclose(deviations, torch.ones(4), atol=1e-2)


def test_calibrating_leaves_pictures_and_posteriors_as_they_are(base: Path) -> None:
    vae = load_base(base, dtype="float32", parts=("vae",)).vae
    pictures = torch.randint(
        256, (8, 3, TILE, TILE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model = WholeVae(vae)
    images = pictures.float() / 127.5 - 1
    with torch.no_grad():
        before, mean, logvar = model(images, None)
        calibrate(vae, pictures)
        after, folded_mean, folded_logvar = model(images, None)
    assert torch.allclose(before, after, atol=1e-4)  # float32 noise, of values up to 1
    # A posterior's deviation beside the spread of the means is what it was.
    spread, folded = (m.transpose(0, 1).flatten(1).std(dim=1) for m in (mean, folded_mean))
    shape = (1, -1, 1, 1)
    ratio = (0.5 * logvar).exp() / spread.reshape(shape)
    assert torch.allclose(ratio, (0.5 * folded_logvar).exp() / folded.reshape(shape), rtol=1e-4)


def test_in_half_precision_it_learns_nearly_the_same(base: Path) -> None:
    pictures = torch.stack([bundle_of(n).image[:, :TILE, :TILE] for n in range(8)])
    noise = torch.randn(8, 4, TILE // 8, TILE // 8, generator=torch.Generator().manual_seed(0))
    batch = PictureBatch(pictures.mul(255).round().byte(), noise)

    def gradients(is_half: bool) -> torch.Tensor:
        model = WholeVae(load_base(base, dtype="float32", parts=("vae",)).vae)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            losses = vae_losses(model, batch, 1e-4)
        assert losses.dtype == torch.float32
        losses.mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert torch.cosine_similarity(gradients(False), gradients(True), dim=0) > 0.98


def tiny_recipe(*more: str) -> TrainConfig:
    overrides = [*overrides_of(Path("unused"), Path("unused"), Path("unused")), *more]
    return load_config(TrainConfig, RECIPES / RECIPE, overrides).config


def stream_of(tiles: torch.Tensor, config: TrainConfig, rank: int, workers: int) -> TileStream:
    return TileStream(tiles, (4, 8), config, CPU, rank, workers)


def test_two_workers_see_what_one_sees(shards: Path) -> None:
    tiles = read_pictures(ShardReader(shards), "train", readers=2).tiles_NRV3TT
    config = tiny_recipe()
    alone = stream_of(tiles, config, 0, 1)
    both = [stream_of(tiles, config, rank, 2) for rank in range(2)]
    for step in range(8):  # more than an epoch
        expected = alone.micro_batches(step)
        found = [batch for stream in both for batch in stream.micro_batches(step)]
        assert len(expected) == len(found) == 2
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a.images_B3HW, b.images_B3HW)
            assert a.noise_Bchw is not None and b.noise_Bchw is not None
            assert torch.equal(a.noise_Bchw, b.noise_Bchw)


def test_odd_steps_see_whole_bundles(shards: Path) -> None:
    reader = ShardReader(shards)
    pictures = read_pictures(reader, "train", readers=2)
    stream = stream_of(pictures.tiles_NRV3TT, tiny_recipe(), 0, 1)
    (tiles, _), (one, other) = stream.micro_batches(0), stream.micro_batches(1)
    assert tiles.images_B3HW.shape == (8, 3, TILE, TILE)
    assert one.images_B3HW.shape == other.images_B3HW.shape == (1, 3, 2 * TILE, 4 * TILE)
    number = int(reader.key("train", 0).rpartition("-")[2])
    expected = bundle_of(number).image.mul(255).round().byte()
    assert torch.equal(joined(pictures.tiles_NRV3TT[:1])[0], expected)


def test_processes_read_what_threads_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, rows = ShardReader(shards), slice(1, 2)
    by_threads = read_pictures(reader, "train", readers=2, rows=rows)
    monkeypatch.setattr("kiss3d_train.whole.pictures._MANY", 1)
    by_processes = read_pictures(reader, "train", readers=2, rows=rows)
    assert by_processes.captions == by_threads.captions
    assert torch.equal(by_processes.tiles_NRV3TT, by_threads.tiles_NRV3TT)


def test_a_pass_that_holds_no_whole_bundle_is_refused(shards: Path) -> None:
    tiles = read_pictures(ShardReader(shards), "train", readers=2, most=2).tiles_NRV3TT
    with pytest.raises(InputError, match="multiple of 8"):
        stream_of(tiles, tiny_recipe("scaling={micro_batch: 4}"), 0, 1)


def test_an_epoch_brings_every_sample_once_and_the_next_another_order() -> None:
    order = EpochOrder(10, "key", CPU)
    epochs = [order.at(first, 10) for first in (0, 10)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(order.at(7, 6), torch.cat([epochs[0][7:], epochs[1][:3]]))
    assert torch.equal(EpochOrder(10, "key", CPU).at(13, 4), epochs[1][3:7])


class Shifting(torch.nn.Module):
    """Gives pictures back, shifted in value, with a posterior of a given width."""

    def __init__(self, shift: float, logvar: float) -> None:
        super().__init__()
        self.shift, self.logvar = shift, logvar

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None) -> Any:
        mean = torch.zeros(len(images), 4, 4, 4)
        return images + self.shift, mean, torch.full_like(mean, self.logvar)


def test_losses_are_those_worked_out_by_hand() -> None:
    images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    images[1] = 0
    batch = PictureBatch(images, torch.zeros(2, 4, 4, 4))
    # White counts once and an object three times; the posterior N(0, 1) has no divergence.
    assert vae_losses(Shifting(-0.1, 0.0), batch, 1.0).tolist() == pytest.approx([0.1, 0.3])
    divergence = 0.5 * (torch.tensor(-2.0).exp().item() - 1 + 2)
    assert vae_losses(Shifting(0.0, -2.0), batch, 0.5).tolist() == pytest.approx(
        [0.5 * divergence] * 2
    )
    assert psnr(Shifting(-0.2, 0.0), images[:1]).tolist() == pytest.approx([20.0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("adapter.rank=8", "adapter or full, not both"),
        ("engine.kind=deepspeed", "engine.kind=ddp"),
        ("data.domains=switch", "data.domains=bundle"),
        ("full.parts=[vae, transformer]", r"\[vae\], or transformer"),
        ("full.parts=[text_encoder]", r"\[vae\], or transformer"),
        ("data.on_corrupt=skip", "on_corrupt=stop"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(change: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        tiny_recipe(change)


def test_a_recipe_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    resolved = load_config(TrainConfig, RECIPES / RECIPE)
    (tmp_path / "again.yaml").write_text(resolved.to_yaml())
    assert load_config(TrainConfig, tmp_path / "again.yaml").config == resolved.config


def test_a_random_base_is_made_by_a_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from kiss3d_train.cli import app

    configs = str(Path(__file__).parents[3] / "configs" / "models" / "tiny")
    result = CliRunner().invoke(app, ["convert", "random-base", configs, str(tmp_path / "made")])
    assert result.exit_code == 0
    file = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "made" / file).read_bytes() == (make_base(tmp_path) / file).read_bytes()
