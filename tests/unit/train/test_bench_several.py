"""The benchmark of training on several GPUs lists sound rows and compares the right ones."""

from typing import Any

import pytest
import torch

from benchmarks.train.model import TINY
from benchmarks.train.options import parser_of, started
from benchmarks.train.rows import config_of
from benchmarks.train.several import cells, row_of, with_shares


def figures(engine: str, workers: int, rate: float | None) -> dict[str, Any]:
    row = {"name": row_of(engine, workers).name, "engine": engine, "workers": workers}
    return row | ({"error": "no memory"} if rate is None else {"samples_per_s": rate})


def test_every_worker_of_a_row_takes_one_sample_per_step() -> None:
    for engine, workers in cells([1, 2, 8]):
        config = config_of(row_of(engine, workers), TINY, torch.device("cpu"))
        assert (config.scaling.workers, config.data.global_batch) == (workers, workers)
        assert config.accumulation == 1


def test_one_worker_comes_before_several_and_only_what_is_asked_for_is_listed() -> None:
    assert cells([1, 2])[:3] == [("ZeRO-1", 1), ("ZeRO-1", 2), ("DDP", 2)]
    assert ("ZeRO-3", 2) in cells([1, 2])
    assert {workers for _, workers in cells([4])} == {4}
    assert {engine for engine, _ in cells([1])} == {"ZeRO-1", "DDP"}


def test_rows_that_are_wanted_are_told_as_they_start_until_the_time_has_run_out(capsys) -> None:
    rows = {"ZeRO-1, 1 worker": 1, "ZeRO-1, 2 workers": 2, "DDP, 1 worker": 3}
    options = parser_of(None).parse_args(["--only", "ZeRO", "2 workers", "--limit-s", "60"])
    assert list(started(rows, options)) == [1, 2]
    assert "row 2/2: ZeRO-1, 2 workers" in capsys.readouterr().err
    assert list(started(rows, parser_of(None).parse_args([]))) == [1, 2, 3]
    assert list(started(rows, parser_of(None).parse_args(["--limit-s", "-1"]))) == []


def test_a_share_is_of_one_workers_rate_with_the_same_engine() -> None:
    table = [
        figures("ZeRO-1", 1, 1.0),
        figures("ZeRO-1", 2, 1.8),
        figures("DDP", 2, 2.0),
        figures("DDP", 1, 1.25),
        figures("ZeRO-3", 4, 1.0),
    ]
    shares = {row["name"]: row["share_of_linear"] for row in with_shares(table)}
    assert shares == pytest.approx(
        {
            "ZeRO-1, 1 worker": 1.0,
            "ZeRO-1, 2 workers": 0.9,
            "DDP, 2 workers": 0.8,
            "DDP, 1 worker": 1.0,
            "ZeRO-3, 4 workers": 0.25,
        }
    )
    assert with_shares(table)[-1]["linear_of"] == "ZeRO-1, 1 worker"


def test_without_figures_of_one_worker_there_is_no_share() -> None:
    table = [figures("DDP", 1, None), figures("DDP", 2, 2.0), figures("ZeRO-2", 2, 2.0)]
    assert with_shares(table) == table
