"""What makes runs slow, large or useless and can be seen before any device is taken."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_train.data.encode import describe_encoder
from kiss3d_train.data.latents import ENCODER_FILE, not_encoded, read_encoder
from kiss3d_train.disk import Need, disk_needs
from kiss3d_train.memory import ASSUMED_BUDGET_GIB, GIB
from kiss3d_train.plan import Plan

_QUADRATIC_DEEPSPEED = ("0.18.5", "0.18.6")
"""They recount all parameters in every gradient hook (DeepSpeed #7780, mended by #7886)."""
_LARGE_BASE = 1e9
_MANY_TOKENS = 2048


def traps(plan: Plan) -> list[str]:
    """A sentence for everything about a recipe that its author would rather know now."""
    checks: tuple[Callable[[Plan], Iterator[str]], ...] = (
        _engine,
        _precision,
        _memory,
        _schedule,
        _objective,
        _samples,
        _latents,
        _disk,
    )
    return [sentence for check in checks for sentence in check(plan)]


def _engine(plan: Plan) -> Iterator[str]:
    engine, workers = plan.config.engine, plan.config.scaling.workers
    if engine.kind == "deepspeed" and (found := _installed("deepspeed")) in _QUADRATIC_DEEPSPEED:
        yield (
            f"DeepSpeed {found} needs seconds per step for {2 * len(plan.adapted)} tensors of the "
            "adapter; install 0.18.7 or newer, or set engine.kind=ddp"
        )
    if workers == 1:
        return
    bucket = engine.bucket_elements
    if bucket is not None and 2 * bucket > plan.num_adapter:
        yield (
            f"engine.bucket_elements ({bucket:,}) holds more than half of the adapter "
            f"({plan.num_adapter:,}), so that reducing it overlaps with nothing; leave it out"
        )
    if engine.takes_weights_apart and _fits_whole(plan):
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
    return whole.total(least) < _card(plan) * GIB


def _precision(plan: Plan) -> Iterator[str]:
    config = plan.config
    if config.scaling.use_gpu and config.base.dtype == "float32":
        yield "base.dtype=float32 doubles the base and is several times slower; set bfloat16"
    if not config.scaling.use_gpu and plan.num_base > _LARGE_BASE:
        yield "a base of this size takes hours per step on a CPU; set scaling.use_gpu=true"


def _memory(plan: Plan) -> Iterator[str]:
    needed, card = sum(plan.memory.values()), _card(plan)
    if plan.config.scaling.use_gpu and needed > card:
        yield (
            f"a worker needs about {needed:.0f} GiB, of which there are {card:.0f}; set "
            "base.gradient_checkpointing=auto, or base.quantize=int8"
        )
    if plan.config.base.gradient_checkpointing is True:
        footprint = plan.footprint
        if footprint.is_fused and footprint.total(footprint.everywhere("products")) < card * GIB:
            yield (
                "base.gradient_checkpointing=true computes every block twice, and all of them fit; "
                "set auto"
            )


def _schedule(plan: Plan) -> Iterator[str]:
    config = plan.config
    if config.optimizer.warmup_steps >= config.run.steps:
        yield "optimizer.warmup_steps reaches run.steps: the peak learning rate is never used"
    if config.checkpoint.every >= config.run.steps > 1:
        yield (
            f"checkpoint.every ({config.checkpoint.every}) is not below run.steps: "
            "a crash loses the whole run"
        )
    if config.scaling.max_failures == 0 and config.scaling.workers > 1:
        yield "scaling.max_failures=0: the first worker that dies ends the run"


def _objective(plan: Plan) -> Iterator[str]:
    shift = plan.config.objective.shift
    if shift in ("none", 1) and plan.image_tokens >= _MANY_TOKENS:
        yield (
            f"objective.shift={shift} trains mostly low noise at {plan.image_tokens} tokens, where "
            "the layout of a bundle is decided already; FLUX.1's own is auto"
        )


def _samples(plan: Plan) -> Iterator[str]:
    if plan.index is None:
        return
    config = plan.config
    training, held_out = plan.num_samples("train"), plan.num_samples("val")
    if training < config.data.global_batch:
        yield (
            f"the {training} training samples are fewer than data.global_batch "
            f"({config.data.global_batch}): a step sees some of them twice"
        )
    if config.validation.samples and not held_out:
        yield "no sample is held out, so there will be no val/loss; shard with a val split"
    elif config.validation.samples > held_out:
        yield f"validation.samples is {config.validation.samples}, but {held_out} are held out"


def _latents(plan: Plan) -> Iterator[str]:
    """Say so if what is cached was made in another way; the base's weights are compared by `run`,
    as that reads all of them."""
    config, root = plan.config, plan.config.latents_root
    if plan.index is None or not isinstance(root, Path) or not root.is_dir():
        return
    wanted = describe_encoder(
        config.base.path, "", plan.index.layout, config.base.dtype, config.data.domains
    )
    differences = []
    for folder in sorted(path.parent for path in root.glob(f"*/{ENCODER_FILE}")):
        try:
            found = read_encoder(folder)
        except InputError as error:
            yield str(error)
            continue
        before, now = found.model_dump(), wanted.model_dump()
        different = [key for key in now if key != "base" and before[key] != now[key]]
        if not different:
            missing = len(not_encoded(folder, plan.index.shards))
            if missing:
                yield f"{missing} of {len(plan.index.shards)} shards are not encoded yet ({folder})"
            return
        differences.append(f"{folder.name} has another {', '.join(different)}")
    if differences:
        yield f"no latents in {root} fit, all will be encoded anew: {'; '.join(differences)}"


def _disk(plan: Plan) -> Iterator[str]:
    disks: dict[int, list[Need]] = {}
    for need in disk_needs(plan):
        disks.setdefault(_disk_of(need.folder), []).append(need)
    for needs in disks.values():
        folder, total = _existing(needs[0].folder), sum(need.num_bytes for need in needs)
        free = shutil.disk_usage(folder).free
        if total > free:
            parts = ", ".join(f"{need.what} {need.num_bytes / GIB:.1f}" for need in needs)
            yield (
                f"the run may write {total / GIB:.1f} GiB ({parts}), "
                f"and {free / GIB:.1f} are free in {folder}"
            )


def _disk_of(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there already."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _card(plan: Plan) -> float:
    budget = plan.config.engine.memory_budget_gib
    return ASSUMED_BUDGET_GIB if budget == "auto" else budget


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
