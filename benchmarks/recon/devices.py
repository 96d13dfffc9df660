"""Reconstruct some toys on this machine's GPU and CPU: seconds by stage, and bundles per hour.

    python -m benchmarks.recon.devices [--toys 12] [--tile 512] [--devices cuda,cpu]
        [--replicas 2,4] [--limit-s 300] [--out FILE]

First several reconstructions are at work, as in a server under load, each in a Ray actor of its own
that is kept to its share of the cores: as many as `--replicas` says on a GPU, or one on each core.
Then one toy is made after the other. The file is written after each row, and no row and no toy is
begun after `--limit-s`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.machine import describe, short_name, write_report
from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.bundle.image import encode_image, load_bundle
from kiss3d_infer.reconstruct import reconstruct, warm_up
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources import open_source
from kiss3d_train.ray_session import ray_session

_TOYS = "toybox:{}?seed=2"
Row = dict[str, Any]
Toys = list[tuple[str, Bundle]]


def main() -> None:
    """Measure, and write the results as they come."""
    chosen = _arguments()
    last_start = time.perf_counter() + chosen.limit_s
    report: Row = {
        "command": "python -m benchmarks.recon.devices " + " ".join(sys.argv[1:]),
        "machine": describe(),
        "tile": chosen.tile,
        "many at a time": [],
        "one at a time": {},
    }
    write = partial(
        write_report, report, f"recon-devices-{short_name(chosen.devices[0])}", chosen.out
    )
    toys = list(bundles(chosen.toys, chosen.tile))
    for device in chosen.devices:
        for workers in chosen.replicas if device == "cuda" else [report["machine"]["cores"]]:
            if time.perf_counter() < last_start:
                row = many_at_a_time(toys, device, workers, chosen.seconds)
                report["many at a time"].append(row)
                write()
        for summary in one_at_a_time(toys, device, last_start):
            report["one at a time"][device] = summary
            write()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--toys", type=int, default=12)
    available = "cuda,cpu" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--devices", default=available, type=lambda text: text.split(","))
    parser.add_argument(
        "--replicas", default=[2, 4], type=lambda text: [int(n) for n in text.split(",")]
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of many at a time, after start"
    )
    parser.add_argument("--limit-s", type=float, default=1e9)
    return parser.parse_args()


def bundles(count: int, tile: int) -> Iterator[tuple[str, Bundle]]:
    """Caption and exact bundle of each toy."""
    source = open_source(_TOYS.format(count))
    for item in source.items():
        mesh = framed(source.load(item), PUBLISHED.cameras)
        yield source.describe(item).caption or item.name, render_bundle(mesh, tile=tile)


def one_at_a_time(toys: Toys, device: str, last_start: float) -> Iterator[Row]:
    """Seconds from a bundle to a GLB on disk, after each toy the means of those made so far.

    Kernels are compiled before.
    """
    warm_up()
    made_of(toys[0][1], device)
    rows: list[Row] = []
    for name, bundle in toys:
        if time.perf_counter() > last_start:
            return
        rows.append({"object": name, **made_of(bundle, device)})
        print(device, json.dumps(rows[-1]), flush=True)
        stages = [{"total": row["seconds"], **row["stages"]} for row in rows]
        yield {
            "mean seconds": {name: mean(row[name] for row in stages) for name in stages[0]},
            "mean silhouette IoU": mean(row["silhouette_iou"] for row in rows),
            "objects": rows,
        }


def made_of(bundle: Bundle, device: str) -> Row:
    """Reconstruct a bundle and save it."""
    began = time.perf_counter()
    made = reconstruct(bundle, device=device)
    stages = dict(made.seconds)
    saving = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_mesh(made.mesh, Path(folder) / "asset.glb")
    ended = time.perf_counter()
    stages["save"] = ended - saving
    keys = ("silhouette_iou", "normal_error", "color_psnr", "num_faces", "watertight")
    figures = {key: made.measurements[key] for key in keys}
    return {"seconds": ended - began, "stages": stages, **figures}


class Worker:
    """Reconstructs on some cores, and on a share of a GPU."""

    def __init__(self, cores: list[int], device: str) -> None:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
        self._device = device

    def work(self, images: list[bytes], seconds: float) -> tuple[int, float]:
        """How many bundles were begun before the time was over, and the seconds they took."""
        count, began = 0, time.perf_counter()
        while not count or time.perf_counter() - began < seconds:
            made_of(load_bundle(images[count % len(images)]), self._device)
            count += 1
        return count, time.perf_counter() - began


def many_at_a_time(toys: Toys, device: str, workers: int, seconds: float) -> Row:
    """Bundles per hour with as many actors at work, after each has made one."""
    import ray

    images = [encode_image(bundle, "png") for _, bundle in toys]
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // workers)
    with ray_session(len(cores)):
        on_gpu = 1 / workers if device == "cuda" else 0
        actor = ray.remote(num_cpus=share, num_gpus=on_gpu)(Worker)
        actors = [actor.remote(cores[k * share :][:share], device) for k in range(workers)]
        ray.get([one.work.remote(images[:1], 0) for one in actors])
        # Each begins with another toy: they are not equally heavy.
        orders = [images[k % len(images) :] + images[: k % len(images)] for k in range(workers)]
        parts = ray.get([actors[k].work.remote(orders[k], seconds) for k in range(workers)])
    count = sum(made for made, _ in parts)
    row = {
        "device": device,
        "workers": workers,
        "cores of each": share,
        "bundles": count,
        "seconds per bundle": sum(took for _, took in parts) / count,
        "bundles per hour": 3600 * sum(made / took for made, took in parts),
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
