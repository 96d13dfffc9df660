"""What the two kinds of training of whole parts have in common."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from kiss3d_train.engine import Engine
from kiss3d_train.loop import Batches


class Task(Protocol):
    """Networks to train, and the data for it.

    Attributes:
        model: holds what trains; one forward pass of it is all that a loss needs.
        stream: this worker's batches.
        has_validation: whether there is held-out data to be measured on.
    """

    model: nn.Module
    stream: Batches
    has_validation: bool

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Losses [B] of a batch by `model`, or by an engine's wrapping of it."""

    def validate(self, engine: Engine) -> dict[str, float]:
        """Held-out metrics. Collective."""

    def export(self, weights: Mapping[str, Tensor], out: Path) -> None:
        """Write the base with these weights, by the names of the model's parameters."""
