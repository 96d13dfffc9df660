"""What the card can do at the shapes of a step: copies, matrix products, attention."""

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.train.model import Size

_REPEATS = 20


def measure(size: Size, device: torch.device) -> dict[str, float]:
    """Bytes/s read and written by a copy, and FLOP/s of the largest linear and of attention."""
    tokens, width = size.image_tokens + size.text_tokens, size.width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    source = normal(16 * tokens, width)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / seconds(partial(target.copy_, source), device)
    x, weight = normal(tokens, width), normal(4 * width, width)
    product = 8 * tokens * width**2 / seconds(lambda: x @ weight.T, device)
    rates = {"copy_bytes_per_s": copy, "matmul_flop_per_s": product}
    return rates | _attention(size, device)


def _attention(size: Size, device: torch.device) -> dict[str, float]:
    """The kernel that the trainer picks for the device, and PyTorch's flash attention."""
    from kiss3d_train.fused.attention import kernel_for

    tokens = size.image_tokens + size.text_tokens
    shape = (1, tokens, size.heads, size.width // size.heads)
    q, k, v, gradient = (
        torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(4)
    )
    flop = 4 * tokens**2 * size.width
    kernel = kernel_for(q)
    out, sums = kernel.forward(q, k, v)
    forward = seconds(partial(kernel.forward, q, k, v), device)
    backward = seconds(partial(kernel.backward, gradient, q, k, v, out, sums), device)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    flash_forward = seconds(lambda: _flash(*inputs), device)
    flash_both = seconds(lambda: torch.autograd.grad(_flash(*inputs), inputs, gradient), device)
    return {
        "attention_ours_forward_flop_per_s": flop / forward,
        "attention_ours_backward_flop_per_s": 2.5 * flop / backward,
        "attention_flash_forward_flop_per_s": flop / flash_forward,
        "attention_flash_backward_flop_per_s": 2.5 * flop / (flash_both - flash_forward),
    }


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return scaled_dot_product_attention(q, k, v)


class Clock:
    """Seconds between marks, by the device, which nobody waits for until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._marks = device, list[Any]()
        self.mark()

    def mark(self) -> None:
        """Set a mark behind what the device has been given so far."""
        if self._device.type == "cpu":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def spans(self) -> list[float]:
        """Seconds from mark to mark."""
        if self._device.type == "cpu":
            return [b - a for a, b in pairwise(self._marks)]
        torch.cuda.synchronize(self._device)
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._marks)]


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call after a warm-up."""
    for _ in range(3):
        function()
    clock = Clock(device)
    for _ in range(_REPEATS):
        function()
        clock.mark()
    return median(clock.spans())
