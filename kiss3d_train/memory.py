"""What a training step takes of a device's memory, and what its blocks may therefore keep."""

import os
import subprocess
from dataclasses import dataclass
from typing import Literal

import torch

from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig

Keep = Literal["products", "attention", "inputs"]
"""What a block keeps for its backward pass beside its inputs; the rest is computed again.
products: of all matrices and of attention, so that only elementwise work is repeated, whose cost
was not to be seen in a step on an H200; attention: its result alone; inputs: nothing more."""

GIB = 2**30
ASSUMED_BUDGET_GIB = 77.0
"""What an 80 GB card leaves, for a plan made without a card."""
MARGIN_GIB = 1.5
"""Of a device's free memory, for what the allocator cannot join and for the libraries' own."""
_UNUSABLE_GIB = 2.6
"""Of a whole card, that margin and what CUDA takes itself: 77 of an H100's 79.6 GiB remain."""
KEPT = {"products": (10, 9), "attention": (2, 2), "inputs": (1, 1)}
"""Tensors of tokens x width that a double and a single block keep: their inputs (1), the result of
attention (1), and of the matrices q, k, v (3), the MLP's first (4) and, in a double block, the
projection after attention (1)."""
_LEVELS: tuple[Keep, ...] = ("attention", "products")
_WORKING = 30
"""Such tensors that come and go, at the peak: the backward pass of one block."""
_STOCK_DOUBLE, _STOCK_SINGLE = 19, 17
"""Such tensors that diffusers' own blocks keep with an adapter on every linear (ZeRO-3)."""


def in_bytes(number: float) -> str:
    """A number of bytes, in GiB or MiB."""
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.1f} MiB"


@dataclass(frozen=True)
class Footprint:
    """Memory of one worker, in bytes.

    Attributes:
        weights: by item: base, adapter, gradients, optimizer, and the average if one is kept.
        tensor: of one value per token and channel of width, in the blocks' precision.
        num_double, num_single: blocks.
        is_fused: the blocks are ours, which keep what they are told.
    """

    weights: dict[str, float]
    tensor: float
    num_double: int
    num_single: int
    is_fused: bool

    def activations(self, keeps: tuple[Keep, ...]) -> float:
        """At the peak of a step; the first `num_double` of `keeps` are those of double blocks."""
        if not self.is_fused:
            return self._stock_activations(keeps)
        kinds = [0] * self.num_double + [1] * self.num_single
        kept = sum(KEPT[keep][kind] for keep, kind in zip(keeps, kinds, strict=True))
        return (kept + _WORKING) * self.tensor

    def total(self, keeps: tuple[Keep, ...]) -> float:
        """All of it, at the peak."""
        return sum(self.weights.values()) + self.activations(keeps)

    def everywhere(self, keep: Keep) -> tuple[Keep, ...]:
        """The same for every block."""
        return (keep,) * (self.num_double + self.num_single)

    def keeps(self, config: TrainConfig, budget: float | None) -> tuple[Keep, ...]:
        """What each block keeps for its backward pass: as much as the budget (bytes) allows.

        First every block keeps the result of attention, which saves most time per byte, then those
        of its matrices; in each round the last block comes first.

        Raises:
            InputError: not even the blocks' inputs fit.
        """
        least, most = self.everywhere("inputs"), self.everywhere("products")
        wanted = config.base.gradient_checkpointing
        if wanted is True or (wanted == "auto" and not self.is_fused):
            return least
        if wanted is False or budget is None:
            return most
        if self.total(least) > budget:
            raise _too_large(self.total(least), budget)
        keeps = least
        for level in _LEVELS:
            for number in reversed(range(len(keeps))):
                raised = (*keeps[:number], level, *keeps[number + 1 :])
                if self.total(raised) > budget:
                    return keeps
                keeps = raised
        return keeps

    def _stock_activations(self, keeps: tuple[Keep, ...]) -> float:
        if keeps[0] == "inputs":
            one_block = max(_STOCK_DOUBLE, _STOCK_SINGLE)
            return (self.num_double + self.num_single + one_block) * self.tensor
        kept = self.num_double * _STOCK_DOUBLE + self.num_single * _STOCK_SINGLE
        return kept * self.tensor


@dataclass(frozen=True)
class Room:
    """Device memory that a plan counts on for each worker.

    Attributes:
        origin: where the figure comes from, for people.
    """

    gib: float
    origin: str


def room_of(config: TrainConfig) -> Room | None:
    """What a worker may use, before there is one; None on a CPU.

    The card is this machine's if Ray will start here, or else one of 80 GB. Asking for it takes
    nothing of it.
    """
    budget = config.engine.memory_budget_gib
    if budget != "auto":
        return Room(budget, "as engine.memory_budget_gib says")
    if not config.scaling.use_gpu:
        return None
    card = None if os.environ.get("RAY_ADDRESS") else _smallest_card()
    if card is None:
        return Room(ASSUMED_BUDGET_GIB, "assumed as what one of 80 GB leaves")
    gib, name = card
    return Room(gib - _UNUSABLE_GIB, f"what the {name} here leaves")


def _smallest_card() -> tuple[float, str] | None:
    """GiB and name, without a CUDA context; None where there is no card, or none of NVIDIA's."""
    command = ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        cards = [line.split(", ", 1) for line in told.stdout.splitlines()]
        return min((float(mib) / 1024, name) for mib, name in cards)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def budget_of(config: TrainConfig, device: torch.device) -> float | None:
    """Bytes that a worker may use, counted before its model is on the device; None on a CPU."""
    if config.engine.memory_budget_gib != "auto":
        return config.engine.memory_budget_gib * GIB
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free - MARGIN_GIB * GIB


def _too_large(needed: float, budget: float) -> InputError:
    return InputError(
        f"a step needs about {needed / GIB:.1f} GiB, of which there are {budget / GIB:.1f}",
        where="engine.memory_budget_gib",
        fix="set base.quantize=int8, a smaller scaling.micro_batch or adapter.rank, or "
        "engine.zero_stage=3 on several GPUs; or engine.memory_budget_gib to that of another card",
    )
