"""What every kind of batch can do: its tensors move, and are cut, together."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorBatch:
    """Samples as tensors whose first dimension counts them; what is no tensor belongs to all."""

    def to(self, device: torch.device) -> Self:
        """The batch on a device; copies from pinned memory do not wait."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which copies to a GPU run beside its work."""
        return self._mapped(Tensor.pin_memory)

    def split(self, size: int) -> list[Self]:
        """The batch in pieces of `size` samples."""
        count = len(next(iter(self._tensors().values())))
        starts = range(0, count, size)
        return [self._mapped(itemgetter(slice(start, start + size))) for start in starts]

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Self:
        changes: dict[str, Any] = {name: function(t) for name, t in self._tensors().items()}
        return replace(self, **changes)

    def _tensors(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}
