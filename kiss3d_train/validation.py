"""Held-out loss at fixed noise levels with fixed noise: the same quantity in every run."""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_train.config import TrainConfig
from kiss3d_train.curves import region_metrics, rows_shown
from kiss3d_train.data.stream import Samples, validation_batch
from kiss3d_train.engine import Engine, LossFn

T = TypeVar("T")


def held_out_loss(
    engine: Engine, loss_fn: LossFn, samples: Samples, config: TrainConfig, layout: BundleLayout
) -> dict[str, float]:
    """Mean loss over the first validation samples: in all, by sigma and by region. Collective.

    All workers do the same number of forward passes, because under ZeRO-3 each is a collective;
    surplus ones repeat the last pair and do not count.

    Args:
        engine: what is validated.
        loss_fn: mean squared errors of a batch's tiles (`curves.tile_losses`).
        samples: the held-out split.
        config: the recipe.
        layout: of the bundles.
    """
    sigmas = config.validation.sigmas
    num_samples = min(config.validation.samples, len(samples))
    pairs = [(index, number) for index in range(num_samples) for number in range(len(sigmas))]
    cells = (num_samples, len(sigmas), len(layout.rows))
    table = torch.zeros(*cells, layout.num_views, device=engine.device)
    shown = torch.zeros(cells, device=engine.device)
    for chunk, num_counted in shares(pairs, config.scaling.micro_batch):
        batch = validation_batch(samples, [(i, sigmas[k]) for i, k in chunk], config)
        losses = engine.losses(loss_fn, batch)
        rows = rows_shown(batch, layout)
        for (index, number), loss, row in zip(chunk[:num_counted], losses, rows, strict=False):
            table[index, number], shown[index, number] = loss, row
    dist.all_reduce(table)
    dist.all_reduce(shown)
    num_tiles = shown.sum(dim=(0, 2)) * layout.num_views
    by_sigma = (table.sum(dim=(0, 2, 3)) / num_tiles).tolist()
    metrics = {f"val/loss_sigma_{s:g}": loss for s, loss in zip(sigmas, by_sigma, strict=True)}
    sums, counts = (tensor.sum(dim=(0, 1)).cpu() for tensor in (table, shown))
    regions = region_metrics("val", sums, counts, layout)
    return {"val/loss": sum(by_sigma) / len(by_sigma), **metrics, **regions}


def shares(items: Sequence[T], size: int) -> list[tuple[list[T], int]]:
    """This worker's chunks of `size` items, as many as any other's, each with how many count.

    The last item fills up what is missing.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    rounds = -(-len(items) // (size * world_size))
    chunks = []
    for number in range(rounds):
        first = (number * world_size + rank) * size
        chunk = list(items[first : first + size])
        chunks.append((chunk + [items[-1]] * (size - len(chunk)), len(chunk)))
    return chunks
