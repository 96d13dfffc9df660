"""Seconds and memory of the commands that users type, on two cores."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiss3d_infer.flux.models import Drawing

_CORES = 2
_RUN = """
import atexit, pathlib, sys
from kiss3d_train.cli import main
memory = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: memory.write_text(pathlib.Path("/proc/self/status").read_text()))
main()
"""
"""The command `kiss3d`, leaving what the kernel says of its memory: what a parent is told of a
child counts the parent's own memory, of which the child begins as a copy."""


def commands_cost(base: Path, lora: Path, drawing: Drawing, prompts: Sequence[str]) -> list[Any]:
    """Run `kiss3d generate` and `kiss3d text-to-3d` for every prompt, after one to warm up.

    Returns:
        For every run: the command, the prompt, `seconds` from start to end, `peak_memory_bytes` of
        its process, and its exit code.
    """
    settings = {"--model": base, "--lora": lora, "--tile": drawing.tile, "--steps": drawing.steps}
    settings |= {"--guidance": drawing.guidance, "--cfg": drawing.cfg_scale}
    options = [str(part) for option in settings.items() for part in option]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, prompt in enumerate([prompts[0], *prompts]):
            for command, name in (("generate", "a.bundle.png"), ("text-to-3d", "a.glb")):
                extra = ["--force"] if command == "text-to-3d" else []
                out = str(Path(folder) / name)
                cost = kiss3d_cost(
                    [command, prompt, "-o", out, "--device", "cpu", *options, *extra]
                )
                if number:
                    rows.append({"command": command, "prompt": prompt, **cost})
    return rows


def kiss3d_cost(arguments: Sequence[str]) -> dict[str, float]:
    """Run the command `kiss3d` on two of this process's cores, to its end."""
    ours = os.sched_getaffinity(0)
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        command = [sys.executable, "-c", _RUN, str(status), *arguments]
        began = time.perf_counter()
        os.sched_setaffinity(0, sorted(ours)[:_CORES])  # a child inherits it
        try:
            process = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
        finally:
            os.sched_setaffinity(0, ours)
        seconds = time.perf_counter() - began
        peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
    return {
        "seconds": seconds,
        "peak_memory_bytes": int(peak[1]) * 1024 if peak else 0,
        "exit_code": process.returncode,
    }
