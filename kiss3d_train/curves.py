"""Training losses by noise level and by region of the bundle, summed on the device until drained.

Shape legend: B samples, N image tokens, C channels of a packed token, L levels of noise, R rows and
V views (columns) of the layout.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_train.config import ObjectiveSection
from kiss3d_train.engine import LossFn
from kiss3d_train.objective import Batch, squared_errors, weighted

NUM_LEVELS = 10
"""Equal steps of the noise level; 0.3 stands for 0.3 to 0.4."""


class LossCurves:
    """Unweighted losses of the samples since the last `take`. Nothing here waits for the device."""

    def __init__(self, layout: BundleLayout, device: torch.device) -> None:
        self._layout = layout
        self._levels_L = torch.arange(NUM_LEVELS, device=device)
        self._by_level_2L = torch.zeros(2, NUM_LEVELS, device=device)
        """Sums of losses, and how many."""
        self._tiles_RV = torch.zeros(len(layout.rows), layout.num_views, device=device)
        self._shown_R = torch.zeros(len(layout.rows), device=device)
        """How many samples show a row."""

    def add(self, squared_BNC: Tensor, batch: Batch) -> None:
        """Count a batch's squared errors."""
        squared_BNC = squared_BNC.detach()
        level_B = (batch.sigma_B * NUM_LEVELS).long().clamp(0, NUM_LEVELS - 1)
        is_in_BL = (level_B[:, None] == self._levels_L).float()
        loss_B1 = squared_BNC.mean(dim=(1, 2))[:, None]
        self._by_level_2L += torch.stack([(loss_B1 * is_in_BL).sum(dim=0), is_in_BL.sum(dim=0)])
        self._tiles_RV += tile_losses(squared_BNC, batch, self._layout).sum(dim=0)
        self._shown_R += rows_shown(batch, self._layout).sum(dim=0)

    def take(self) -> Tensor:
        """All sums as one vector on the device, to be added over workers; starts anew."""
        sums = (self._by_level_2L, self._tiles_RV, self._shown_R)
        taken = torch.cat([tensor.flatten() for tensor in sums])
        for tensor in sums:
            tensor.zero_()
        return taken

    def metrics(self, taken: Sequence[float]) -> dict[str, float]:
        """Mean losses by metric name; levels without a sample are left out."""
        sums, counts = taken[:NUM_LEVELS], taken[NUM_LEVELS : 2 * NUM_LEVELS]
        by_level = {
            f"train/loss_by_sigma/{level / NUM_LEVELS:g}": total / count
            for level, (total, count) in enumerate(zip(sums, counts, strict=True))
            if count
        }
        tiles, shown_R = torch.tensor(taken[2 * NUM_LEVELS :]).tensor_split([-len(self._shown_R)])
        tiles_RV = tiles.reshape(self._tiles_RV.shape)
        return by_level | region_metrics("train", tiles_RV, shown_R, self._layout)


def training_loss(
    objective: ObjectiveSection, guidance: float | None, curves: LossCurves
) -> LossFn:
    """The weighted loss that is trained on, which leaves its parts in `curves`."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        squared_BNC = squared_errors(model, batch, guidance)
        curves.add(squared_BNC, batch)
        return weighted(squared_BNC.mean(dim=(1, 2)), batch.sigma_B, objective)

    return loss_fn


def tile_losses(squared_BNC: Tensor, batch: Batch, layout: BundleLayout) -> Tensor:
    """Mean squared error of each tile, [B, R, V]; 0 in rows that a sample doesn't show.

    Args:
        squared_BNC: of the tokens, rows first.
        batch: what they are the errors of; its tiles are square and of whole tokens.
        layout: of the bundles.
    """
    tile, num_shown = _tiling(batch, layout)
    tokens = squared_BNC.reshape(len(squared_BNC), num_shown, tile, layout.num_views, tile, -1)
    is_shown_BR1 = rows_shown(batch, layout)[..., None]
    return tokens.mean(dim=(2, 4, 5)) * is_shown_BR1  # which spreads a lone row over all


def rows_shown(batch: Batch, layout: BundleLayout) -> Tensor:
    """1 for the layout's rows that a sample shows, its first one and those below it, [B, R]."""
    _, num_shown = _tiling(batch, layout)
    below_BR = torch.arange(len(layout.rows), device=batch.row_B.device) - batch.row_B[:, None]
    return ((below_BR >= 0) & (below_BR < num_shown)).float()


def _tiling(batch: Batch, layout: BundleLayout) -> tuple[int, int]:
    """Side of a tile in tokens, and rows of tiles in a picture: all of the layout's, or one."""
    tile = batch.grid[1] // layout.num_views
    return tile, batch.grid[0] // tile


def region_metrics(
    split: str, sums_RV: Tensor, shown_R: Tensor, layout: BundleLayout
) -> dict[str, float]:
    """Mean losses of rows and views by metric name; what no sample shows is left out.

    Args:
        split: "train" or "val".
        sums_RV: of the samples' losses, on the CPU.
        shown_R: how many samples show a row.
        layout: of the bundles.
    """
    counts = shown_R.tolist()
    rows = zip(layout.rows, sums_RV.mean(dim=1).tolist(), counts, strict=True)
    totals = enumerate(sums_RV.sum(dim=0).tolist())
    views = ((f"view_{number}", total, sum(counts)) for number, total in totals)
    regions = [(name, total / num) for name, total, num in (*rows, *views) if num]
    return {f"{split}/loss_by_region/{name}": value for name, value in regions}
