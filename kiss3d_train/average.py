"""The exponential moving average of the adapter's weights: smoother than the last step's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from kiss3d_train.engine import on_cpu

AVERAGE_KIND = "ema"
"""Its key in a training state, beside `engine.KINDS`."""


class WeightAverage:
    """The float32 average of an adapter, on its device.

    All workers hold the same whole parameters (which is why ZeRO-3 is refused), and so the same
    average; nothing here is collective or waits for the device.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        found: Mapping[str, Tensor] | None,
    ) -> None:
        """Go on from the average of a checkpoint, or begin with the weights as they are."""
        self._parameters, self._decay = parameters, decay
        self._average = {name: p.detach().clone() for name, p in parameters.items()}
        if found is not None:
            for name, tensor in self._average.items():
                tensor.copy_(found[name])

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 0.

        The decay grows as (1 + step) / (10 + step) up to its value, as in TensorFlow's
        ExponentialMovingAverage: a short run would otherwise average its beginning.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, weights = list(self._average.values()), list(self._parameters.values())
        get_ema_multi_avg_fn(decay)(averages, weights, step)  # type: ignore[no-untyped-call]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model compute with the average; its weights are back afterwards, bit for bit."""
        weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._write(self._average)
        try:
            yield
        finally:
            self._write(weights)

    def on_cpu(self) -> dict[str, Tensor]:
        """A copy by parameter name."""
        return {name: on_cpu(tensor) for name, tensor in self._average.items()}

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
