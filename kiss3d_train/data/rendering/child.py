"""The program that `RenderProcess` runs: a request per line from stdin, an answer per line back."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from pydantic import TypeAdapter

from kiss3d_infer.errors import InputError
from kiss3d_train.data.rendering.sample import RenderRequest, render_item

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until the parent ends.

    Arguments: the file descriptor to answer to, the parent's process id, the device.
    """
    descriptor, parent, device = sys.argv[1:]
    _end_with(int(parent))
    requests: TypeAdapter[RenderRequest] = TypeAdapter(RenderRequest)
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as answers:
        _say(answers, _done(_warm_up, device))
        for line in sys.stdin:
            request = requests.validate_json(line)
            _say(answers, _done(render_item, request.job, request.item))


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent: one that hangs would not notice."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent has ended")


def _done(work: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    try:
        return {"done": work(*arguments)}
    except InputError as error:
        where = None if error.where is None else str(error.where)
        return {"wrong_input": {"what": error.what, "where": where, "fix": error.fix}}
    except Exception as error:
        return {"failure": f"{type(error).__name__}: {error}"}


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _warm_up(device: str) -> None:
    """Load and compile what rendering takes, so that no mesh's time is spent on it."""
    import torch

    from kiss3d_infer.scene.mesh import Mesh
    from kiss3d_infer.scene.render import render_bundle

    triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]], dtype=torch.int32))
    render_bundle(triangle, tile=16, device=device)


if __name__ == "__main__":
    main()
