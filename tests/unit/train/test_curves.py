"""Where a loss comes from, on invented errors and on a tiny Flux."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import (
    Records,
    TinySamples,
    reversed_on_odd_epochs,
    tiny_config,
    tiny_engine,
)

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_train.config import TrainConfig
from kiss3d_train.curves import LossCurves, tile_losses, training_loss
from kiss3d_train.data.stream import Stream, validation_batch
from kiss3d_train.loop import Trainer
from kiss3d_train.objective import Batch, loss_per_sample, squared_errors
from kiss3d_train.validation import held_out_loss

CPU = torch.device("cpu")
THREE_VIEWS = BundleLayout(azimuths=(0.0, 90.0, 180.0), elevations=(0.0, 0.0, 0.0))


def batch_at(*sigmas: float) -> Batch:
    """Of 4 x 6 tokens, which a layout of three views divides into tiles of 2 x 2."""
    latents = torch.zeros(len(sigmas), 24, 5)
    text, pooled = torch.zeros(len(sigmas), 3, 5), torch.zeros(len(sigmas), 2)
    rows = torch.zeros(len(sigmas), dtype=torch.int64)
    return Batch(latents, latents, torch.tensor(sigmas), text, pooled, rows, (4, 6))


def errors_by_tile(*tiles: float) -> torch.Tensor:
    """[1, 24, 5] errors that are constant within each of 2 x 3 tiles."""
    image = (
        torch.tensor(tiles, dtype=torch.float32)
        .reshape(2, 3)
        .repeat_interleave(2, 0)
        .repeat_interleave(2, 1)
    )
    return image.reshape(1, 24, 1).expand(1, 24, 5)


def test_a_tile_takes_its_own_tokens_and_no_others() -> None:
    tiles = tile_losses(errors_by_tile(1, 2, 3, 4, 5, 6), batch_at(0.5), THREE_VIEWS)
    assert tiles.tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_losses_are_told_by_noise_level_row_and_view() -> None:
    curves = LossCurves(THREE_VIEWS, CPU)
    curves.add(errors_by_tile(1, 2, 3, 4, 5, 6), batch_at(0.31))
    curves.add(errors_by_tile(3, 4, 5, 6, 7, 8), batch_at(0.39))
    curves.add(errors_by_tile(0, 0, 0, 0, 0, 6), batch_at(1.0))
    metrics = curves.metrics(curves.take().tolist())
    expected = {"loss_by_sigma/0.3": 4.5, "loss_by_sigma/0.9": 1.0}
    rows, views = {"rgb": 6 / 3, "normal": 14 / 3}, {"0": 7 / 3, "1": 9 / 3, "2": 14 / 3}
    expected |= {f"loss_by_region/{row}": value for row, value in rows.items()}
    expected |= {f"loss_by_region/view_{view}": value for view, value in views.items()}
    assert metrics == pytest.approx({f"train/{name}": value for name, value in expected.items()})
    assert curves.metrics(curves.take().tolist()) == {}


def test_lone_rows_count_for_their_own_region_and_all_views() -> None:
    curves = LossCurves(THREE_VIEWS, CPU)
    rows = replace(batch_at(0.1, 0.1, 0.1), row_B=torch.tensor([0, 1, 0]), grid=(2, 6))
    errors = errors_by_tile(1, 2, 3, 4, 5, 6).reshape(2, 12, 5)
    curves.add(torch.cat([errors, 3 * errors[:1]]), rows)
    metrics = curves.metrics(curves.take().tolist())
    regions = {"rgb": (2 + 6) / 2, "normal": 5, "view_0": 8 / 3, "view_1": 13 / 3, "view_2": 6}
    expected = {f"train/loss_by_region/{name}": value for name, value in regions.items()}
    assert metrics == pytest.approx(expected | {"train/loss_by_sigma/0.1": 13 / 3})
    curves.add(errors[1:], replace(batch_at(0.1), row_B=torch.tensor([1]), grid=(2, 6)))
    alone = curves.metrics(curves.take().tolist())
    assert "train/loss_by_region/rgb" not in alone
    assert alone["train/loss_by_region/view_2"] == pytest.approx(6)


def test_workers_sums_give_the_curves_of_all_samples() -> None:
    errors = torch.rand(3, 24, 5, generator=torch.Generator().manual_seed(0))
    one, other, both = (LossCurves(THREE_VIEWS, CPU) for _ in range(3))
    one.add(errors[:2], batch_at(0.1, 0.75))
    other.add(errors[2:], batch_at(0.12))  # a mean of the two workers' means would be wrong
    both.add(errors, batch_at(0.1, 0.75, 0.12))
    found = both.metrics((one.take() + other.take()).tolist())
    assert found == pytest.approx(both.metrics(both.take().tolist()), rel=1e-6)


def trained(config: TrainConfig, first: int = 0) -> tuple[list[float], dict[int, dict[str, float]]]:
    """Losses and metrics of a tiny Flux."""
    curves, records = LossCurves(PUBLISHED, CPU), Records()
    trainer = Trainer(
        config=config,
        engine=tiny_engine(config),
        stream=Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1),
        loss_fn=training_loss(config.objective, 1.0, curves),
        validate=None,
        save=lambda step: None,
        sink=records,
        curves=curves,
    )
    _, losses = trainer.run(first)
    trainer.stream.close()
    return losses, records.metrics


def test_curves_add_up_to_the_loss_of_their_steps(alone: None, tmp_path: Path) -> None:
    changes = {"run.dir": str(tmp_path), "run.steps": 5, "run.log_every": 3, "engine.kind": "ddp"}
    losses, metrics = trained(tiny_config(changes | {"scaling.micro_batch": 2}))
    for step, window in ((3, losses[:3]), (5, losses[3:])):
        mean, found = sum(window) / len(window), metrics[step]
        rows = [found[f"train/loss_by_region/{name}"] for name in PUBLISHED.rows]
        views = [found[f"train/loss_by_region/view_{number}"] for number in range(4)]
        assert sum(rows) / 2 == pytest.approx(mean, rel=1e-5)
        assert sum(views) / 4 == pytest.approx(mean, rel=1e-5)
        assert any(name.startswith("train/loss_by_sigma/") for name in found)
    assert not any("by_region" in name for step in (1, 2, 4) for name in metrics[step])


def test_weights_change_what_is_trained_but_not_the_curves(alone: None, tmp_path: Path) -> None:
    changes = {"run.dir": str(tmp_path), "run.steps": 1, "engine.kind": "ddp"}
    plain, plain_metrics = trained(tiny_config(changes))
    weighted, metrics = trained(tiny_config(changes | {"objective.weighting": "sigma_sqrt"}))
    assert weighted[0] > 1.1 * plain[0]  # no sample's noise level reaches 1
    for name, value in plain_metrics[1].items():
        if "_by_" in name:
            assert metrics[1][name] == value


def test_held_out_losses_by_region_have_the_mean_of_all(alone: None) -> None:
    config = tiny_config({"engine.kind": "ddp", "validation.samples": 3, "scaling.micro_batch": 2})
    engine = tiny_engine(config)

    def tiles(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return tile_losses(squared_errors(model, batch, 1.0), batch, PUBLISHED)

    found = held_out_loss(engine, tiles, TinySamples(), config, PUBLISHED)
    pairs = [(index, sigma) for index in range(3) for sigma in config.validation.sigmas]
    batch = validation_batch(TinySamples(), pairs, config)
    expected = engine.losses(lambda m, b: loss_per_sample(m, b, 1.0), batch).mean().item()
    assert found["val/loss"] == pytest.approx(expected, rel=1e-5)
    rows = [found["val/loss_by_region/rgb"], found["val/loss_by_region/normal"]]
    assert sum(rows) / 2 == pytest.approx(expected, rel=1e-5)
    assert rows[0] != rows[1]
