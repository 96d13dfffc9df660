"""A request to stop is seen within seconds, by all workers after the same step."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_training import Records, TinySamples, reversed_on_odd_epochs, tiny_config, tiny_engine
from torch import Tensor, nn

from kiss3d_train.data.stream import Stream
from kiss3d_train.loop import Trainer
from kiss3d_train.objective import Batch, loss_per_sample
from kiss3d_train.stopping import STOP_FILE, Lookout

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless a test moves it."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return clock


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(10.0, [1, 2, 3, 4, 5, 6, 7, 8]), (2.0, [1, 3, 5, 7]), (0.1, [1])],
)
def test_looks_are_seconds_apart_however_long_a_step_takes(
    alone: None,
    tmp_path: Path,
    now: list[float],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    expected: list[int],
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(dist, "broadcast", lambda told, src: looks.append(now[0] / seconds))
    lookout = Lookout(tmp_path, CPU)
    for _ in range(8):
        now[0] += seconds
        lookout.sees_request(look_now=False)
    assert looks == pytest.approx(expected)


def test_a_step_that_took_long_postpones_no_look(
    alone: None, tmp_path: Path, now: list[float]
) -> None:
    lookout = Lookout(tmp_path, CPU)
    now[0] += 0.01
    assert not lookout.sees_request(look_now=False)  # the next is in 500 steps
    now[0] += 60  # a step after which a checkpoint was written
    (tmp_path / STOP_FILE).touch()
    assert lookout.sees_request(look_now=True)


def test_the_first_worker_decides_for_all(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by_the_first = [(0, 3), (1, 1)]

    def broadcast(told: Tensor, src: int) -> None:
        assert src == 0 and told[0] == 0  # whatever this worker sees
        told.copy_(torch.tensor(told_by_the_first.pop(0)))

    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "broadcast", broadcast)
    lookout = Lookout(tmp_path, CPU)
    (tmp_path / STOP_FILE).touch()
    answers = []
    for _ in range(4):
        now[0] += 10  # by its own clock it would look after every step
        answers.append(lookout.sees_request(look_now=False))
    assert answers == [False, False, False, True]


def test_a_run_stops_and_saves_between_two_progress_lines(
    alone: None, tmp_path: Path, now: list[float]
) -> None:
    changes = {"run.dir": str(tmp_path), "run.log_every": 50, "checkpoint.every": 50}
    config = tiny_config(changes | {"engine.kind": "ddp", "data.global_batch": 1})
    saved: list[int] = []

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        now[0] += 2  # seconds of a step, so that every second one is followed by a look
        if now[0] == 8:
            (tmp_path / STOP_FILE).touch()
        return loss_per_sample(model, batch, 1.0)

    records = Records()
    trainer = Trainer(
        config=config,
        engine=tiny_engine(config),
        stream=Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1),
        loss_fn=loss_fn,
        validate=None,
        save=saved.append,
        sink=records,
    )
    step, losses = trainer.run(0)
    trainer.stream.close()
    assert (step, len(losses), saved) == (5, 5, [5])
    assert records.steps_with("train/loss") == [1, 2, 3, 4, 5]
