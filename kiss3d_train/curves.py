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

    def add(self, squared_BNC: Tensor, batch: Batch) -> None:
        """Count a batch's squared errors."""
        tiles_BRV = tile_losses(squared_BNC.detach(), batch.grid, self._layout)
        level_B = (batch.sigma_B * NUM_LEVELS).long().clamp(0, NUM_LEVELS - 1)
        is_in_BL = (level_B[:, None] == self._levels_L).float()
        loss_B1 = tiles_BRV.mean(dim=(1, 2))[:, None]
        self._by_level_2L += torch.stack([(loss_B1 * is_in_BL).sum(dim=0), is_in_BL.sum(dim=0)])
        self._tiles_RV += tiles_BRV.sum(dim=0)

    def take(self) -> Tensor:
        """All sums as one vector on the device, to be added over workers; starts anew."""
        taken = torch.cat([self._by_level_2L.flatten(), self._tiles_RV.flatten()])
        self._by_level_2L.zero_()
        self._tiles_RV.zero_()
        return taken

    def metrics(self, taken: Sequence[float]) -> dict[str, float]:
        """Mean losses by metric name; levels without a sample are left out."""
        sums, counts = taken[:NUM_LEVELS], taken[NUM_LEVELS : 2 * NUM_LEVELS]
        by_level = {
            f"train/loss_by_sigma/{level / NUM_LEVELS:g}": total / count
            for level, (total, count) in enumerate(zip(sums, counts, strict=True))
            if count
        }
        num_samples = sum(counts)
        if not num_samples:
            return {}
        tiles_RV = torch.tensor(taken[2 * NUM_LEVELS :]).reshape(self._tiles_RV.shape) / num_samples
        return by_level | region_metrics("train", tiles_RV, self._layout)


def training_loss(
    objective: ObjectiveSection, guidance: float | None, curves: LossCurves
) -> LossFn:
    """The weighted loss that is trained on, which leaves its parts in `curves`."""

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        squared_BNC = squared_errors(model, batch, guidance)
        curves.add(squared_BNC, batch)
        return weighted(squared_BNC.mean(dim=(1, 2)), batch.sigma_B, objective)

    return loss_fn


def tile_losses(squared_BNC: Tensor, grid: tuple[int, int], layout: BundleLayout) -> Tensor:
    """Mean squared error of each tile, [B, R, V].

    Args:
        squared_BNC: of the tokens, rows first.
        grid: rows and columns of tokens, multiples of R and V as tiles are of whole tokens.
        layout: of the bundle.
    """
    num_rows, num_views = len(layout.rows), layout.num_views
    height, width = grid[0] // num_rows, grid[1] // num_views
    tiles = squared_BNC.reshape(len(squared_BNC), num_rows, height, num_views, width, -1)
    return tiles.mean(dim=(2, 4, 5))


def region_metrics(split: str, tiles_RV: Tensor, layout: BundleLayout) -> dict[str, float]:
    """Losses of rows and views by metric name; `tiles_RV` is on the CPU."""
    names = (*layout.rows, *(f"view_{number}" for number in range(layout.num_views)))
    values = [*tiles_RV.mean(dim=1).tolist(), *tiles_RV.mean(dim=0).tolist()]
    return {f"{split}/loss_by_region/{n}": value for n, value in zip(names, values, strict=True)}
