"""Where the time of a step goes, by parts and by workers, without a wait in any step."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kiss3d_train.engine import LossFn
from kiss3d_train.objective import Batch

PARTS = ("data_wait", "forward", "forward_backward", "reduce_optimizer")


class StepClock:
    """Seconds of this worker's steps since the last `take`, by part.

    On a GPU its parts are measured between events in the stream of its work, which are read when
    that work has ended anyway; a part's host time would only say how fast work was queued.
    """

    def __init__(self, device: torch.device) -> None:
        self._uses_events = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def on_host(self, part: str) -> Iterator[None]:
        """Measure what this process itself does, or waits for, in the block."""
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    @contextmanager
    def on_device(self, part: str) -> Iterator[None]:
        """Measure the work of the block where it is done."""
        if not self._uses_events:
            with self.on_host(part):
                yield
            return
        began, ended = _event(), _event()
        began.record()
        yield
        ended.record()
        self._events.append((part, began, ended))

    def timed(self, part: str, loss_fn: LossFn) -> LossFn:
        """The same loss, measured as `part`."""

        def measured(model: nn.Module, batch: Batch) -> Tensor:
            with self.on_device(part):
                return loss_fn(model, batch)

        return measured

    def take(self, num_steps: int) -> Tensor:
        """Seconds per step and start anew: [W * P], zero but for this worker's own P parts.

        Added up over all workers, they are what `step_breakdown` takes. Waits for the device.
        """
        for part, began, ended in self._events:
            ended.synchronize()
            self._seconds[part] += began.elapsed_time(ended) / 1000
        table_WP = torch.zeros(dist.get_world_size(), len(PARTS))
        table_WP[dist.get_rank()] = torch.tensor(
            [self._seconds[part] / num_steps for part in PARTS]
        )
        self._seconds.clear()
        self._events.clear()
        return table_WP.flatten()


def step_breakdown(times: Sequence[float]) -> dict[str, float]:
    """Metrics of a window.

    Args:
        times: seconds per step by worker and part, [W * P].

    Returns:
        Means over workers: `perf/data_wait_s`; `perf/forward_s`; `perf/backward_s`, with what of
        the reduction overlaps with it; `perf/forward_backward_s`, the two together;
        `perf/reduce_optimizer_s`, the rest of the reduction, clipping and the update.
        `perf/straggler`: the slowest worker's forward passes over the mean; in all else a fast
        worker waits for the slow ones, which hides who is slow. Of several workers also
        `perf/slowest_rank`, and `perf/straggler/rank_<K>`: each one's forward passes over the mean.
    """
    table_WP = torch.tensor(times, dtype=torch.float64).reshape(-1, len(PARTS))
    means = dict(zip(PARTS, table_WP.mean(dim=0).tolist(), strict=True))
    metrics = {f"perf/{part}_s": mean for part, mean in means.items()}
    metrics["perf/backward_s"] = means["forward_backward"] - means["forward"]
    return metrics | _stragglers(table_WP[:, PARTS.index("forward")])


def _stragglers(forward_W: Tensor) -> dict[str, float]:
    if forward_W.mean() <= 0:
        return {}
    scores = (forward_W / forward_W.mean()).tolist()
    metrics = {"perf/straggler": max(scores)}
    if len(scores) > 1:
        metrics["perf/slowest_rank"] = float(scores.index(max(scores)))
        metrics |= {f"perf/straggler/rank_{rank}": score for rank, score in enumerate(scores)}
    return metrics


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
