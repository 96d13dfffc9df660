"""A small model's passes recorded as CUDA graphs, as launching its kernels takes longest.

A step of kiss3d-mini launches thousands of kernels of some microseconds each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn


def record_passes(model: Any) -> None:
    """Let a module on a GPU, called by keywords, replay its forward and its backward pass.

    They are recorded when gradients are first asked for, after the compilation of its blocks if
    they are compiled. Inputs of other shapes, and calls without gradients, are computed as before.
    A gradient lies where it was recorded until the next backward pass overwrites it, so a step may
    only have one.
    """
    plain, recorded = model.forward, dict[object, Callable[..., Any]]()

    def forward(**inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(**inputs)
        tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
        key = tuple((name, x.shape, x.dtype, x.requires_grad) for name, x in tensors.items())
        if not recorded:  # of the first shapes alone; each recording keeps its memory
            rest = {name: x for name, x in inputs.items() if name not in tensors}
            one_pass = _Pass(model, plain, tuple(tensors), rest)
            recorded[key] = _recorded(one_pass, tuple(tensors.values()))
        return recorded[key](*tensors.values()) if key in recorded else plain(**inputs)

    model.forward = forward


class _Pass(nn.Module):
    """A call of the model that takes its tensors by position, as graphs need it."""

    def __init__(
        self,
        model: nn.Module,
        plain: Callable[..., Any],
        names: tuple[str, ...],
        rest: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model  # whose weights are this module's, too
        self._plain, self._names, self._rest = plain, names, rest

    def forward(self, *tensors: Tensor) -> Any:
        return self._plain(**dict(zip(self._names, tensors, strict=True)), **self._rest)


def _recorded(one_pass: _Pass, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    samples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    # NCCL asks after its work from a thread of its own, which would end a recording that forbids
    # such calls to all threads; and no argument of what records can allow them.
    capture = partial(torch.cuda.graph, capture_error_mode="thread_local")
    # A cached cast of a weight would not be part of the recording.
    casts = torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)
    with patch.object(torch.cuda, "graph", capture), casts:
        result: Callable[..., Any] = torch.cuda.make_graphed_callables(one_pass, samples)
    return result
