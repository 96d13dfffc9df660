"""What a run leaves behind as `summary.json`, and when that says that nothing is left to do."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kiss3d_infer.config import Resolved
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.lora import FILE_NAME
from kiss3d_train.config import TrainConfig
from kiss3d_train.resume import RUN_FILE

SUMMARY_FILE = "summary.json"
_PLACES = (
    "run.dir",
    "run.resume",
    "base.path",
    "data.shards",
    "data.latents",
    "adapter.init_from",
)
"""May change between starts of a run: its identity vouches for what lies there."""
_READING = ("data.prefetch", "data.readers", "data.cache", "data.cache_gb")
"""May change too: the same samples come, only sooner or later."""


@dataclass(frozen=True)
class TrainSummary:
    """What a run left behind; `summary.json` holds the same.

    Attributes:
        status: "stopped" when it was asked to end early; it continues with run.resume=auto.
        steps: optimizer steps since the beginning of training.
        losses: mean loss of each step done since the last start.
        validation: last held-out metrics.
        seconds: in the training loop, since the last start.
        peak_memory_bytes: of the first worker.
        adapter: where the trained adapter lies, or the base whose parts were trained.
        validation_at_start: held-out metrics of the LoRA that training started from; empty without
            one, and for a run that was resumed.
    """

    status: Literal["finished", "stopped"]
    run_dir: str
    run_id: str
    steps: int
    losses: tuple[float, ...]
    validation: dict[str, float]
    seconds: float
    peak_memory_bytes: int
    adapter: str
    how_to_open: str
    validation_at_start: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """A few lines for the terminal."""
        change = f", loss {self.losses[0]:.4f} -> {self.losses[-1]:.4f}" if self.losses else ""
        return (
            f"{self.status} after {self.steps} steps{change}, {self.seconds:.0f} s in the loop\n"
            f"{'base' if Path(self.adapter).is_dir() else 'adapter'}: {self.adapter}\n"
            f"MLflow run {self.run_id}: {self.how_to_open}"
        )


def adapter_of(run_dir: Path) -> Path:
    """Where a run's adapter lies."""
    return run_dir / "adapter" / FILE_NAME


def averaged_adapter_of(run_dir: Path) -> Path:
    """Where the moving average of a run's adapter lies, if it keeps one."""
    return run_dir / "adapter_ema" / FILE_NAME


def base_of(run_dir: Path) -> Path:
    """Where the base lies whose parts a run has trained."""
    return run_dir / "base"


def result_of(config: TrainConfig) -> Path:
    """What a run is for: its adapter, or the folder of its base."""
    return adapter_of(config.run.dir) if config.full is None else base_of(config.run.dir)


def best_adapter_of(run_dir: Path) -> Path:
    """Where the adapter with the lowest held-out loss lies."""
    return run_dir / "adapter_best" / FILE_NAME


def values_of(config: TrainConfig) -> dict[str, str]:
    """Every value of a recipe as text, by its dotted key."""
    return Resolved(config, {}).values()


def finished_at(step: int, config: TrainConfig) -> TrainSummary | None:
    """The summary of a run that finished with that step; one of an earlier end does not count.

    Raises:
        InputError: it finished with another recipe than this one.
    """
    run_dir = config.run.dir
    try:
        fields = json.loads((run_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
        summary = TrainSummary(**{**fields, "losses": tuple(fields["losses"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_whole = (summary.status, summary.steps) == ("finished", step)
    if not is_whole or not result_of(config).exists():
        return None
    _require_same_recipe(run_dir, config)
    return summary


def _require_same_recipe(run_dir: Path, config: TrainConfig) -> None:
    before = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8")).get("recipe", {})
    differences = [
        f"{key} was {before[key]} and is now {value}"
        for key, value in values_of(config).items()
        if key not in (*_PLACES, *_READING) and before.get(key, value) != value
    ]
    if differences:
        raise InputError(
            f"this run has finished with another recipe: {'; '.join(differences)}",
            where=run_dir,
            fix="restore these settings, start in another run.dir, or raise run.steps to go on",
        )
