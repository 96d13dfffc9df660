"""A plan in words: names and values for people."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from kiss3d_infer.config import Resolved
from kiss3d_train.columns import aligned
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import ShardIndex
from kiss3d_train.disk import Need, disk_needs, disks
from kiss3d_train.engine import reduces_in_buckets
from kiss3d_train.memory import GIB, Room, in_bytes
from kiss3d_train.plan import ASSUMED_TILE, LATENT_BYTES, Plan

Row = tuple[str, str]
"""A name and its value."""


def figures_of(plan: Plan) -> list[Row]:
    """Everything that was worked out about an adapter's recipe.

    Raises:
        InputError: a step does not fit the device.
    """
    config = plan.config
    return [
        ("global batch", config.batch_arithmetic),
        ("transformer", f"{plan.num_base / 1e6:,.1f} M weights, {config.base.dtype}, frozen"),
        (
            "adapter",
            f"{plan.num_adapter / 1e6:,.2f} M weights on {len(plan.adapted)} linears, float32",
        ),
        *_initial(plan),
        *buckets(config, plan.num_adapter),
        ("checkpoint", in_bytes(plan.checkpoint_bytes)),
        *_data(plan),
        *_memory(plan),
        *_arithmetic(plan),
        *on_disks(disk_needs(plan)),
    ]


def show_plan(resolved: Resolved[TrainConfig], rows: Sequence[Row]) -> None:
    """Print a recipe with the origin of each value, and figures; no line is cut."""
    print("recipe")
    values = [(key, f"{value}  # {origin}") for key, value, origin in resolved.rows()]
    print("\n".join(aligned(values)))
    print("\nplan")
    print("\n".join(aligned(rows)))


def buckets(config: TrainConfig, num_trainable: int) -> Iterator[Row]:
    """How gradients are exchanged, if they are."""
    if reduces_in_buckets(config):
        elements = config.engine.bucket_of(num_trainable)
        number = max(1, round(num_trainable / elements))
        yield (
            "gradient buckets",
            f"about {number} of {elements:,} elements, {in_bytes(4 * elements)}",
        )


def epochs(
    config: TrainConfig, index: ShardIndex, num_samples: int, unit: str = "samples"
) -> Iterator[Row]:
    """How steps, epochs and workers go together, once there are samples.

    Every kind of stream takes the positions of an endless sequence of epochs, batch by batch.
    """
    batch, steps, workers = config.data.global_batch, config.run.steps, config.scaling.workers
    if num_samples == 0:
        return
    if workers > 1:
        num_shards = len(index.of("train"))
        yield (
            f"{unit} among {workers} workers",
            f"by number, so that shards ({num_shards} to train on) need not divide",
        )
    left = num_samples % batch
    yield "steps per epoch", f"{num_samples / batch:.1f}"
    yield (
        "end of an epoch",
        f"{left} {unit} are left, and the next epoch fills their batch; none is dropped"
        if left
        else "falls between two batches",
    )
    yield "epochs in all", f"{steps * batch / num_samples:.1f} in {steps} steps"


def card(room: Room | None, needed_gib: float, left_for: str = "") -> Iterator[Row]:
    """What a device has, against what is needed of it, and what the rest is for."""
    if room is not None:
        left = room.gib - needed_gib
        rest = f"{abs(left):.1f} GiB {'left' if left >= 0 else 'too few'} {left_for}".rstrip()
        yield "card", f"{room.gib:.1f} GiB, {room.origin}; {rest}"


def on_disks(needs: Iterable[Need]) -> Iterator[Row]:
    """What is written, by disk."""
    for disk in disks(needs):
        for need in disk.needs:
            yield f"disk: {need.what}", in_bytes(need.num_bytes)
        free = f"{in_bytes(disk.free)} are free in {disk.folder}"
        yield "disk, at most", f"{in_bytes(disk.needed)}, and {free}"


def _initial(plan: Plan) -> Iterator[Row]:
    init_from = plan.config.adapter.init_from
    if init_from is not None:
        yield "starts from", f"{init_from}{'' if init_from.exists() else ' does not exist yet'}"


def _data(plan: Plan) -> Iterator[Row]:
    config = plan.config
    tokens = f"{plan.image_tokens} image + {plan.text_tokens} text"
    if plan.index is None or plan.encoded is None:
        yield "data", f"{config.data.shards} does not exist yet"
        yield "tokens", f"{tokens}, assumed: tiles of {ASSUMED_TILE} pixels"
        return
    is_switch = config.data.domains == "switch"
    yield "data", f"{plan.index}{', a sample per row' if is_switch else ''}"
    yield "tokens", tokens
    yield "latents and embeddings", plan.encoded.said
    if config.data.resident:
        latents = plan.num_samples("train") * plan.image_tokens * LATENT_BYTES
        yield (
            "resident on each device",
            f"{in_bytes(latents)} of latents, and each caption's embedding",
        )
    yield from epochs(config, plan.index, plan.num_samples("train"))


def _memory(plan: Plan) -> Iterator[Row]:
    counts = Counter(plan.keeps)
    kept = ", ".join(f"{what} in {counts[what]}" for what in counts)
    yield "kept for the backward pass", f"{kept} of {len(plan.keeps)} blocks"
    for item, gib in plan.memory.items():
        yield f"memory: {item}", in_bytes(gib * GIB)
    total = plan.footprint.total(plan.keeps)
    yield "memory per worker, about", in_bytes(total)
    yield from card(plan.room, total / GIB)


def _arithmetic(plan: Plan) -> Iterator[Row]:
    teraflops = sum(plan.flops_per_sample.values()) / 1e12
    yield "arithmetic per sample", f"{teraflops:,.3g} TFLOP"
    if not plan.config.scaling.use_gpu:
        return
    step, steps = plan.floor_of_step, plan.config.run.steps
    yield "no step faster on an H200 than", _duration(step)
    if plan.steps_per_epoch:
        yield "no epoch faster than", _duration(step * plan.steps_per_epoch)
    yield "no run faster than", f"{_duration(step * steps)} for {steps} steps"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
