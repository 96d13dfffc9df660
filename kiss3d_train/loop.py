"""The training loop, read from top to bottom.

Nothing in it waits for the device between drains, but every few seconds for a request to stop.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_train.average import AVERAGE_KIND, WeightAverage
from kiss3d_train.breakdown import StepClock, step_breakdown
from kiss3d_train.checkpoint import Best
from kiss3d_train.config import TrainConfig
from kiss3d_train.curves import LossCurves
from kiss3d_train.engine import Batch, Engine, LossFn, State
from kiss3d_train.stopping import Lookout


class Sink(Protocol):
    """Where rank 0 sends what people look at; must return at once."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record values after `step` optimizer steps."""

    def show(self, line: str) -> None:
        """Show a line of progress."""


class Batches(Protocol):
    """This worker's share of every global batch."""

    num_skipped: int
    """Damaged samples that others took the place of."""

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """The batches to accumulate in optimizer step `step`, counted from 0."""

    def close(self) -> None:
        """End what reads ahead, if anything does."""


@dataclass
class Trainer:
    """What a run needs at every step, on every worker.

    Attributes:
        validate: returns held-out metrics, None without a validation split. Collective.
        save: writes a checkpoint for the number of steps done. Collective.
        sink: None on all ranks but 0.
        mfu_per_rate: share of the devices' peak that a sample per second takes; None if unknown.
        curves: what `loss_fn` leaves for a drain, if it does.
        average: of the weights, updated in every step.
        best: lowest held-out loss so far; a step that improves it is saved.
        request_samples: leaves the weights after so many steps to be drawn with. Collective.
    """

    config: TrainConfig
    engine: Engine
    stream: Batches
    loss_fn: LossFn
    validate: Callable[[], dict[str, float]] | None
    save: Callable[[int], None]
    sink: Sink | None
    mfu_per_rate: float | None = None
    curves: LossCurves | None = None
    average: WeightAverage | None = None
    best: Best | None = None
    request_samples: Callable[[int], None] | None = None
    _pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _drained_at: float = field(default_factory=time.perf_counter)
    _state: State | None = None

    def __post_init__(self) -> None:
        self._clock = StepClock(self.engine.device)
        self._lookout = Lookout(self.config.run.dir, self.engine.device)

    def run(self, first_step: int) -> tuple[int, list[float]]:
        """Train to the end or until asked to stop; returns the steps done and each one's loss."""
        config, step = self.config, first_step
        losses: list[float] = []
        self._drained_at = time.perf_counter()
        while step < config.run.steps:
            self.train_step(step)
            step += 1
            is_last = step == config.run.steps
            validates = self.validate and (is_last or _due(step, config.validation.every))
            saves = is_last or _due(step, config.checkpoint.every)
            draws = self.request_samples and (is_last or _due(step, config.samples.every))
            is_due = bool(validates or saves or draws or _due(step, config.run.log_every))
            stop = self._lookout.sees_request(look_now=is_due)
            if stop or is_due:
                losses += self.drain(step)  # so that no step's time holds what follows
            if self.validate and validates:
                saves |= self._hold_out(self.validate(), step)
                self._drained_at = time.perf_counter()
            if self.request_samples and draws:
                self.request_samples(step)  # before the checkpoint, which would end its repetition
                self._drained_at = time.perf_counter()
            if stop or saves:
                self.save(step)
                self._drained_at = time.perf_counter()
            if stop:
                break
        return step, losses

    def train_step(self, step: int) -> None:
        """One optimizer step: this worker's share of the global batch, then all workers' update."""
        self._state = None
        clock = self._clock
        with clock.on_host("data_wait"):
            batches = self.stream.micro_batches(step)
        with clock.on_device("forward_backward"):
            loss = self.engine.forward_backward(clock.timed("forward", self.loss_fn), batches)
        with clock.on_device("reduce_optimizer"):
            grad_norm = self.engine.step(learning_rate(self.config, step))
            if self.average:
                self.average.update(step)
        self._pending.append((loss, grad_norm))

    def drain(self, step: int) -> list[float]:
        """Fetch, average and log what the steps since the last drain left on the device.

        Returns the mean loss of each of these steps. Collective.

        Raises:
            InputError: a loss or a gradient is not finite; all workers raise it.
        """
        num = len(self._pending)
        losses = torch.stack([loss for loss, _ in self._pending])
        norms = torch.stack([norm.to(losses.device) for _, norm in self._pending])
        skips = losses.new_tensor([float(self.stream.num_skipped)])
        parts = self.curves.take() if self.curves else losses.new_zeros(0)
        times = self._clock.take(num).to(losses)
        summed = torch.cat([losses, norms, skips, parts, times])
        dist.all_reduce(summed)
        skipped, *sums = summed[2 * num :].tolist()
        curves, times_by_rank = sums[: len(parts)], sums[len(parts) :]
        values = (summed[: 2 * num] / dist.get_world_size()).tolist()
        means, grad_norms = values[:num], values[num:]
        seconds = (time.perf_counter() - self._drained_at) / num
        self._drained_at = time.perf_counter()
        self._pending.clear()
        for offset, (loss, norm) in enumerate(zip(means, grad_norms, strict=True)):
            done = step - num + offset + 1
            lr = learning_rate(self.config, done - 1)
            self.log({"train/loss": loss, "train/grad_norm": norm, "train/lr": lr}, done)
            _require_finite(loss, norm, done)
        if self.curves:
            self.log(self.curves.metrics(curves), step)
        rate = self.config.data.global_batch / seconds
        self.log({"perf/step_s": seconds, "perf/samples_per_s": rate}, step)
        self.log(step_breakdown(times_by_rank), step)
        if self.config.data.on_corrupt == "skip":
            self.log({"data/skipped_samples": skipped}, step)
        mfu = rate * self.mfu_per_rate if self.mfu_per_rate else None
        if mfu:
            self.log({"perf/mfu": mfu}, step)
        if self.sink:
            self.sink.show(_progress_line(self.config, step, sum(means) / num, seconds, mfu))
        return means

    def state(self) -> State:
        """The whole training state on rank 0, with the average if one is kept. Collective.

        It is gathered once, for all that is written of it before the next step.
        """
        if self._state is None:
            self._state = self.engine.gather()
            if self.average and dist.get_rank() == 0:
                self._state[AVERAGE_KIND] = self.average.on_cpu()
        return self._state

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Send metrics on rank 0."""
        if self.sink:
            self.sink.log_metrics(metrics, step)

    def _hold_out(self, metrics: dict[str, float], step: int) -> bool:
        """Log held-out metrics; whether they are the best so far, the same on all workers."""
        self.log(metrics, step)
        loss = metrics.get("val/loss", math.nan)
        if not loss < (self.best.loss if self.best else math.inf):  # so that NaN is never the best
            return False
        self.best = Best(step, loss)
        self.log({"val/best_loss": loss}, step)
        return True


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0: linear warm-up, then the schedule."""
    optimizer = config.optimizer
    if step < optimizer.warmup_steps:
        return optimizer.lr * (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    remaining = max(1, config.run.steps - optimizer.warmup_steps)
    progress = (step - optimizer.warmup_steps) / remaining
    return optimizer.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _require_finite(loss: float, grad_norm: float, step: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise InputError(
            f"training diverged at step {step}: loss {loss:g}, gradient norm {grad_norm:g}",
            where="optimizer.lr",
            fix="the same command with a lower one goes on from the last checkpoint",
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _progress_line(
    config: TrainConfig, step: int, loss: float, seconds: float, mfu: float | None
) -> str:
    left = (config.run.steps - step) * seconds
    rate = config.data.global_batch / seconds
    utilization = f"MFU {mfu:.0%}  " if mfu else ""
    return (
        f"step {step}/{config.run.steps}  loss {loss:.4f}  {seconds:.2f} s/step  "
        f"{rate:.1f} samples/s  {utilization}{_duration(left)} left"
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
