"""Bundles per second of one core: our CPU renderer beside others that draw the same views.

    python -m benchmarks.data.render_cpu [--models 60] [--out FILE]

Reads models spread evenly over the furniture libraries, draws them with tiles of 512 pixels, four
samples per pixel, and writes PNGs; each renderer in a process of its own, all on one core and one
thread, taking turns model by model. Seconds are the core's (CPU time), which hardly depend on who
else uses the machine; wall-clock seconds stand beside them.

The peers are no dependency of kiss3d; one that is missing is reported as such:

    pip install embreex==4.4.0.post1
    pip install --no-deps bpy==5.0.1          # Python 3.11; asks for numpy 1 and works with 2
    pip install --no-deps pyrender==0.1.45 PyOpenGL==3.1.10 freetype-py==2.5.1 pyglet==1.5.31
    apt install libegl1 libgl1-mesa-dri       # for pyrender
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.data.render_peers import Model

SOURCE = "data/furniture"
RENDERERS = {
    "kiss3d": "benchmarks.data.render_ours:Ours",
    "kiss3d, whole job": "benchmarks.data.render_ours:WholeJob",
    "trimesh + embreex": "benchmarks.data.render_peers:TrimeshEmbree",
    "pyrender + Mesa llvmpipe": "benchmarks.data.render_peers:PyrenderMesa",
    "Blender Cycles": "benchmarks.data.render_blender:BlenderCycles",
}
"""The first is the one that the pictures of the others are compared with."""
_PACKAGES = ("numpy", "pillow", "trimesh", "embreex", "pyrender", "PyOpenGL", "bpy")
_WARM_UP = 2
"""Models that each draws before the clock counts: kernels and shaders are compiled."""

Figures = dict[str, Any]
Times = dict[str, tuple[float, float]]
"""Of each stage the CPU and the wall-clock seconds."""


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from benchmarks.machine import describe, write_report

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        models = _prepared(arguments.models, Path(folder) / "models")
        result: Figures = {
            "command": f"python -m benchmarks.data.render_cpu --models {arguments.models}",
            "machine": describe(*_PACKAGES),
            "load_before": round(load, 2),
            "source": f"{len(models)} models, evenly spread over {SOURCE}",
            "tile": 512,
            "samples_per_pixel": 4,
            "threads": 1,
            "renderers": _compared(models, Path(folder)),
            "load_after": round(os.getloadavg()[0], 2),
        }
    print(write_report(result, "render-cpu", arguments.out))


def _prepared(count: int, folder: Path) -> list[Model]:
    """Unpack models evenly spread over the source, and find out how each is placed."""
    from kiss3d_train.data.sources import open_source

    source = open_source(SOURCE)
    items = list(source.items())
    chosen = [items[place * len(items) // count] for place in range(count)]
    return [_unpacked(source, item, folder / item.key) for item in chosen]


def _unpacked(source: Any, item: Any, folder: Path) -> Model:
    import numpy as np

    from kiss3d_infer.bundle.layout import PUBLISHED
    from kiss3d_infer.scene.framing import framed
    from kiss3d_infer.scene.load import load_mesh
    from kiss3d_train.data.sources.sweethome import SweetHomeSource

    folder.mkdir(parents=True)
    name, _, number = item.locator.rpartition("#")
    library = SweetHomeSource(Path(SOURCE) / name)
    path = library._unpacked(library._model(number), folder)
    raw = load_mesh(path).vertices.double().numpy()
    there = framed(source.load(item), PUBLISHED.cameras).vertices.double().numpy()
    homogeneous = np.concatenate([raw, np.ones((len(raw), 1))], axis=1)
    affine = np.linalg.lstsq(homogeneous, there, rcond=None)[0]
    placed = np.vstack([affine.T, [0, 0, 0, 1]])
    return Model(item.key, path, tuple(map(tuple, placed.tolist())), item)


def _compared(models: list[Model], folder: Path) -> Figures:
    """Every renderer draws a model before any draws the next one."""
    report: dict[str, Figures] = {}
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {}
        for name, target in RENDERERS.items():
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
            try:
                pool.submit(_begin, target, min(os.sched_getaffinity(0))).result()
                pools[name] = pool
            except Exception as error:  # whatever a package that is not there, or half, raises
                report[name] = {"error": f"{type(error).__name__}: {error}"}
        times: dict[str, list[Times]] = {name: [] for name in pools}
        agreement: dict[str, list[tuple[str, float, float]]] = {name: [] for name in pools}
        for place, model in enumerate([*models[:_WARM_UP], *models]):
            paths = {name: folder / f"{number}.png" for number, name in enumerate(pools)}
            for name, pool in pools.items():
                took = pool.submit(_drawn, model, paths[name]).result()
                if place >= _WARM_UP:
                    times[name].append(took)
                    alike = _agreement(next(iter(paths.values())), paths[name])
                    agreement[name].append((model.key, *alike))
            print(f"{place + 1 - _WARM_UP} of {len(models)}", flush=True)
    for name in pools:
        report[name] = _summed_up(times[name], agreement[name])
    return report


_renderer: Any = None


def _begin(target: str, core: int) -> None:
    """Make this process the renderer's own, on one core."""
    global _renderer
    os.sched_setaffinity(0, {core})
    module, _, name = target.partition(":")
    _renderer = getattr(import_module(module), name)()


def _drawn(model: Model, path: Path) -> Times:
    clock = _Clock()
    read = clock.timed("reading", _renderer.read, model)
    picture = clock.timed("rendering", _renderer.draw, read)
    clock.timed("writing", _renderer.write, picture, path)
    return clock.times


class _Clock:
    def __init__(self) -> None:
        self.times: Times = {}

    def timed(self, stage: str, work: Any, *arguments: Any) -> Any:
        busy, began = time.process_time(), time.perf_counter()
        result = work(*arguments)
        self.times[stage] = time.process_time() - busy, time.perf_counter() - began
        return result


def _agreement(ours: Path, theirs: Path) -> tuple[float, float]:
    """Lowest IoU of a view's silhouettes, and mean difference of the RGB rows inside, in bytes."""
    from kiss3d_infer.bundle.image import load_bundle
    from kiss3d_infer.bundle.masks import normal_masks

    a, b = load_bundle(ours), load_bundle(theirs)
    first, second = normal_masks(a), normal_masks(b)
    both = first & second
    ious = both.sum((1, 2)) / (first | second).sum((1, 2)).clip(1)
    difference = (a.rgb - b.rgb).abs().mean(1).numpy()[both].mean() * 255
    return float(ious.min()), float(difference)


def _summed_up(times: list[Times], agreement: list[tuple[str, float, float]]) -> Figures:
    count = len(times)
    stages = {stage: sum(taken[stage][0] for taken in times) for stage in times[0]}
    wall = sum(seconds for taken in times for _, seconds in taken.values())
    keys, ious, differences = zip(*agreement, strict=True)
    return {
        "bundles_per_s_per_core": round(count / sum(stages.values()), 3),
        "seconds_per_bundle": {stage: round(spent / count, 4) for stage, spent in stages.items()},
        "wall_seconds_per_bundle": round(wall / count, 4),
        "silhouette_iou": {
            "lowest": round(min(ious), 4),
            "mean": round(sum(ious) / count, 4),
            "above_0.98": sum(iou > 0.98 for iou in ious),
            "others": {k: round(iou, 3) for k, iou in zip(keys, ious, strict=True) if iou <= 0.98},
        },
        "mean_rgb_difference": round(sum(differences) / count, 2),
    }


if __name__ == "__main__":
    main()
