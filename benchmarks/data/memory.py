"""Peak memory of render jobs of different lengths: does it stay flat?

    python -m benchmarks.data.memory [--counts 100,5000] [--tile 64]

Each job runs in a process of its own, whose memory and that of all its descendants is read every
half second. Writes results/render-memory-<date>.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.machine import describe, write_report

_JOB = """
import sys
from pathlib import Path
from kiss3d_train.data.render import render_source
render_source(sys.argv[1], Path(sys.argv[2]), tile=int(sys.argv[3]), num_workers=int(sys.argv[4]))
"""
_KINDS = {
    "kiss3d_train.data.rendering.child": "processes that render",
    "ray::": "Ray workers",
    "import sys": "driver",
}
_EVERY = 0.5
Peaks = dict[str, float]


def main() -> None:
    """Measure every length and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="100,5000")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    jobs = {
        int(count): _measured(int(count), args.tile, args.workers)
        for count in args.counts.split(",")
    }
    peaks = [job["peak_mib"]["all"] for job in jobs.values()]
    report = {
        "command": "python -m benchmarks.data.memory " + " ".join(sys.argv[1:]),
        "machine": describe(),
        "tile": args.tile,
        "workers": args.workers,
        "jobs": jobs,
        "last_over_first": peaks[-1] / peaks[0],
    }
    print(json.dumps(report, indent=1))
    write_report(report, "render-memory")


def _measured(count: int, tile: int, workers: int) -> dict[str, Peaks | float]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"toybox:{count}", folder, str(tile), str(workers)]
        began = time.perf_counter()
        job = subprocess.Popen([sys.executable, "-c", _JOB, *arguments])
        peaks: Peaks = {}
        while job.poll() is None:
            for kind, mib in _now(psutil.Process(job.pid)).items():
                peaks[kind] = max(peaks.get(kind, 0), mib)
            time.sleep(_EVERY)
        assert job.returncode == 0
        assert len(list(Path(folder).glob("*.json"))) == count
    return {"seconds": time.perf_counter() - began, "peak_mib": peaks}


def _now(job: psutil.Process) -> Peaks:
    """MiB that are resident now, by kind of process; shared pages count once for each."""
    found: Peaks = {"all": 0.0}
    for process in [job, *job.children(recursive=True)]:
        try:
            words, resident = " ".join(process.cmdline())[:200], process.memory_info().rss / 2**20
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        kind = next((name for mark, name in _KINDS.items() if mark in words), "Ray itself")
        found[kind] = found.get(kind, 0.0) + resident
        found["all"] += resident
    return found


if __name__ == "__main__":
    main()
