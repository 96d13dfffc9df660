"""Measure optimizer steps at FLUX.1-dev's size on one GPU, ours and diffusers' public recipe.

    python -m benchmarks.train                    # everything, 10 minutes on an H200
    python -m benchmarks.train --tiny             # try the program out on a CPU

Random weights are made on the device. Writes results/train-<gpu>-<date>.json after each row.
"""

import json
import os
import traceback
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.machine import describe, short_name, write_report
from benchmarks.train import rates
from benchmarks.train.model import FULL, TINY, Size
from benchmarks.train.options import parser_of, started
from benchmarks.train.rows import Row, floor_seconds, measured, rows


def main() -> None:
    """Measure all rows and print them as a table."""
    options = parser_of(__doc__).parse_args()
    # Without it pieces between the tensors of a step are lost, several GiB of them.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    size = TINY if options.tiny else FULL
    device = torch.device("cpu") if options.tiny else torch.device("cuda", 0)
    os.environ |= {"LOCAL_RANK": "0", "DS_ACCELERATOR": device.type}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group(
        "gloo" if options.tiny else "nccl", store=dist.HashStore(), rank=0, world_size=1
    )
    report = {"command": "python -m benchmarks.train", "machine": describe("diffusers", "peft")}
    report |= {
        "tokens": [size.image_tokens, size.text_tokens],
        "rates": rates.measure(size, device),
    }
    print(json.dumps(report["rates"]), flush=True)
    table: list[dict[str, Any]] = []
    for row in started({row.name: row for row in rows()}, options):
        table.append(_row(row, size, device, options.steps, report["rates"]))
        name = f"train-{short_name(str(device))}"
        write_report(report | {"rows": table}, name, options.out)
    _print(table)
    dist.destroy_process_group()


def _row(
    row: Row, size: Size, device: torch.device, num_steps: int, measured_rates: dict[str, float]
) -> dict[str, Any]:
    try:
        figures = measured(row, size, device, num_steps)
        figures["floor_s"] = floor_seconds(row, size, device, measured_rates)
        figures["over_floor"] = figures["step_s"] / figures["floor_s"]
    except Exception as error:  # the other rows are still worth having
        traceback.print_exc(limit=-4)
        figures = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    result = {"name": row.name, **figures}
    print(json.dumps({k: v for k, v in result.items() if k != "recipe"}), flush=True)
    return result


def _print(table: list[dict[str, Any]]) -> None:
    """As Markdown, for docs/training-speed.md."""
    print(f"| {'configuration':38} | s/step | GiB | samples/s | MFU | times the floor |")
    print(f"|{'-' * 40}|---|---|---|---|---|")
    for row in table:
        if "error" in row:
            print(f"| {row['name']:38} | {row['error'][:80]} | | | | |")
            continue
        gib = f"{row['peak_reserved_gib']:.1f}" if "peak_reserved_gib" in row else "-"
        print(
            f"| {row['name']:38} | {row['step_s']:.3f} | {gib} | {row['samples_per_s']:.2f} "
            f"| {row['mfu']:.0%} | {row['over_floor']:.2f} |"
        )


if __name__ == "__main__":
    main()
