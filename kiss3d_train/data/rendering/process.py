"""A process of its own that renders meshes, watched for time and memory.

A mesh may hang a parser, take all memory or crash a library. What renders is therefore a child of
the Ray worker, kept for many meshes, and ended when one goes too far: nothing else suffers. This
side stays light, for there is one for every child: no torch, no numpy.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

from kiss3d_infer.errors import InputError
from kiss3d_train.data.quarantine import Record
from kiss3d_train.data.rendering.record import record_of

_START_SECONDS = 600.0
"""How long a child may take to be ready; the first on a machine compiles the rasterizer."""
_LOOK_SECONDS = 0.05


def render_watched(request: str) -> Record | None:
    """Have a child render one mesh within its limits; a child that dies of it gets one more try.

    Args:
        request: `RenderRequest` as JSON.

    Returns:
        None, or a record of the quarantine.

    Raises:
        InputError: the sample cannot be written.
        RuntimeError: the program is at fault.
    """
    asked = json.loads(request)
    limits, device = asked["job"]["limits"], asked["job"]["device"]
    signals = []
    for _ in range(2):
        try:
            return _child(device).ask(request, limits["seconds"], limits["memory_gib"])
        except _TooMuch as error:
            return record_of(asked["item"], str(error))
        except _Died as error:
            signals.append(str(error))
    return record_of(asked["item"], f"it crashed twice ({', then '.join(signals)})")


class _TooMuch(Exception):
    """The child took more than it may, and was ended."""


class _Died(Exception):
    """The child ended by itself."""


_children: dict[tuple[str, str | None], RenderProcess] = {}


def _child(device: str) -> RenderProcess:
    key = device, os.environ.get("CUDA_VISIBLE_DEVICES")  # Ray sets it, for each task anew
    if key not in _children or not _children[key].is_alive:
        _children[key] = _started(device)
    return _children[key]


def _started(device: str) -> RenderProcess:
    try:
        return RenderProcess(device)
    except _Died:
        pass  # of something else: it has done nothing yet
    try:
        return RenderProcess(device)
    except (_Died, _TooMuch) as error:
        raise RuntimeError(f"the process that renders does not start: {error}") from error


class RenderProcess:
    """A child that renders on a device; it ends with its parent, even one that is killed."""

    def __init__(self, device: str) -> None:
        self._answers, answers = os.pipe()
        here = "kiss3d_train.data.rendering.child"
        self._process = subprocess.Popen(
            [sys.executable, "-m", here, str(answers), str(os.getpid()), device],
            stdin=subprocess.PIPE,
            pass_fds=[answers],
            start_new_session=True,  # Ctrl-C in a terminal is the parent's affair
        )
        os.close(answers)
        self._unread = b""
        self._answer(_START_SECONDS, float("inf"))

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, request: str, seconds: float, memory_gib: float) -> Record | None:
        """Have one mesh rendered; see `render_watched`."""
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._raise_died()
        record: Record | None = self._answer(seconds, memory_gib)
        return record

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _answer(self, seconds: float, memory_gib: float) -> Any:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if select.select([self._answers], [], [], _LOOK_SECONDS)[0]:
                piece = os.read(self._answers, 1 << 16)
                if not piece:
                    self._raise_died()
                self._unread += piece
            elif time.monotonic() > deadline:
                self.close()
                raise _TooMuch(f"it took longer than {seconds:g} s")
            elif self._memory() > memory_gib * 2**30:
                self.close()
                raise _TooMuch(f"it took more than {memory_gib:g} GiB of memory")
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if wrong := answer.get("wrong_input"):
            raise InputError(wrong["what"], where=wrong["where"], fix=wrong["fix"])
        if failure := answer.get("failure"):
            raise RuntimeError(failure)
        return answer["done"]

    def _memory(self) -> int:
        """Bytes that are its own: libraries, of which CUDA's are large, are shared."""
        try:
            memory = psutil.Process(self.pid).memory_info()
        except psutil.NoSuchProcess:
            return 0
        return int(memory.rss - memory.shared)

    def _raise_died(self) -> None:
        code = self._process.wait()
        raise _Died(signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def __del__(self) -> None:
        os.close(self._answers)
