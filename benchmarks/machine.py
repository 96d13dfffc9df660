"""What a measurement was made on, and the file that it is written to."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

import kiss3d_infer
from kiss3d_infer.files import writing

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numba", "manifold3d", "xatlas")


def describe(*packages: str) -> dict[str, Any]:
    """The processor, the cores, the GPU if there is one, the versions and the day.

    Args:
        packages: whose versions are told beside those that every measurement rests on.
    """
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": names[0].split(": ")[1] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        **(_gpu() if torch.cuda.is_available() else {}),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        **{name: _version(name) for name in (*_PACKAGES, *packages)},
        "kiss3d": kiss3d_infer.__version__,
    }


def write_report(report: Mapping[str, Any], kind: str, out: Path | None = None) -> Path:
    """Leave a whole file, however many measurements there are yet.

    Args:
        report: what goes into the file.
        kind: of the measurement; the file is `results/<kind>-<day>.json`.
        out: another file.
    """
    path = out or RESULTS / f"{kind}-{date.today().isoformat()}.json"
    with writing(path) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return path


def short_name(device: str) -> str:
    """`cpu`, or the GPU's model as in `h100`, for the names of files."""
    if torch.device(device).type == "cpu":
        return "cpu"
    return torch.cuda.get_device_name(device).removeprefix("NVIDIA ").split()[0].lower()


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_gib": properties.total_memory / 2**30,
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
