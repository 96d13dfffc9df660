"""The benchmark of training steps runs every kind of row; its figures come from a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_training import free_port, join_group

from benchmarks.train import rates
from benchmarks.train.model import TINY
from benchmarks.train.rows import Row, floor_seconds, measured, rows

CPU = torch.device("cpu")
RATES = {
    "copy_bytes_per_s": 1e12,
    "matmul_flop_per_s": 1e12,
    "attention_ours_forward_flop_per_s": 1e12,
    "attention_ours_backward_flop_per_s": 1e12,
}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    join_group(0, 1, free_port())
    yield
    torch.distributed.destroy_process_group()


def figures_of(name: str) -> tuple[Row, dict[str, Any]]:
    (row,) = (row for row in rows() if row.name == name)
    return row, measured(row, TINY, CPU, num_steps=1)


def test_ours_and_the_public_recipe_train_the_same_model() -> None:
    _, ours = figures_of("80 GB card")
    _, public = figures_of("diffusers recipe, float32 adapter")
    # From the same weights and noise; the adapters start differently, but change nothing at first.
    assert ours["losses"][0] == pytest.approx(public["losses"][0], rel=1e-3)
    assert len(ours["losses"]) == len(public["losses"]) == 4
    assert ours["adapter_weights"] == public["adapter_weights"]
    assert ours["samples_per_s"] == pytest.approx(1 / ours["step_s"])


@pytest.mark.parametrize("name", ["80 GB card, fp8 products", "24 GB card, int8 base"])
def test_quantized_rows_train(name: str) -> None:
    _, figures = figures_of(name)
    assert figures["planned_gib"] > 0
    assert figures["kept"] == {"products": 4}


def test_more_adapter_weights_raise_the_floor() -> None:
    by_name = {row.name: row for row in rows()}
    floors = [
        floor_seconds(by_name[name], TINY, CPU, RATES)
        for name in ("attention only", "80 GB card", "rank 128")
    ]
    assert floors == sorted(set(floors))


def test_rates_are_measured() -> None:
    assert rates.measure(TINY, CPU).keys() >= RATES.keys()
