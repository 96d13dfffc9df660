"""Measure optimizer steps at FLUX.1-dev's size on several GPUs of one host, through Ray Train.

    python -m benchmarks.train.several                    # one worker and two
    python -m benchmarks.train.several --workers 1 2 4 8
    python -m benchmarks.train.several --tiny             # try the program out on a CPU

Every row is a Ray Train job as `kiss3d train run` starts it, with a worker per GPU and a sample per
worker and step. Writes results/train-several-<gpu>-<date>.json after each row.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe, short_name, write_report
from benchmarks.train.job import Task, measured_by_workers
from benchmarks.train.model import FULL, TINY
from benchmarks.train.options import parser_of, started
from benchmarks.train.rows import Figures, Row, config_of
from kiss3d_train.config import TrainConfig
from kiss3d_train.logs import quiet_driver
from kiss3d_train.memory import MARGIN_GIB
from kiss3d_train.ray_session import ray_session

_LIMIT_GIB = 77
"""What an 80 GB card leaves a process; all rows are held to it."""
_ENGINES: dict[str, dict[str, Any]] = {
    "DDP": {"engine.kind": "ddp"},
    "ZeRO-1": {"engine.kind": "deepspeed", "engine.zero_stage": 1},
    "ZeRO-2": {"engine.kind": "deepspeed", "engine.zero_stage": 2},
    "ZeRO-3": {"engine.kind": "deepspeed", "engine.zero_stage": 3},
}
_ALONE = {"DDP": "DDP", "ZeRO-1": "ZeRO-1", "ZeRO-2": "ZeRO-1", "ZeRO-3": "ZeRO-1"}
"""The engine of one worker that several workers are compared with."""


def main() -> None:
    """Measure all rows and print them as a table."""
    options = _options()
    # Ray's workers take over this environment. As in the trainer, gaps would stay unused without.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    quiet_driver()
    size = TINY if options.tiny else FULL
    device = torch.device("cpu") if options.tiny else torch.device("cuda", 0)
    report = {
        "command": "python -m benchmarks.train.several",
        "machine": describe("ray", "deepspeed", "diffusers"),
        "gpus": torch.cuda.device_count(),
        "tokens": [size.image_tokens, size.text_tokens],
    }
    table: list[Figures] = []
    rows = {row_of(*cell).name: cell for cell in cells(options.workers)}
    with ray_session(max(options.workers)) as resources, tempfile.TemporaryDirectory() as folder:
        for engine, num in started(rows, options):
            row = row_of(engine, num)
            config = _in_folder(config_of(row, size, device), Path(folder) / row.name)
            figures = measured_by_workers(Task(row, size, config, options.steps), resources)
            print(json.dumps({"name": row.name, **figures}), flush=True)
            table.append({"name": row.name, "engine": engine, "workers": num, **figures})
            table = with_shares(table)
            name = f"train-several-{short_name(str(device))}"
            write_report(report | {"rows": table}, name, options.out)
    _print(table)


def cells(workers: Sequence[int]) -> list[tuple[str, int]]:
    """Engines and numbers of workers, in the order in which they are worth having."""
    several = [num for num in workers if num > 1]
    order = [("ZeRO-1", 1), *(("ZeRO-1", num) for num in several)]
    order += [*(("DDP", num) for num in several), ("DDP", 1)]
    order += [(engine, num) for engine in ("ZeRO-2", "ZeRO-3") for num in several]
    return [(engine, num) for engine, num in order if num in workers]


def row_of(engine: str, num_workers: int) -> Row:
    """Of as many workers with a sample each."""
    recipe = _ENGINES[engine] | {
        "engine.memory_budget_gib": _LIMIT_GIB - MARGIN_GIB,
        "scaling.workers": num_workers,
        "scaling.max_failures": 0,
        "data.global_batch": num_workers,
    }
    name = f"{engine}, {num_workers} worker{'s' if num_workers > 1 else ''}"
    return Row(name, recipe, limit_gib=_LIMIT_GIB)


def with_shares(table: Sequence[Figures]) -> list[Figures]:
    """The rows with `share_of_linear`, and `linear_of`, the name of the row that it refers to.

    It is samples/s by as many times those of one worker with the same engine; with ZeRO-1 for
    ZeRO-2 and ZeRO-3. Rows that failed, or whose one worker has no figures, have none.
    """
    alone = {row["engine"]: row for row in table if row["workers"] == 1 and "samples_per_s" in row}
    result = []
    for row in table:
        base = alone.get(_ALONE[row["engine"]])
        if base and "samples_per_s" in row:
            share = row["samples_per_s"] / (row["workers"] * base["samples_per_s"])
            row = row | {"share_of_linear": share, "linear_of": base["name"]}
        result.append(row)
    return result


def _in_folder(config: TrainConfig, folder: Path) -> TrainConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": folder})})


def _print(table: Sequence[Figures]) -> None:
    """As Markdown, for docs/training-speed.md."""
    print("| configuration | s/step | by rank | GiB by rank | samples/s | share of linear | of |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        if "error" in row:
            print(f"| {row['name']} | {row['error'][:80]} | | | | | |")
            continue
        seconds = " ".join(f"{value:.3f}" for value in row["step_s_by_rank"])
        gib = " ".join(f"{value:.1f}" for value in row.get("peak_reserved_gib_by_rank", ())) or "-"
        share = f"{row['share_of_linear']:.0%}" if "share_of_linear" in row else "-"
        print(
            f"| {row['name']} | {row['step_s']:.3f} | {seconds} | {gib} "
            f"| {row['samples_per_s']:.2f} | {share} | {row.get('linear_of', '-')} |"
        )


def _options() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of GPUs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
