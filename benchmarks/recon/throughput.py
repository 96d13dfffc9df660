"""Bundles per hour through Ray: every core of this machine reconstructs one bundle at a time.

Writes results/recon-throughput-<date>.json (`python -m benchmarks.recon.throughput`).
"""

import itertools
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import RESULTS, describe
from benchmarks.recon.objects import objects
from kiss3d_infer.bundle import save_bundle
from kiss3d_infer.files import writing
from kiss3d_infer.progress import track
from kiss3d_infer.reconstruct import warm_up
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.ray_session import ray_session

_NUM_BUNDLES, _TILE = 12, 512


def main() -> None:
    """Reconstruct the toys once each and write the rate."""
    import ray

    warm_up()
    cores = sorted(os.sched_getaffinity(0))
    with TemporaryDirectory() as name, ray_session(len(cores)):
        folder = Path(name)
        for number, thing in enumerate(itertools.islice(objects(), 12, 12 + _NUM_BUNDLES)):
            save_bundle(render_bundle(thing.mesh, tile=_TILE), folder / f"{number}.png")
        workers = [ray.remote(num_cpus=1)(Worker).remote(core) for core in cores]
        ray.get([worker.make.remote(folder / "0.png", folder / "warm.glb") for worker in workers])
        pool = ray.util.ActorPool(workers)
        began = time.perf_counter()
        jobs = [(folder / f"{n}.png", folder / f"{n}.glb") for n in range(_NUM_BUNDLES)]
        results = pool.map_unordered(lambda worker, job: worker.make.remote(*job), jobs)
        seconds = list(track(results, "reconstructing", len(jobs)))
        wall = time.perf_counter() - began
    report = {
        "command": "python -m benchmarks.recon.throughput",
        "machine": describe(),
        "tile": _TILE,
        "bundles": _NUM_BUNDLES,
        "workers": len(cores),
        "wall_s": wall,
        "mean_s_per_bundle_on_one_core": sum(seconds) / len(seconds),
        "bundles_per_hour": 3600 * _NUM_BUNDLES / wall,
        "bundles_per_hour_and_core": 3600 * _NUM_BUNDLES / wall / len(cores),
    }
    path = RESULTS / f"recon-throughput-{describe()['date']}.json"
    with writing(path) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path, report)


class Worker:
    """Reconstructs on one core."""

    def __init__(self, core: int) -> None:
        os.sched_setaffinity(0, {core})

    def make(self, bundle: Path, out: Path) -> float:
        """Reconstruct a bundle; returns the seconds."""
        from kiss3d_infer.tasks import bundle_to_mesh

        began = time.perf_counter()
        bundle_to_mesh(bundle, out)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
