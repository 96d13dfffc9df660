import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_training import (
    Records,
    TinySamples,
    reversed_on_odd_epochs,
    tiny_config,
    tiny_engine,
)

from kiss3d_infer.errors import InputError
from kiss3d_train.checkpoint import Best
from kiss3d_train.data.storage import DamageError
from kiss3d_train.data.stream import Sample, Stream
from kiss3d_train.engine import State
from kiss3d_train.loop import Trainer
from kiss3d_train.objective import loss_per_sample


def test_step_times_leave_out_validation_and_checkpoints(alone: None, tmp_path: Path) -> None:
    changes = {"run.dir": str(tmp_path), "run.steps": 9, "engine.kind": "ddp"}
    every = {"run.log_every": 4, "validation.every": 3, "checkpoint.every": 5}
    config, records, saved = tiny_config(changes | every), Records(), []
    trainer = Trainer(
        config=config,
        engine=tiny_engine(config),
        stream=Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1),
        loss_fn=lambda model, batch: loss_per_sample(model, batch, 1.0),
        validate=lambda: {"val/loss": 1.0},
        save=saved.append,
        sink=records,
        mfu_per_rate=0.5,
    )
    step, losses = trainer.run(0)
    trainer.stream.close()
    assert (step, len(losses)) == (9, 9)
    assert saved == [3, 5, 9]  # at step 3 for its held-out loss
    assert records.steps_with("train/loss") == list(range(1, 10))
    assert records.steps_with("val/loss") == [3, 6, 9]
    # A window ends before whatever would lengthen it.
    assert records.steps_with("perf/step_s") == [3, 4, 5, 6, 8, 9]
    for step in (3, 9):
        assert records.metrics[step]["perf/mfu"] == records.metrics[step]["perf/samples_per_s"] / 2


def trainer_of(tmp_path: Path, saved: list[int], loss: float = 1.0) -> Trainer:
    """A trainer of 9 steps with a drain and a checkpoint every 3, whose losses are `loss` times."""
    changes = {"run.dir": str(tmp_path), "run.steps": 9, "run.log_every": 3, "checkpoint.every": 3}
    config = tiny_config(changes | {"engine.kind": "ddp"})
    return Trainer(
        config=config,
        engine=tiny_engine(config),
        stream=Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1),
        loss_fn=lambda model, batch: loss * loss_per_sample(model, batch, 1.0),
        validate=None,
        save=saved.append,
        sink=Records(),
    )


def test_only_a_lower_held_out_loss_is_the_best_and_saved(alone: None, tmp_path: Path) -> None:
    saved: list[int] = []
    trainer = trainer_of(tmp_path, saved)
    sections = {"validation": {"every": 2}, "checkpoint": {"every": 99}}
    changed = {k: getattr(trainer.config, k).model_copy(update=v) for k, v in sections.items()}
    trainer.config = trainer.config.model_copy(update=changed)
    losses = iter([0.6, 0.4, math.nan, 0.4, 0.3])
    trainer.validate, trainer.best = lambda: {"val/loss": next(losses)}, Best(0, 0.5)
    trainer.run(0)
    trainer.stream.close()
    assert (saved, trainer.best) == ([4, 9], Best(9, 0.3))
    assert isinstance(trainer.sink, Records)
    assert trainer.sink.steps_with("val/loss") == [2, 4, 6, 8, 9]
    assert trainer.sink.steps_with("val/best_loss") == [4, 9]


def test_samples_are_asked_for_before_the_step_is_saved(alone: None, tmp_path: Path) -> None:
    saved: list[int] = []
    trainer = trainer_of(tmp_path, saved)
    samples = trainer.config.samples.model_copy(update={"every": 6})
    trainer.config = trainer.config.model_copy(update={"samples": samples})
    asked: list[tuple[int, list[int]]] = []
    trainer.request_samples = lambda step: asked.append((step, list(saved)))
    trainer.run(0)
    trainer.stream.close()
    assert asked == [(6, [3]), (9, [3, 6])]


def test_a_state_is_gathered_once_between_two_steps(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, [])
    gathered: list[State] = []
    gather = trainer.engine.gather
    monkeypatch.setattr(trainer.engine, "gather", lambda: gathered.append(gather()) or gathered[-1])
    trainer.train_step(0)
    assert trainer.state() is trainer.state() is gathered[0]
    trainer.train_step(1)
    after = trainer.state()
    trainer.stream.close()
    assert after is gathered[1] and len(gathered) == 2
    name, weights = next(iter(trainer.engine.parameters.items()))
    assert torch.equal(after["weight"][name], weights)
    assert not torch.equal(gathered[0]["weight"][name], weights)


def test_the_parts_of_a_step_add_up(alone: None, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, [])
    trainer.run(0)
    trainer.stream.close()
    assert isinstance(trainer.sink, Records)
    for step in (3, 6, 9):
        found = trainer.sink.metrics[step]
        parts = [
            found[f"perf/{p}_s"] for p in ("data_wait", "forward_backward", "reduce_optimizer")
        ]
        assert 0 < sum(parts) <= found["perf/step_s"]
        assert found["perf/forward_s"] > 0 and found["perf/backward_s"] > 0
        both = found["perf/forward_s"] + found["perf/backward_s"]
        assert found["perf/forward_backward_s"] == pytest.approx(both)
        assert found["perf/straggler"] == 1.0


def test_samples_that_were_skipped_are_counted(alone: None, tmp_path: Path) -> None:
    class Damaged(TinySamples):
        def __getitem__(self, index: int) -> Sample:
            if index == 1:
                raise DamageError("the bytes differ from the index")
            return super().__getitem__(index)

    trainer = trainer_of(tmp_path, [])
    assert isinstance(trainer.sink, Records)
    trainer.run(0)
    trainer.stream.close()
    assert trainer.sink.steps_with("data/skipped_samples") == []
    data = trainer.config.data.model_copy(update={"on_corrupt": "skip"})
    config = trainer.config = trainer.config.model_copy(update={"data": data})
    trainer.stream = Stream(Damaged(), reversed_on_odd_epochs, config, 0, 1)
    trainer.run(0)
    trainer.stream.close()
    counts = [trainer.sink.metrics[step]["data/skipped_samples"] for step in (3, 6, 9)]
    assert counts == sorted(counts) and counts[0] >= 2 and counts[-1] == trainer.stream.num_skipped


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_run_that_diverges_ends_before_it_is_saved(
    alone: None, tmp_path: Path, loss: float
) -> None:
    saved: list[int] = []
    trainer = trainer_of(tmp_path, saved, loss)
    with pytest.raises(InputError, match=r"diverged at step 1: loss (nan|inf)"):
        trainer.run(0)
    trainer.stream.close()
    assert saved == []


def test_gradients_that_overflow_end_a_run(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    trainer = trainer_of(tmp_path, saved)
    norms = iter([1.0, 1.0, 1.0, 1.0, math.inf, 1.0])
    monkeypatch.setattr(trainer.engine, "step", lambda lr: torch.tensor(next(norms)))
    with pytest.raises(InputError, match=r"diverged at step 5: .* gradient norm inf"):
        trainer.run(0)
    trainer.stream.close()
    assert saved == [3]


def test_all_workers_end_when_one_of_them_diverges(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, [])
    # Of the sum over all workers, another's loss of the second step is none.
    monkeypatch.setattr(dist, "all_reduce", lambda summed: summed[1].fill_(math.nan))
    with pytest.raises(InputError, match="diverged at step 2"):
        trainer.run(0)
    trainer.stream.close()
