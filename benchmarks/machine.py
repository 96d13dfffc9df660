"""What a measurement was made on."""

import importlib.metadata
import os
import platform
from datetime import date
from pathlib import Path

import torch

import kiss3d_infer

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numba", "manifold3d", "xatlas")


def describe() -> dict[str, str | int]:
    """The processor, the cores, the GPU if there is one, the versions and the day."""
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": names[0].split(": ")[1] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        **gpu,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        **versions,
        "kiss3d": kiss3d_infer.__version__,
    }
