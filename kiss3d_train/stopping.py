"""Whether someone asked the run to stop: the same answer on all workers, at the same step."""

import time
from pathlib import Path

import torch
import torch.distributed as dist

STOP_FILE = ".stop"
"""Its presence in run.dir asks the run to save a checkpoint and end."""
LOOK_EVERY_SECONDS = 5.0
"""A look makes the host wait for the device, so there is none after every short step."""


class Lookout:
    """Looks for a request to stop after every few seconds of steps.

    Progress lines may be minutes apart, and a scheduler that takes a machine back kills half a
    minute after it has asked. Clocks differ, so the first worker alone says when all look again.
    """

    def __init__(self, run_dir: Path, device: torch.device) -> None:
        self._file, self._device = run_dir / STOP_FILE, device
        self._looked_at = time.perf_counter()
        self._steps_between, self._steps_since = 1, 0

    def sees_request(self, *, look_now: bool) -> bool:
        """Whether the run shall stop; to be asked once after every step. Collective.

        Args:
            look_now: look although it is not time to; the same on all workers.
        """
        self._steps_since += 1
        if not look_now and self._steps_since < self._steps_between:
            return False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # what was queued has not taken its time yet
        now = time.perf_counter()
        rate = self._steps_since / max(now - self._looked_at, 1e-6)
        steps_between = max(1, int(LOOK_EVERY_SECONDS * rate))
        is_asked = dist.get_rank() == 0 and self._file.exists()
        told = torch.tensor([int(is_asked), steps_between], device=self._device)
        dist.broadcast(told, src=0)
        asked, self._steps_between = told.tolist()
        self._looked_at, self._steps_since = now, 0
        return bool(asked)
