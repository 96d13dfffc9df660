"""The rows of the table: what is trained, under which budget, and the figures of a step."""

import gc
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.train.model import Size
from benchmarks.train.rates import Clock
from benchmarks.train.steps import Training, diffusers_recipe, ours
from kiss3d_train.config import TrainConfig
from kiss3d_train.memory import GIB, MARGIN_GIB
from kiss3d_train.plan import make_plan

PEAK_FLOPS = 989e12
"""Of an H100 or H200 in bfloat16, dense, by NVIDIA's data sheets."""
_WARM_UP = 3
_OPTIMIZER_BYTES = 28
"""Read and written per adapter weight: weight, two moments, gradient; the first three back."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: in the table.
        recipe: changes to the recipe, dotted keys to values.
        peft: precision of the adapter in diffusers' recipe; None for our trainer.
        limit_gib: memory that the process may not exceed while it trains.
    """

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    peft: torch.dtype | None = None
    limit_gib: float | None = None


def rows() -> list[Row]:
    """In the order in which they are worth having; limits are what such cards leave."""
    big, middle = _ours("80 GB card", 77), _ours("48 GB card", 44)
    int8 = {"base.quantize": "int8"}

    def changed(name: str, **recipe: Any) -> Row:
        return replace(big, name=name, recipe=big.recipe | recipe)

    return [
        big,
        Row("diffusers recipe, float32 adapter", peft=torch.float32),
        changed("80 GB card, fp8 products", **{"base.quantize": "fp8"}),
        middle,
        _ours("24 GB card, int8 base", 22.5, int8),
        Row("diffusers recipe, its bfloat16 adapter", peft=torch.bfloat16),
        changed("rank 128", **{"adapter.rank": 128}),
        changed("attention only", **{"adapter.targets": "attention"}),
        changed("not compiled", **{"engine.compile": False}),
        changed("DeepSpeed ZeRO-1", **{"engine.kind": "deepspeed"}),
    ]


def _ours(name: str, gib: float, recipe: dict[str, Any] | None = None) -> Row:
    budget = {"engine.memory_budget_gib": gib - MARGIN_GIB}  # as `auto` would have it
    return Row(name, budget | (recipe or {}), limit_gib=gib)


def measured(row: Row, size: Size, device: torch.device, num_steps: int) -> Figures:
    """Train a few steps and return the figures of one; frees everything again."""
    config = config_of(row, size, device)
    plan = make_plan(config)
    _forget(device)
    if row.peft is None:
        make = partial(ours, size, config, device, plan.keeps)
    else:
        make = partial(diffusers_recipe, size, config, device, row.peft)
    try:
        figures = _timed(make, row, device, num_steps)
    finally:
        _limit(device, None)
    flops = plan.model_flops_per_sample
    figures |= {
        "samples_per_s": config.data.global_batch / figures["step_s"],
        "model_tflop": flops / 1e12,
        "mfu": flops / figures["step_s"] / PEAK_FLOPS,
        "adapter_weights": plan.num_adapter,
    }
    if row.peft is None:
        figures["planned_gib"] = sum(plan.memory.values())
        figures["kept"] = dict(Counter(plan.keeps))
    return figures | {"recipe": row.recipe}


def floor_seconds(row: Row, size: Size, device: torch.device, rates: dict[str, float]) -> float:
    """Of a step with nothing computed twice, at the measured rates.

    Products and attention at the rates of the largest ones, and the optimizer's traffic; nothing
    for elementwise work, which a perfect compiler would hide in the products.
    """
    plan = make_plan(config_of(row, size, device))
    flops = plan.least_flops_per_sample
    forward = flops["attention"] / 3.5
    return (
        (flops["linears"] + flops["adapter"]) / rates["matmul_flop_per_s"]
        + forward / rates["attention_ours_forward_flop_per_s"]
        + 2.5 * forward / rates["attention_ours_backward_flop_per_s"]
        + _OPTIMIZER_BYTES * plan.num_adapter / rates["copy_bytes_per_s"]
    )


def _timed(make: Callable[[], Training], row: Row, device: torch.device, num: int) -> Figures:
    training = make()
    _limit(device, row.limit_gib)
    began = time.perf_counter()
    training.step(0)
    _wait(device)
    first = time.perf_counter() - began
    for number in range(1, _WARM_UP):
        training.step(number)
    losses = training.losses()
    _wait(device)
    clock = Clock(device)
    for number in range(_WARM_UP, _WARM_UP + num):
        training.step(number)
        clock.mark()
    losses += training.losses()
    spans = clock.spans()
    training.stream.close()
    return {
        "step_s": median(spans),
        "slowest_step_s": max(spans),
        "first_step_s": first,
        "losses": losses,
        **_peaks(device),
    }


def config_of(row: Row, size: Size, device: torch.device) -> TrainConfig:
    """The recipe of a row; it trains on invented samples, and `run.dir` is not used."""
    raw: dict[str, Any] = {
        "run": {"dir": Path("unused"), "steps": 1000},
        "base": {"path": size.base},
        "data": {"shards": Path("unused"), "global_batch": 1},
        "engine": {"kind": "ddp"},
        "scaling": {"use_gpu": device.type == "cuda"},
    }
    for key, value in row.recipe.items():
        section, _, name = key.partition(".")
        raw.setdefault(section, {})[name] = value
    return TrainConfig.model_validate(raw)


def _forget(device: torch.device) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _limit(device: torch.device, gib: float | None) -> None:
    """Let the process take at most this much, and count its peak from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        share = 1.0 if gib is None else min(1.0, gib * GIB / total)
        torch.cuda.set_per_process_memory_fraction(share, device)
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device) -> Figures:
    if device.type == "cpu":
        return {}
    return {
        "peak_allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
