"""Bundles per second of the renderer once meshes are loaded, and what bounds it.

    python -m benchmarks.data.render_gpu [--device cuda] [--processes 1,2,4] [--job 32]

Writes results/render-gpu-<device>-<date>.json after each row: drawing in one process, what its time
goes to, a whole job, and several processes on one device. Each part of a row takes `--seconds`
beside its start; no row starts after `--limit-s`. It also runs on the CPU, with small numbers.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe, short_name, write_report
from kiss3d_infer.bundle import PUBLISHED
from kiss3d_infer.devices import pick_raster_device
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle, render_views
from kiss3d_train.data.sources.toybox import make

_WARM_UP = 3
_TOP = 20
Figures = dict[str, Any]


def main() -> None:
    """Measure, and write the results as they come."""
    args = _arguments()
    began = time.perf_counter()
    meshes = _loaded(args.meshes)
    _warm_up(meshes, args)
    report: Figures = {
        "command": "python -m benchmarks.data.render_gpu " + " ".join(sys.argv[1:]),
        "machine": describe(),
        "tile": args.tile,
        "meshes": len(meshes),
        "mean_faces": sum(len(mesh.faces) for mesh in meshes) / len(meshes),
        "device": _name(args.device),
    }
    for name, measure in _rows(meshes, args).items():
        if time.perf_counter() - began < args.limit_s:
            report[name] = measure()
            shown = "" if name == "profile" else json.dumps(report[name])
            print(f"{time.perf_counter() - began:.0f} s {name} {shown}", flush=True)
            write_report(report, f"render-gpu-{short_name(args.device)}", args.out)


def _rows(meshes: list[Mesh], args: argparse.Namespace) -> dict[str, Callable[[], Figures]]:
    """What each measures, in the order in which they are worth having."""
    cameras = PUBLISHED.cameras
    rows: dict[str, Callable[[], Figures]] = {
        "drawn_and_fetched": lambda: _rate(partial(render_bundle, tile=args.tile), meshes, args),
        "drawn": lambda: _rate(
            partial(render_views, cameras=cameras, size=args.tile), meshes, args
        ),
        "profile": lambda: _profile(meshes, args),
    }
    if args.job:
        rows["job"] = partial(_job, args)
    return rows | {f"{n} processes": partial(_shared, n, args) for n in args.processes}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--meshes", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part of a row")
    parser.add_argument("--limit-s", type=float, default=60.0, help="no row starts after this")
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--processes", default=[], type=lambda text: [int(n) for n in text.split(",")]
    )
    parser.add_argument("--job", type=int, default=0, help="toybox objects of a whole job")
    parser.add_argument("--workers", type=int, default=4, help="of that job")
    args = parser.parse_args()
    args.device = pick_raster_device(args.device)
    return args


def _loaded(count: int) -> list[Mesh]:
    return [framed(make(index).mesh(), PUBLISHED.cameras) for index in range(count)]


def _warm_up(meshes: list[Mesh], args: argparse.Namespace) -> None:
    for mesh in meshes[:_WARM_UP]:
        render_bundle(mesh, tile=args.tile, device=args.device)


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _rate(draw: Callable[..., Any], meshes: list[Mesh], args: argparse.Namespace) -> Figures:
    began, cpu_began = time.perf_counter(), time.process_time()
    count = _drawn_within(args.seconds, draw, meshes, args.device)
    wall = time.perf_counter() - began
    return {
        "bundles": count,
        "bundles_per_s": count / wall,
        "wall_ms": wall / count * 1e3,
        "cpu_ms": (time.process_time() - cpu_began) / count * 1e3,
    }


def _drawn_within(seconds: float, draw: Callable[..., Any], meshes: list[Mesh], device: str) -> int:
    """How many meshes were drawn, one after the other, and ready on the device."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        draw(meshes[count % len(meshes)], device=device)
        count += 1
    _finish(device)
    return count


def _profile(meshes: list[Mesh], args: argparse.Namespace) -> Figures:
    """Milliseconds per bundle by operation; the device's sum tells how busy it is."""
    on_cuda = torch.device(args.device).type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as profiler:
        for mesh in meshes:
            render_bundle(mesh, tile=args.tile, device=args.device)
        _finish(args.device)
    per = 1e3 * len(meshes)  # from microseconds in all to milliseconds per bundle
    rows = [
        {
            "name": event.key,
            "calls": event.count / len(meshes),
            "device_ms": event.self_device_time_total / per,
            "cpu_ms": event.self_cpu_time_total / per,
        }
        for event in profiler.key_averages()
    ]
    column = "device_ms" if on_cuda else "cpu_ms"
    return {
        "device_ms": sum(row["device_ms"] for row in rows),
        "cpu_ms": sum(row["cpu_ms"] for row in rows),
        "by_device_time": sorted(rows, key=lambda row: -row[column])[:_TOP],
        "by_cpu_time": sorted(rows, key=lambda row: -row["cpu_ms"])[:_TOP],
    }


def _shared(num_processes: int, args: argparse.Namespace) -> Figures:
    """Several processes that draw on one device: the rate of all together."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(num_processes)
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            runs = [pool.submit(_one_of_several, barrier, args) for _ in range(num_processes)]
            parts = [run.result() for run in runs]
    return {"bundles_per_s": sum(count / seconds for count, seconds in parts)}


def _one_of_several(barrier: Barrier, args: argparse.Namespace) -> tuple[int, float]:
    torch.set_num_threads(1)
    meshes = _loaded(args.meshes)
    _warm_up(meshes, args)
    barrier.wait()
    began = time.perf_counter()
    draw = partial(render_bundle, tile=args.tile)
    count = _drawn_within(args.seconds, draw, meshes, args.device)
    return count, time.perf_counter() - began


def _job(args: argparse.Namespace) -> Figures:
    """A whole job over Ray: making the mesh, drawing, validating and writing the samples."""
    from kiss3d_train.data.render import render_source
    from kiss3d_train.ray_session import ray_session

    kind = torch.device(args.device).type
    with ray_session(args.workers), tempfile.TemporaryDirectory() as folder:
        rates = {}
        # The workers of the first start CUDA.
        for name, count in (("first", args.workers), ("second", args.job)):
            summary = render_source(
                f"toybox:{count}?seed={len(rates)}",
                Path(folder) / name,
                tile=args.tile,
                num_workers=args.workers,
                device=kind,
            )
            rates[name] = summary.rendered / summary.seconds
    return {"workers": args.workers, "samples": args.job, "samples_per_s": rates}


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


if __name__ == "__main__":
    main()
