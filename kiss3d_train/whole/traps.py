"""What makes a run over whole parts slow or useless and can be seen before any device is taken."""

from collections.abc import Iterator

from kiss3d_train.traps import (
    bad_schedule,
    far_shift,
    few_samples,
    full_disks,
    large_buckets,
    unshared,
)
from kiss3d_train.whole.plan import WholePlan


def whole_traps(plan: WholePlan) -> list[str]:
    """A sentence for everything about a recipe that its author would rather know now."""
    config = plan.config
    found = [*_precision(plan), *_memory(plan), *_without_effect(plan)]
    if plan.index is not None:
        found += _whole_bundles(plan)
        training = plan.units_per_bundle * plan.num_bundles("train")
        found += few_samples(config, training, plan.num_bundles("val"))
    if plan.image_tokens is not None:
        found += far_shift(config, plan.image_tokens)
    return [
        *found,
        *large_buckets(config, plan.num_trainable),
        *bad_schedule(config),
        *full_disks(plan.needs()),
        *unshared(config),
    ]


def _precision(plan: WholePlan) -> Iterator[str]:
    if plan.config.scaling.use_gpu and plan.config.base.dtype == "float32":
        yield (
            "base.dtype=float32 computes several times slower; set bfloat16, which leaves the "
            "weights float32"
        )


def _memory(plan: WholePlan) -> Iterator[str]:
    if plan.room is not None and plan.state_gib > plan.room.gib:
        yield (
            f"the weights and what belongs to them take {plan.state_gib:.0f} GiB, of which there "
            f"are {plan.room.gib:.0f} ({plan.room.origin}); train fewer or smaller parts"
        )


def _without_effect(plan: WholePlan) -> Iterator[str]:
    config = plan.config
    if config.base.gradient_checkpointing is True:
        yield "base.gradient_checkpointing=true does nothing where whole parts train; leave it out"
    if plan.full.is_vae and config.engine.compile is True:
        yield "engine.compile=true does nothing for the VAE, which is never compiled; leave it out"


def _whole_bundles(plan: WholePlan) -> Iterator[str]:
    micro, tiles = plan.config.scaling.micro_batch, plan.units_per_bundle
    if plan.full.is_vae and micro % tiles:
        yield (
            f"scaling.micro_batch ({micro}) is no whole number of bundles, which the run will "
            f"refuse; give a multiple of {tiles}, the tiles of a bundle"
        )
