"""Where a step's time goes, by part and worker."""

import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kiss3d_train.breakdown import PARTS, StepClock, step_breakdown
from kiss3d_train.objective import Batch


def test_the_slowest_worker_is_told_by_its_own_forward_passes() -> None:
    fast, slow = [0.1, 1.0, 5.0, 0.2], [0.3, 2.0, 5.0, 0.4]  # fast ones wait in the backward pass
    metrics = step_breakdown([*fast, *fast, *slow, *fast])
    assert metrics["perf/data_wait_s"] == pytest.approx(0.15)
    assert metrics["perf/forward_s"] == pytest.approx(1.25)
    assert metrics["perf/backward_s"] == pytest.approx(3.75)
    assert metrics["perf/forward_backward_s"] == pytest.approx(5.0)
    assert metrics["perf/reduce_optimizer_s"] == pytest.approx(0.25)
    assert metrics["perf/straggler"] == pytest.approx(2.0 / 1.25)
    assert metrics["perf/slowest_rank"] == 2
    scores = [metrics[f"perf/straggler/rank_{rank}"] for rank in range(4)]
    assert scores == pytest.approx([0.8, 0.8, 1.6, 0.8])


def test_a_lone_worker_is_not_ranked() -> None:
    metrics = step_breakdown([0.1, 1.0, 5.0, 0.2])
    assert metrics["perf/straggler"] == 1.0
    assert not [name for name in metrics if "rank" in name]


def test_workers_that_measured_no_forward_pass_have_no_straggler() -> None:
    metrics = step_breakdown([0.1, 0.0, 5.0, 0.2] * 2)
    assert not [name for name in metrics if "straggler" in name or "rank" in name]


def test_parts_are_means_over_the_steps_of_a_window(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepClock(torch.device("cpu"))

    def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
        now[0] += 2
        return torch.zeros(1)

    for _ in range(2):
        with clock.on_host("data_wait"):
            now[0] += 1
        with clock.on_device("forward_backward"):
            for _ in range(2):  # micro batches
                clock.timed("forward", loss_fn)(nn.Identity(), None)  # type: ignore[arg-type]
                now[0] += 3
    assert clock.take(2).tolist() == [1.0, 4.0, 10.0, 0.0]
    assert clock.take(1).tolist() == [0.0] * len(PARTS)


def test_every_worker_fills_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    clock = StepClock(torch.device("cpu"))
    with clock.on_host("data_wait"):
        pass
    table = clock.take(1).reshape(3, len(PARTS))
    assert table[1, 0] > 0
    assert table[0].tolist() == table[2].tolist() == [0.0] * len(PARTS)
