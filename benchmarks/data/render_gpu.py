"""Bundles per second of the renderer once meshes are loaded, and what bounds it.

    python -m benchmarks.data.render_gpu [--device cuda] [--processes 1,2,4] [--job 400]

Writes results/render-gpu-<device>-<date>.json. It also runs on the CPU, with small numbers.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import RESULTS, describe
from kiss3d_infer.bundle import PUBLISHED
from kiss3d_infer.devices import pick_raster_device
from kiss3d_infer.files import writing
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle, render_views
from kiss3d_train.data.sources.toybox import make

_WARM_UP = 3
_TOP = 20
Figures = dict[str, Any]


def main() -> None:
    """Measure and write the results."""
    args = _arguments()
    meshes = _loaded(args.meshes)
    _warm_up(meshes, args)
    report: Figures = {
        "command": "python -m benchmarks.data.render_gpu",
        "machine": describe(),
        "tile": args.tile,
        "meshes": len(meshes),
        "mean_faces": sum(len(mesh.faces) for mesh in meshes) / len(meshes),
        "device": _name(args.device),
        "drawn_and_fetched": _rate(
            lambda mesh: render_bundle(mesh, tile=args.tile, **_on(args)), meshes, args
        ),
        "drawn": _rate(
            lambda mesh: render_views(mesh, PUBLISHED.cameras, args.tile, **_on(args)), meshes, args
        ),
        "profile": _profile(meshes, args),
        "processes": {str(n): _shared(n, args) for n in args.processes},
    }
    if args.job:
        report["job"] = _job(args)
    print(json.dumps(report, indent=1))
    kind = torch.device(args.device).type
    path = RESULTS / f"render-gpu-{kind}-{report['machine']['date']}.json"
    with writing(path) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--meshes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--processes", default=[], type=lambda text: [int(n) for n in text.split(",")]
    )
    parser.add_argument("--job", type=int, default=0, help="toybox objects of a whole job")
    parser.add_argument("--workers", type=int, help="of that job")
    args = parser.parse_args()
    args.device = pick_raster_device(args.device)
    return args


def _on(args: argparse.Namespace) -> dict[str, Any]:
    return {"device": args.device}


def _loaded(count: int) -> list[Mesh]:
    return [framed(make(index).mesh(), PUBLISHED.cameras) for index in range(count)]


def _warm_up(meshes: list[Mesh], args: argparse.Namespace) -> None:
    for mesh in meshes[:_WARM_UP]:
        render_bundle(mesh, tile=args.tile, **_on(args))


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _rate(draw: Any, meshes: list[Mesh], args: argparse.Namespace) -> Figures:
    _finish(args.device)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(args.rounds):
        for mesh in meshes:
            draw(mesh)
    _finish(args.device)
    count = args.rounds * len(meshes)
    wall = time.perf_counter() - began
    return {
        "bundles_per_s": count / wall,
        "wall_ms": wall / count * 1e3,
        "cpu_ms": (time.process_time() - cpu_began) / count * 1e3,
    }


def _profile(meshes: list[Mesh], args: argparse.Namespace) -> Figures:
    """Milliseconds per bundle by operation; the device's sum tells how busy it is."""
    on_cuda = torch.device(args.device).type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as profiler:
        for mesh in meshes:
            render_bundle(mesh, tile=args.tile, **_on(args))
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
            spans = [run.result() for run in runs]
    began, ended = min(span[0] for span in spans), max(span[1] for span in spans)
    return {"bundles_per_s": num_processes * args.rounds * args.meshes / (ended - began)}


def _one_of_several(barrier: Barrier, args: argparse.Namespace) -> tuple[float, float]:
    torch.set_num_threads(1)
    meshes = _loaded(args.meshes)
    _warm_up(meshes, args)
    barrier.wait()
    began = time.time()
    for _ in range(args.rounds):
        for mesh in meshes:
            render_bundle(mesh, tile=args.tile, **_on(args))
    return began, time.time()


def _job(args: argparse.Namespace) -> Figures:
    """A whole job over Ray: making the mesh, drawing, validating and writing the samples."""
    from kiss3d_train.data.render import render_source
    from kiss3d_train.ray_session import ray_session

    kind = torch.device(args.device).type
    workers = args.workers or describe()["cores"]
    with ray_session(int(workers)), tempfile.TemporaryDirectory() as folder:
        rates = {}
        for name in ("first", "second"):  # the workers of the first start CUDA
            summary = render_source(
                f"toybox:{args.job}?seed={len(rates)}",
                Path(folder) / name,
                tile=args.tile,
                num_workers=int(workers),
                device=kind,
            )
            rates[name] = summary.rendered / summary.seconds
    return {"workers": workers, "samples": args.job, "samples_per_s": rates}


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


if __name__ == "__main__":
    main()
