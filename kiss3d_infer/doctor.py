"""What this machine can do, and what is missing for what."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "diffusers",
    "transformers",
    "peft",
    "webdataset",
    "mlflow",
    "trimesh",
    "numba",
    "xatlas",
    "manifold3d",
)
_DEMO_MEMORY_GIB = 6.0
_RESERVED_GIB = 0.5
"""What firmware and kernel keep of a machine's memory."""
_DEMO_DISK_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        verdict: "ok", "note" (something optional is missing) or "lack" (something needed is).
        detail: what was found, and what to do if it is not ok.
    """

    subject: str
    verdict: Literal["ok", "note", "lack"]
    detail: str


def examine() -> Iterator[Finding]:
    """Look at the machine; nothing is changed, no device is allocated on."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield _processors()
    yield _memory()
    yield _disk()
    yield from (_package(name) for name in _PACKAGES)
    yield from _accelerators()
    yield _nvdiffrast()
    yield _furniture_fetcher()


def print_report(*, warm_up: bool) -> None:
    """Print the findings as a table; with `warm_up`, compile the CPU kernels first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if warm_up:
        from kiss3d_infer.reconstruct import warm_up as compile_kernels

        compile_kernels()
    colors = {"ok": "green", "note": "yellow", "lack": "red"}
    table = Table(show_header=False, box=None)
    for finding in examine():
        color = colors[finding.verdict]
        table.add_row(finding.subject, f"[{color}]{finding.verdict}[/]", escape(finding.detail))
    Console().print(table)


def _processors() -> Finding:
    usable = len(os.sched_getaffinity(0))
    if usable < 2:
        return Finding("cores", "note", f"{usable}; the demo trains with 2 workers and will crawl")
    return Finding("cores", "ok", str(usable))


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    if total < _DEMO_MEMORY_GIB - _RESERVED_GIB:
        lack = f"{total:.1f} GiB; the demo needs {_DEMO_MEMORY_GIB:.0f} GiB"
        return Finding("memory", "lack", lack)
    return Finding("memory", "ok", f"{total:.1f} GiB, {free:.1f} GiB available")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < _DEMO_DISK_GIB:
        return Finding("disk", "lack", f"{free:.1f} GiB free here; the demo needs {_DEMO_DISK_GIB}")
    return Finding("disk", "ok", f"{free:.0f} GiB free in the working directory")


def _package(name: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, "lack", "not installed; run: make setup")
    if name == "deepspeed" and version in ("0.18.5", "0.18.6"):
        return Finding(name, "lack", f"{version} slows LoRA training down; use 0.18.7 or newer")
    return Finding(name, "ok", version)


def _version(*distributions: str) -> str | None:
    """The version of the first of these that is installed."""
    for distribution in distributions:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return None


def _accelerators() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", "note", "none; the demo and reconstruction run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = card.total_memory / 2**30
        fits = "FLUX.1-dev fits in bf16" if memory > 34 else "too small for FLUX.1-dev in bf16"
        yield Finding(f"cuda:{index}", "ok", f"{card.name}, {memory:.0f} GiB; {fits}")


def _nvdiffrast() -> Finding:
    if importlib.util.find_spec("nvdiffrast") is None:
        absent = "not installed; CUDA rasterization needs: pip install -e '.[gpu]'"
        return Finding("nvdiffrast", "note", absent)
    if shutil.which("nvcc") is None:
        return Finding("nvdiffrast", "note", "installed, but nvcc to compile it is not on the PATH")
    return Finding("nvdiffrast", "ok", _version("diffrp-nvdiffrast", "nvdiffrast") or "installed")


def _furniture_fetcher() -> Finding:
    if shutil.which("apt-get") is None:
        return Finding("apt-get", "note", "absent; 'kiss3d data fetch furniture' needs it")
    return Finding("apt-get", "ok", "'kiss3d data fetch furniture' can fetch 820 models")
