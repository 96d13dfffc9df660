"""Reconstruct some toys on this machine's GPU and CPU: seconds by stage, and bundles per hour.

    python -m benchmarks.recon.devices [--toys 12] [--tile 512] [--out FILE]

The second part runs as many reconstructions at a time as there are cores, or as share the GPU, each
in a Ray actor of its own that is kept on one core, as a server under load would.
"""

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.machine import RESULTS, describe
from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.bundle.image import encode_image, load_bundle
from kiss3d_infer.files import writing
from kiss3d_infer.reconstruct import reconstruct, warm_up
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources import open_source
from kiss3d_train.ray_session import ray_session

_TOYS = "toybox:{}?seed=2"
_LEAST_BUNDLES, _BUNDLES_PER_WORKER = 6, 3
_ON_ONE_GPU = (4, 8, 16)
Row = dict[str, Any]


def main() -> None:
    """Measure, and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--toys", type=int, default=12)
    chosen = parser.parse_args()
    machine = describe()
    kind = str(machine.get("gpu", "cpu")).lower().replace(" ", "-")
    out = chosen.out or RESULTS / f"recon-devices-{kind}-{machine['date']}.json"
    report: Row = {"command": "python -m benchmarks.recon.devices", "machine": machine}
    report["tile"] = chosen.tile
    toys = list(bundles(chosen.toys, chosen.tile))
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    report["one at a time"] = {}
    for device in devices:
        report["one at a time"][device] = one_at_a_time(toys, device)
        write(report, out)
    report["many at a time"] = []
    for device in devices:
        for workers in _ON_ONE_GPU if device == "cuda" else (machine["cores"],):
            if workers <= machine["cores"]:
                report["many at a time"].append(many_at_a_time(toys, device, int(workers)))
                write(report, out)


def bundles(count: int, tile: int) -> Iterator[tuple[str, Bundle]]:
    """Caption and exact bundle of each toy."""
    source = open_source(_TOYS.format(count))
    for item in source.items():
        mesh = framed(source.load(item), PUBLISHED.cameras)
        yield source.describe(item).caption or item.name, render_bundle(mesh, tile=tile)


def one_at_a_time(toys: list[tuple[str, Bundle]], device: str) -> Row:
    """Seconds from a bundle to a GLB on disk: the mean and by stage, kernels compiled before."""
    warm_up()
    made_of(toys[0][1], device)
    totals: dict[str, list[float]] = defaultdict(list)
    rows = []
    for name, bundle in toys:
        row = made_of(bundle, device)
        print(device, name, json.dumps(row), flush=True)
        rows.append({"object": name, **row})
        for stage, seconds in {"total": row["seconds"], **row["stages"]}.items():
            totals[stage].append(seconds)
    means = {stage: mean(seconds) for stage, seconds in totals.items()}
    ious = mean(row["silhouette_iou"] for row in rows)
    return {"mean seconds": means, "mean silhouette IoU": ious, "objects": rows}


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
    """Reconstructs on one core, and on a share of a GPU."""

    def __init__(self, core: int, device: str) -> None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        self._device = device

    def reconstruct(self, image: bytes) -> float:
        """Seconds that one bundle took."""
        row: float = made_of(load_bundle(image), self._device)["seconds"]
        return row


def many_at_a_time(toys: list[tuple[str, Bundle]], device: str, workers: int) -> Row:
    """Bundles per hour with as many actors at work, after each has made one."""
    import ray
    from ray.util import ActorPool

    images = [encode_image(bundle, "png") for _, bundle in toys]
    cores = sorted(os.sched_getaffinity(0))
    with ray_session(len(cores)):
        share = 1 / workers if device == "cuda" else 0
        actor = ray.remote(num_cpus=1, num_gpus=share)(Worker)
        actors = [actor.remote(cores[k], device) for k in range(workers)]
        ray.get([one.reconstruct.remote(images[0]) for one in actors])
        count = max(_LEAST_BUNDLES, _BUNDLES_PER_WORKER * workers)
        work = [images[k % len(images)] for k in range(count)]
        began = time.perf_counter()
        pool = ActorPool(actors)
        seconds = list(pool.map_unordered(lambda one, image: one.reconstruct.remote(image), work))
        wall = time.perf_counter() - began
    row = {
        "device": device,
        "workers": workers,
        "bundles": len(work),
        "seconds per bundle": mean(seconds),
        "bundles per hour": 3600 * len(work) / wall,
    }
    print(json.dumps(row), flush=True)
    return row


def write(report: Row, out: Path) -> None:
    """Leave a whole file, however many measurements there are yet."""
    with writing(out) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
