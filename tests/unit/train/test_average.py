"""The moving average of a tiny Flux's adapter: its values, and a run that is killed and resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_training import (
    TinySamples,
    reversed_on_odd_epochs,
    tiny_config,
    tiny_engine,
)

from kiss3d_train import checkpoint
from kiss3d_train.average import AVERAGE_KIND, WeightAverage
from kiss3d_train.checkpoint import BrokenCheckpointError, Checkpoint, Identity
from kiss3d_train.data.stream import Stream, validation_batch
from kiss3d_train.loop import Trainer
from kiss3d_train.objective import loss_per_sample

DECAY = 0.4
IDENTITY = Identity("base", "data", "encoder", ("attn.to_q",), 2, 2.0, 3, 4)


class Run:
    """A tiny Flux that trains with an average, from the start or from a checkpoint."""

    def __init__(self, folder: Path, steps: int, found: Checkpoint | None = None) -> None:
        changes: dict[str, Any] = {"run.dir": str(folder), "run.steps": steps}
        changes |= {"checkpoint.every": 3, "run.log_every": 3, "validation.every": 2}
        self.config = tiny_config(changes | {"engine.kind": "ddp"})
        self.engine = tiny_engine(self.config)
        if found:
            self.engine.scatter(found.state, found.step)
        earlier = found.state.get(AVERAGE_KIND) if found else None
        self.average = WeightAverage(self.engine.parameters, DECAY, earlier)
        self.first_step = found.step if found else 0
        self.held_out: list[float] = []

    def train(self) -> list[float]:
        """All steps; returns their losses."""
        trainer = Trainer(
            config=self.config,
            engine=self.engine,
            stream=Stream(TinySamples(), reversed_on_odd_epochs, self.config, 0, 1),
            loss_fn=lambda model, batch: loss_per_sample(model, batch, 1.0),
            validate=self._validate,
            save=self.save,
            sink=None,
            average=self.average,
        )
        try:
            return trainer.run(self.first_step)[1]
        finally:
            trainer.stream.close()

    def save(self, step: int) -> None:
        state = self.engine.gather() | {AVERAGE_KIND: self.average.on_cpu()}
        checkpoint.save(self.config.run.dir, step, state, IDENTITY, None, keep=9)

    def held_out_loss(self) -> float:
        batch = validation_batch(TinySamples(), [(0, 0.5), (1, 0.7)], self.config)
        losses = self.engine.losses(lambda m, b: loss_per_sample(m, b, 1.0), batch)
        return losses.mean().item()

    def _validate(self) -> dict[str, float]:
        with self.average.in_place():
            self.held_out.append(self.held_out_loss())
        return {"val/loss": self.held_out[-1]}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def straight(alone: None, tmp_path: Path) -> tuple[Run, list[float]]:
    """A run of 6 steps with a checkpoint after the third, never interrupted."""
    run = Run(tmp_path / "straight", 6)
    return run, run.train()


def test_a_resumed_average_is_that_of_a_straight_run_bitwise(
    straight: tuple[Run, list[float]],
) -> None:
    run, losses = straight
    folder = run.config.run.dir
    resumed = Run(folder.parent / "resumed", 6, checkpoint.load(checkpoint.path_of(folder, 3)))
    assert resumed.train() == losses[3:]
    assert_same(resumed.average.on_cpu(), run.average.on_cpu())
    assert_same(resumed.engine.gather()["weight"], run.engine.gather()["weight"])
    assert resumed.held_out == run.held_out[1:]


def test_the_average_leaves_the_training_alone(straight: tuple[Run, list[float]]) -> None:
    run, losses = straight
    plain = Run(run.config.run.dir.parent / "plain", 6)
    trainer = Trainer(
        config=plain.config,
        engine=plain.engine,
        stream=Stream(TinySamples(), reversed_on_odd_epochs, plain.config, 0, 1),
        loss_fn=lambda model, batch: loss_per_sample(model, batch, 1.0),
        validate=None,
        save=lambda step: None,
        sink=None,
    )
    assert trainer.run(0)[1] == losses
    trainer.stream.close()
    assert run.held_out[-1] != run.held_out_loss()  # the last weights' is another


def test_the_average_follows_its_recursion(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path, 6)
    expected = {name: p.detach().double() for name, p in run.engine.parameters.items()}
    for step, decay in enumerate((0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4)):
        for name, parameter in run.engine.parameters.items():
            with torch.no_grad():
                parameter.add_(0.1 * (step + 1))
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
        run.average.update(step)
    for name, tensor in run.average.on_cpu().items():
        assert torch.allclose(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_a_checkpoint_without_an_average_starts_one_from_its_weights(
    straight: tuple[Run, list[float]],
) -> None:
    run, _ = straight
    old = run.config.run.dir.parent / "old"
    path = checkpoint.save(old, 6, run.engine.gather(), IDENTITY, None, keep=1)
    assert not (path / "ema.safetensors").exists()
    found = checkpoint.load(path)
    assert_same(Run(old, 8, found).average.on_cpu(), found.state["weight"])


def test_a_checkpoint_whose_average_is_gone_is_broken(straight: tuple[Run, list[float]]) -> None:
    path = checkpoint.path_of(straight[0].config.run.dir, 6)
    (path / "ema.safetensors").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"ema\.safetensors"):
        checkpoint.load(path)


def test_weights_that_are_sharded_are_not_averaged() -> None:
    with pytest.raises(ValidationError, match=r"optimizer.ema_decay needs engine.zero_stage 0, 1"):
        tiny_config({"optimizer.ema_decay": 0.99, "engine.zero_stage": 3})
    tiny_config({"optimizer.ema_decay": 0.99, "engine.zero_stage": 2})
