"""What makes runs slow, large or useless and can be seen before any device is taken.

`traps` is for adapters. What also holds for whole parts asks for less than a plan, and is public.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from kiss3d_infer.mlflow_server import SQLITE
from kiss3d_train.config import TrainConfig
from kiss3d_train.disk import Need, disk_needs, disks
from kiss3d_train.engine import reduces_in_buckets
from kiss3d_train.memory import GIB, in_bytes
from kiss3d_train.objective import shift_mu
from kiss3d_train.plan import Plan

_QUADRATIC_DEEPSPEED = ("0.18.5", "0.18.6")
"""They recount all parameters in every gradient hook (DeepSpeed #7780, mended by #7886)."""
_LARGE_BASE = 1e9
_MANY_TOKENS = 2048
_FAR_SHIFT = 1.8
"""Factor between two shifts; that between FLUX.1's for 4096 and for 8192 tokens is 2."""
_OWN_DISKS = ("apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs")
"""File systems that only one machine mounts."""


def traps(plan: Plan) -> list[str]:
    """A sentence for everything about a recipe that its author would rather know now."""
    checks: tuple[Callable[[Plan], Iterator[str]], ...] = (
        _engine,
        _precision,
        _memory,
        _guidance,
        _latents,
    )
    config, found = plan.config, [sentence for check in checks for sentence in check(plan)]
    if plan.index is not None:
        found += few_samples(config, plan.num_samples("train"), plan.num_samples("val"))
    return [
        *found,
        *large_buckets(config, plan.num_adapter),
        *bad_schedule(config),
        *far_shift(config, plan.image_tokens),
        *full_disks(disk_needs(plan)),
        *unshared(config),
    ]


def large_buckets(config: TrainConfig, num_trainable: int) -> Iterator[str]:
    """Buckets that would be exchanged after the backward pass, and not within it."""
    bucket = config.engine.bucket_elements
    if reduces_in_buckets(config) and bucket is not None and 2 * bucket > num_trainable:
        yield (
            f"engine.bucket_elements ({bucket:,}) holds more than half of what trains "
            f"({num_trainable:,}), so that reducing it overlaps with nothing; leave it out"
        )


def bad_schedule(config: TrainConfig) -> Iterator[str]:
    """Steps that do not go together, and failures that nothing absorbs."""
    if config.optimizer.warmup_steps >= config.run.steps:
        yield "optimizer.warmup_steps reaches run.steps: the peak learning rate is never used"
    if config.checkpoint.every >= config.run.steps > 1:
        yield (
            f"checkpoint.every ({config.checkpoint.every}) is not below run.steps: "
            "a crash loses the whole run"
        )
    if config.scaling.max_failures == 0 and config.scaling.workers > 1:
        yield "scaling.max_failures=0: the first worker that dies ends the run"


def far_shift(config: TrainConfig, num_tokens: int) -> Iterator[str]:
    """A timestep shift for another number of image tokens."""
    chosen = config.objective.shift
    if chosen == "auto":
        return
    automatic = config.objective.model_copy(update={"shift": "auto"})
    own = math.exp(shift_mu(automatic, num_tokens) or 0)
    if chosen in ("none", 1):
        if num_tokens >= _MANY_TOKENS:
            yield (
                f"objective.shift={chosen} trains mostly low noise at {num_tokens} tokens, where "
                "the layout of a bundle is decided already; FLUX.1's own is auto"
            )
    elif not 1 / _FAR_SHIFT < float(chosen) / own < _FAR_SHIFT:
        yield (
            f"objective.shift={chosen:g} is far from {own:.2f}, FLUX.1's own for {num_tokens} "
            "image tokens; set auto"
        )


def few_samples(config: TrainConfig, training: int, held_out: int) -> Iterator[str]:
    """Too few of them.

    Args:
        config: the recipe.
        training: in an epoch, counted like data.global_batch.
        held_out: in the validation split, counted like validation.samples.
    """
    if training < config.data.global_batch:
        yield (
            f"the {training} training samples are fewer than data.global_batch "
            f"({config.data.global_batch}): a step sees some of them twice"
        )
    if config.validation.samples and not held_out:
        yield "no sample is held out, so there will be no val/loss; shard with a val split"
    elif config.validation.samples > held_out:
        yield f"validation.samples is {config.validation.samples}, but {held_out} are held out"


def full_disks(needs: Iterable[Need]) -> Iterator[str]:
    """Disks that have less room than a run may write to them."""
    for disk in disks(needs):
        if disk.needed > disk.free:
            parts = ", ".join(f"{need.what} {in_bytes(need.num_bytes)}" for need in disk.needs)
            yield (
                f"the run may write {in_bytes(disk.needed)} ({parts}), "
                f"and {in_bytes(disk.free)} are free in {disk.folder}"
            )


def unshared(config: TrainConfig) -> Iterator[str]:
    """What the other machines of a cluster do not see."""
    if os.environ.get("RAY_ADDRESS", "") in ("", "local"):
        return
    uri = config.tracking.uri
    places = {
        "run.dir": config.run.dir,
        "base.path": config.base.path,
        "data.shards": config.data.shards,
        "data.latents": None if config.full else config.latents_root,
        "adapter.init_from": config.adapter.init_from,
        "tracking.uri": Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None,
    }
    local = [key for key, place in places.items() if isinstance(place, Path) and _is_own(place)]
    if local:
        yield (
            f"{', '.join(local)}: on a disk of this machine's own, and the cluster at RAY_ADDRESS "
            "may have others; use storage that all of them mount, and a server for tracking.uri"
        )


def _is_own(place: Path) -> bool:
    place = place.resolve()
    above = [
        mount
        for mount in psutil.disk_partitions(all=True)
        if place.is_relative_to(mount.mountpoint)
    ]
    # The last of equals: it was mounted over the others.
    nearest = max(reversed(above), key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is not None and nearest.fstype in _OWN_DISKS


def _engine(plan: Plan) -> Iterator[str]:
    engine, workers = plan.config.engine, plan.config.scaling.workers
    if engine.kind == "deepspeed" and (found := _installed("deepspeed")) in _QUADRATIC_DEEPSPEED:
        yield (
            f"DeepSpeed {found} needs seconds per step for {2 * len(plan.adapted)} tensors of the "
            "adapter; install 0.18.7 or newer, or set engine.kind=ddp"
        )
    if not engine.takes_weights_apart:
        return
    if engine.compile is True:
        yield (
            "engine.compile=true does nothing with engine.zero_stage=3, whose blocks are never "
            "compiled; leave it out"
        )
    if workers > 1 and _fits_whole(plan):
        yield (
            "engine.zero_stage=3 collects the frozen base in every pass and does without the fused "
            "blocks, and the base fits every worker whole; set 1 or 2"
        )


def _fits_whole(plan: Plan) -> bool:
    """Whether the same recipe fits with a base that every worker holds whole."""
    engine = plan.config.engine.model_copy(update={"zero_stage": 1})
    whole = replace(plan, config=plan.config.model_copy(update={"engine": engine})).footprint
    keeps_all = plan.config.base.gradient_checkpointing is False
    least = whole.everywhere("products" if keeps_all else "inputs")
    return plan.room is not None and whole.total(least) < plan.room.gib * GIB


def _precision(plan: Plan) -> Iterator[str]:
    config = plan.config
    if config.scaling.use_gpu and config.base.dtype == "float32":
        yield "base.dtype=float32 doubles the base and is several times slower; set bfloat16"
    if not config.scaling.use_gpu and plan.num_base > _LARGE_BASE:
        yield "a base of this size takes hours per step on a CPU; set scaling.use_gpu=true"


def _memory(plan: Plan) -> Iterator[str]:
    room, footprint = plan.room, plan.footprint
    if room is None:
        return
    needed = sum(plan.memory.values())
    if needed > room.gib:
        yield (
            f"a worker needs about {needed:.0f} GiB, of which there are {room.gib:.0f} "
            f"({room.origin}); set base.gradient_checkpointing=auto, or base.quantize=int8"
        )
    keeps_least = plan.config.base.gradient_checkpointing is True and footprint.is_fused
    if keeps_least and footprint.total(footprint.everywhere("products")) < room.gib * GIB:
        yield (
            "base.gradient_checkpointing=true computes every block twice, and all of them fit; "
            "set auto"
        )


def _guidance(plan: Plan) -> Iterator[str]:
    guidance = plan.config.objective.guidance
    if plan.takes_guidance and guidance != 1:
        yield (
            f"objective.guidance={guidance:g} belongs to drawing: training's target is the "
            "conditional velocity itself, which a guidance-distilled base gives at 1.0; set 1.0"
        )


def _latents(plan: Plan) -> Iterator[str]:
    if plan.encoded is not None and plan.encoded.is_unexpected:
        yield f"latents and text embeddings: {plan.encoded.said}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
