"""Where a run starts: anew, from its own newest checkpoint, or from a given one."""

import json
from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import LOCK_NAME
from kiss3d_infer.flux.lora import lora_identity
from kiss3d_train import checkpoint
from kiss3d_train.checkpoint import BrokenCheckpointError, Checkpoint, Identity, checkpoints_of
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.encode import describe_encoder
from kiss3d_train.data.shards import ShardIndex
from kiss3d_train.plan import adapted_modules

RUN_FILE = "run.json"
"""Marks a folder as a run's; holds its identity, its MLflow run and where it started."""


@dataclass(frozen=True)
class Start:
    """Where to start.

    Attributes:
        step: optimizer steps done already.
        initial: a checkpoint outside run.dir that the run began with.
        tracking_run: MLflow run to go on with.
    """

    step: int = 0
    initial: Path | None = None
    tracking_run: str | None = None


def identity_of(config: TrainConfig, base: str, index: ShardIndex) -> Identity:
    """What a checkpoint of this run must agree with; opens the base on the meta device only."""
    if config.full is not None:
        return Identity(
            base=base,
            data=index.digest,
            encoder="",
            modules=config.full.parts,
            rank=0,
            alpha=0.0,
            seed=config.run.seed,
            global_batch=config.data.global_batch,
            draws=config.full.draws,
        )
    init_from = config.adapter.init_from
    encoder = describe_encoder(
        config.base.path, base, index.layout, config.base.dtype, config.data.domains
    )
    return Identity(
        base=base,
        data=index.digest,
        encoder=encoder.identity,
        modules=tuple(adapted_modules(config)),
        rank=config.adapter.rank,
        alpha=config.adapter.resolved_alpha,
        seed=config.run.seed,
        global_batch=config.data.global_batch,
        initial_adapter="" if init_from is None else lora_identity(init_from),
        resident=config.data.resident,
    )


def decide_start(config: TrainConfig, identity: Identity) -> Start:
    """Apply run.resume.

    Raises:
        InputError: run.dir holds something that must not be overwritten, or the checkpoint is
            broken or belongs to another run.
    """
    run_dir, resume = config.run.dir, config.run.resume
    if resume != "auto":
        _require_empty(run_dir)
        return Start() if resume == "never" else _from_path(Path(resume).absolute(), identity)
    if not (run_dir / RUN_FILE).is_file():
        _require_empty(run_dir)
        return Start()
    tracking_run, initial = _check_run_file(run_dir / RUN_FILE, identity)
    folder = checkpoints_of(config)
    newest = checkpoint.load_newest(folder)
    if newest is None and checkpoint.has_checkpoints(folder):
        raise InputError(
            "all checkpoints are broken",
            where=folder,
            fix="delete them to start from the beginning",
        )
    if newest is None and initial is not None:
        return _from_path(initial, identity, tracking_run)
    if newest is None:
        return Start(tracking_run=tracking_run)
    checkpoint.require_same(newest.identity, identity, newest.path)
    return Start(newest.step, initial, newest.tracking_run or tracking_run)


def _from_path(path: Path, identity: Identity, tracking_run: str | None = None) -> Start:
    try:
        found: Checkpoint = checkpoint.load(path)
    except BrokenCheckpointError as error:
        raise InputError(
            f"not an intact checkpoint: {error}",
            where=path,
            fix="give a folder such as runs/x/checkpoints/step-00000500",
        ) from error
    checkpoint.require_same(found.identity, identity, path)
    return Start(found.step, path, tracking_run)


def _check_run_file(path: Path, identity: Identity) -> tuple[str, Path | None]:
    """The MLflow run and the initial checkpoint of the run that left the file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = Identity(**record["identity"] | {"modules": tuple(record["identity"]["modules"])})
        tracking_run = str(record["tracking_run"])
        initial = Path(record["initial"]) if record["initial"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "this file was not written by a training run", where=path, fix="choose another run.dir"
        ) from error
    checkpoint.require_same(found, identity, path)
    return tracking_run, initial


def _require_empty(run_dir: Path) -> None:
    # The lock is this job's own.
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    if names - {LOCK_NAME} or (run_dir.exists() and not run_dir.is_dir()):
        raise InputError(
            "run.dir is not empty",
            where=run_dir,
            fix="choose another run.dir, or set run.resume=auto if it holds a run to continue",
        )
