"""How the render job grows with its Ray workers: samples per second for 1, 2, 4, ... of them.

    python -m benchmarks.data.scaling [--workers 1,2,4,8,16] [--per-worker 12] [--out FILE]

Every job renders, validates and writes whole samples of the toybox, each worker's share the same.
Its processes are started by a small job before the clock runs.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.machine import RESULTS, describe
from kiss3d_infer.files import writing
from kiss3d_train.data.render import render_source
from kiss3d_train.ray_session import ray_session


def main() -> None:
    """Measure and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workers", default="1,2", type=lambda text: list(map(int, text.split(",")))
    )
    parser.add_argument("--per-worker", type=int, default=12)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    machine = describe()
    out = chosen.out or RESULTS / f"render-scaling-{machine['date']}.json"
    report = {
        "command": "python -m benchmarks.data.scaling",
        "machine": machine,
        "tile": chosen.tile,
        "load": os.getloadavg()[0],
        "jobs": [],
    }
    with ray_session(max(chosen.workers)):
        for workers in chosen.workers:
            rate = samples_per_second(workers, chosen.per_worker, chosen.tile)
            jobs = report["jobs"]
            jobs.append({"workers": workers, "samples_per_s": rate})
            jobs[-1]["times_one"] = rate / jobs[0]["samples_per_s"] * jobs[0]["workers"]
            print(json.dumps(jobs[-1]), flush=True)
            with writing(out) as aside:
                aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def samples_per_second(workers: int, share: int, tile: int) -> float:
    """Of a job whose workers have all drawn a sample before."""
    with tempfile.TemporaryDirectory() as folder:
        render_source(
            f"toybox:{workers}?seed=1", Path(folder) / "first", tile=16, num_workers=workers
        )
        began = time.perf_counter()
        # The toybox's classes take turns: any run of them is as heavy as any other.
        made = render_source(
            f"toybox:{workers * share}", Path(folder) / "second", tile=tile, num_workers=workers
        )
        return made.rendered / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
