"""Checkpoints that know nothing of workers: whole tensors, checksummed, visible only when complete.

    checkpoints/step-00000500/
        weights.safetensors     float32 masters of what trains
        moments.safetensors     exp_avg/<name> and exp_avg_sq/<name> of AdamW
        ema.safetensors         float32 moving average of the weights, of runs that keep one
        state.json              step, identity, MLflow run, the best so far, checksums of it all

The learning rate, the sample order and all randomness are functions of the recipe and the step, so
they need no state of their own.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writable_folder
from kiss3d_train.average import AVERAGE_KIND
from kiss3d_train.config import TrainConfig
from kiss3d_train.engine import KINDS, State
from kiss3d_train.whole.config import Subject

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_STATE_FILE = "state.json"
_WEIGHTS_FILE = "weights.safetensors"
_MOMENTS_FILE = "moments.safetensors"
_AVERAGE_FILE = "ema.safetensors"
_PREFIX = "step-"


@dataclass(frozen=True)
class Identity:
    """What a run must share with a checkpoint to continue from it.

    Attributes:
        base: digest of the base model.
        data: digest of the shard index.
        encoder: digest of what encoded images and captions.
        modules: adapted modules of the transformer, or parts of the base that train as a whole.
        rank, alpha: size and scale of the adapter; 0 without one.
        seed, global_batch: they fix which sample comes when.
        initial_adapter: digest of the LoRA that training started from; empty without one.
        resident: whether an adapter's data is on the device, where other numbers are drawn.
        draws: what parts that train as a whole learn to draw.
    """

    base: str
    data: str
    encoder: str
    modules: tuple[str, ...]
    rank: int
    alpha: float
    seed: int
    global_batch: int
    initial_adapter: str = ""
    resident: bool = False
    draws: Subject = "views"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        step: optimizer steps done.
        state: whole training state, as `Engine.gather` returns it, and the average if there is one.
        identity: of the run that wrote it.
        tracking_run: MLflow run id, if any.
    """

    path: Path
    step: int
    state: State
    identity: Identity
    tracking_run: str | None


@dataclass(frozen=True)
class Best:
    """The lowest held-out loss so far, and the optimizer steps after which it was measured."""

    step: int
    loss: float


class BrokenCheckpointError(Exception):
    """A file of a checkpoint is missing, altered or unreadable."""


def save(
    folder: Path,
    step: int,
    state: State,
    identity: Identity,
    tracking_run: str | None,
    *,
    keep: int,
    best: Best | None = None,
) -> Path:
    """Write a checkpoint aside, make it visible by one rename, keep the newest `keep` and the best.

    Raises:
        InputError: the folder cannot be written, or the disk is full; what was there stays.
    """
    from safetensors import SafetensorError

    final = path_of(writable_folder(folder), step)
    aside = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        _write(aside, step, state, identity, tracking_run, best)
        shutil.rmtree(final, ignore_errors=True)  # an earlier attempt at the same step
        aside.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the checkpoint of step {step} cannot be written: {error}",
            where=folder,
            fix="free space; the same command then goes on from the checkpoint before",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in _newest_first(folder)[keep:]:
        if best is None or old != path_of(folder, best.step):
            shutil.rmtree(old)
    return final


def checkpoints_of(config: TrainConfig) -> Path:
    """Folder of a run's checkpoints."""
    return config.run.dir / "checkpoints"


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"{_PREFIX}{step:08d}"


def load(path: Path) -> Checkpoint:
    """Read one checkpoint completely and verify every byte of it.

    Raises:
        BrokenCheckpointError: it is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        manifest = _read_manifest(path)
        for name, digest in manifest["files"].items():
            if sha256_of(path / name) != digest:
                raise BrokenCheckpointError(f"{name} was altered")
        state: State = {kind: {} for kind in KINDS}
        state["weight"] = load_file(path / _WEIGHTS_FILE)
        for name, tensor in load_file(path / _MOMENTS_FILE).items():
            kind, _, parameter = name.partition("/")
            state[kind][parameter] = tensor
        if _AVERAGE_FILE in manifest["files"]:
            state[AVERAGE_KIND] = load_file(path / _AVERAGE_FILE)
        fields = manifest["identity"]
        identity = Identity(**{**fields, "modules": tuple(fields["modules"])})
        return Checkpoint(path, manifest["step"], state, identity, manifest["tracking_run"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BrokenCheckpointError(f"{type(error).__name__}: {error}") from error


def best_at(folder: Path, step: int) -> Best | None:
    """What was the best when the checkpoint of that step was saved; None if that says nothing."""
    try:
        found = _read_manifest(path_of(folder, step)).get("best")
        return None if found is None else Best(**found)
    except (OSError, KeyError, TypeError, ValueError, BrokenCheckpointError):
        return None


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint, with a warning for each broken one; None if there is none."""
    for path in _newest_first(folder):
        try:
            return load(path)
        except BrokenCheckpointError as error:
            _LOG.warning("checkpoint %s is broken (%s); trying the one before", path, error)
    return None


def require_same(found: Identity, expected: Identity, where: Path) -> None:
    """Refuse to continue when the recipe no longer matches the checkpoint.

    Raises:
        InputError: names everything that differs.
    """
    before, now = asdict(found), asdict(expected)
    differences = [
        f"{name} was {_short(before[name])} and is now {_short(now[name])}"
        for name in before
        if before[name] != now[name]
    ]
    if differences:
        raise InputError(
            f"the checkpoint belongs to another run: {'; '.join(differences)}",
            where=where,
            fix="restore these settings, or start in another run.dir",
        )


def has_checkpoints(folder: Path) -> bool:
    """Whether any checkpoint, intact or not, is in the folder."""
    return bool(_newest_first(folder))


def _write(
    folder: Path,
    step: int,
    state: State,
    identity: Identity,
    tracking_run: str | None,
    best: Best | None,
) -> None:
    from safetensors.torch import save_file

    save_file(state["weight"], folder / _WEIGHTS_FILE)
    save_file(dict(_moments(state)), folder / _MOMENTS_FILE)
    if AVERAGE_KIND in state:
        save_file(state[AVERAGE_KIND], folder / _AVERAGE_FILE)
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "step": step,
        "identity": asdict(identity),
        "tracking_run": tracking_run,
        "best": None if best is None else asdict(best),
        "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    manifest["sha256"] = _digest(manifest)
    (folder / _STATE_FILE).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for file in folder.iterdir():
        _sync(file)


def _moments(state: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for kind in KINDS[1:]:
        for name, tensor in state[kind].items():
            yield f"{kind}/{name}", tensor


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
    if manifest.pop("sha256") != _digest(manifest):
        raise BrokenCheckpointError(f"{_STATE_FILE} was altered")
    if manifest["format"] != _FORMAT:
        raise BrokenCheckpointError(f"format {manifest['format']} is unknown")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps(manifest, sort_keys=True).encode())


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True) if folder.is_dir() else []


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: object) -> str:
    text = f"{len(value)} modules" if isinstance(value, tuple) else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."
