"""How the render job grows with its Ray workers: samples per second for 1, 2, 4, ... of them.

    python -m benchmarks.data.scaling [--workers 1,4,16] [--per-worker 48] [--tile 512] [--out FILE]

Every job renders, validates and writes whole samples of the toybox, as many for each worker, so
that all take about as long. Its processes are started by a small job before the clock runs. The
file is written after each job.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe, write_report
from kiss3d_train.data.render import render_source
from kiss3d_train.ray_session import ray_session


def main() -> None:
    """Measure and write the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--workers", default="1,2", type=lambda text: list(map(int, text.split(",")))
    )
    parser.add_argument("--per-worker", type=int, default=48)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    report = {
        "command": "python -m benchmarks.data.scaling " + " ".join(sys.argv[1:]),
        "machine": describe(),
        "tile": chosen.tile,
        "load": os.getloadavg()[0],
        "jobs": [],
    }
    with ray_session(max(chosen.workers)):
        # Ray chooses which of its processes do a job: each has to have drawn a sample before.
        samples_per_second(max(chosen.workers), 1, 16)
        for workers in chosen.workers:
            rate = samples_per_second(workers, chosen.per_worker, chosen.tile)
            jobs = report["jobs"]
            jobs.append({"workers": workers, "samples_per_s": rate})
            jobs[-1]["times_one"] = rate / jobs[0]["samples_per_s"] * jobs[0]["workers"]
            print(json.dumps(jobs[-1]), flush=True)
            write_report(report, "render-scaling", chosen.out)


def samples_per_second(workers: int, share: int, tile: int) -> float:
    """Of a whole job."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        # The toybox's classes take turns: any run of them is as heavy as any other.
        made = render_source(
            f"toybox:{workers * share}", Path(folder), tile=tile, num_workers=workers
        )
        return made.rendered / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
