"""The driver's side of the drawings: one round at a time, in a process of its own over Ray."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

from kiss3d_infer.errors import InputError
from kiss3d_infer.tracking import Tracker
from kiss3d_train.config import SamplesSection, TrainConfig
from kiss3d_train.ray_session import unwrapped
from kiss3d_train.samples.rounds import Round, waiting_rounds

_LONGEST_WAIT_S = 3600.0
"""How long the last round may wait, and draw, after the training has ended."""
_POLL_SECONDS = 0.5


class InProgress(Protocol):
    """A round that is being drawn elsewhere."""

    def metrics(self) -> dict[str, float] | None:
        """What it came to, None while it goes on; raises what ended it."""

    def kill(self) -> None:
        """End it, wherever it is."""


class RayDrawing:
    """A round that is drawn in a process of its own, on any machine of the cluster with room."""

    def __init__(self, config: TrainConfig, what: Round) -> None:
        import ray

        section = config.samples
        self._actor = ray.remote(num_cpus=section.cpus, num_gpus=section.gpus)(_Painter).remote()
        self._answer = self._actor.draw.remote(config, what)

    def metrics(self) -> dict[str, float] | None:
        """See `InProgress.metrics`."""
        import ray

        if not ray.wait([self._answer], timeout=0)[0]:
            return None
        with unwrapped():
            metrics: dict[str, float] = ray.get(self._answer)
            return metrics

    def kill(self) -> None:
        """See `InProgress.kill`."""
        import ray

        with suppress(Exception):
            ray.kill(self._actor)  # a cancelled task would go on


class _Painter:
    """The process that draws."""

    def draw(self, config: TrainConfig, what: Round) -> dict[str, float]:
        import torch

        from kiss3d_train.logs import redirect_output
        from kiss3d_train.samples.drawing import draw_round

        redirect_output(config.run.dir, "samples")
        os.nice(10)  # where it shares cores with the training, it gives way
        torch.set_num_threads(max(1, int(config.samples.cpus)))
        return draw_round(config, what)


class Easel:
    """Has the waiting rounds of a run drawn, one at a time; whatever goes wrong is a warning.

    No method waits for a drawing but `finish`.
    """

    def __init__(
        self,
        config: TrainConfig,
        tracker: Tracker,
        begin: Callable[[TrainConfig, Round], InProgress] = RayDrawing,
    ) -> None:
        self._config, self._tracker, self._begin = config, tracker, begin
        self._current: tuple[InProgress, Round] | None = None
        self._is_open = config.samples.num_drawings > 0

    def poll(self) -> bool:
        """Take in what was drawn and begin the newest waiting round; whether one is being drawn."""
        if not self._is_open:
            return False
        try:
            if self._current is not None:
                self._take_in(*self._current)
            if self._current is None and (rounds := waiting_rounds(self._config.run.dir)):
                *late, newest = rounds
                for skipped in late:
                    _say(f"the samples of step {skipped.step} are left out, newer ones are due")
                    skipped.end()
                self._current = self._begin(self._config, newest), newest
        except Exception as error:
            _say(f"warning: samples are no longer drawn: {error}")
            self.close()
            self._is_open = False
        return self._current is not None

    def finish(self, is_given_up: Callable[[], bool]) -> None:
        """Wait until nothing is left to be drawn, or nobody wants to."""
        if is_given_up() or not self.poll():
            return
        _say("drawing the last samples; Ctrl-C leaves them out")
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while self.poll():
            if is_given_up() or time.monotonic() > deadline:
                _say("warning: the last samples are left out")
                return
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End a drawing that is under way; its round stays waiting for the run's next start."""
        if self._current is not None:
            self._current[0].kill()
            self._current = None

    def _take_in(self, drawing: InProgress, what: Round) -> None:
        """Send a finished round to MLflow."""
        try:
            metrics = drawing.metrics()
            if metrics is None:
                return
            self._tracker.log_metrics(metrics, what.step)
            self._tracker.log_artifact(what.sheet, "samples")
            self._tracker.log_artifact(what.record, "samples")
            _say(f"samples of step {what.step}: {what.sheet}")
        except Exception as error:
            _say(f"warning: the samples of step {what.step} failed: {error}")
        what.end()  # one that failed would fail again
        self.close()


@contextmanager
def drawing_beside(config: TrainConfig, tracker: Tracker) -> Iterator[Easel]:
    """Draw samples for the length of a block, if the recipe asks for any."""
    easel = Easel(config, tracker)
    try:
        yield easel
    finally:
        easel.close()


def cpus_of(samples: SamplesSection) -> int:
    """Whole cores that a round takes beside the training."""
    return math.ceil(samples.cpus) if samples.num_drawings else 0


def check_room(samples: SamplesSection, available: Mapping[str, float]) -> None:
    """Refuse drawings for which even the empty cluster has no room.

    Raises:
        InputError: it has fewer cores or GPUs than a round reserves.
    """
    if not samples.num_drawings:
        return
    for key, kind, needed in (("cpus", "CPU", samples.cpus), ("gpus", "GPU", samples.gpus)):
        if needed > available.get(kind, 0):
            raise InputError(
                f"a round of samples needs {needed:g} {kind}s, the cluster has "
                f"{available.get(kind, 0):g}",
                where=f"samples.{key}",
                fix="lower it, or draw none with samples.held_out=0 and samples.prompts=[]",
            )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
