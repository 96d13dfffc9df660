"""Batches of tiles, and of whole bundles, for the VAE."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.draws import EpochOrder, InMemoryStream, seeded
from kiss3d_train.whole.autoencoder import PictureBatch


class TileStream(InMemoryStream):
    """This worker's share of each global batch: even steps see tiles, odd ones whole bundles.

    The VAE's norms look at a whole picture. It has to be good at single tiles, which the 2D base
    is trained on, and at bundles of them. A bundle counts as all its tiles, so every step has
    data.global_batch of them.

    Which pictures come, and the noise of a step, are drawn for the whole global batch and shared
    out, so they do not depend on the number of workers. The noise is drawn on the device.

    Args:
        tiles_NRV3TT: uint8, on the device or pinned.
        latent: channels of a latent, and pixels per side of one of its values.
        config: the recipe.
        device: of this worker.
        rank, world_size: of the workers.

    Raises:
        InputError: a micro batch does not hold whole bundles.
    """

    def __init__(
        self,
        tiles_NRV3TT: Tensor,
        latent: tuple[int, int],
        config: TrainConfig,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        self._tiles, self._latent, self._device = tiles_NRV3TT, latent, device
        self._seed, self._micro = config.run.seed, config.scaling.micro_batch
        self._global, self._rank, self._world_size = config.data.global_batch, rank, world_size
        num_bundles, rows, views = tiles_NRV3TT.shape[:3]
        self._per_bundle = rows * views
        if self._micro % self._per_bundle:
            raise InputError(
                f"{self._micro} tiles per forward pass are no whole number of bundles",
                where="scaling.micro_batch",
                fix=f"give a multiple of {self._per_bundle}, the tiles of a bundle",
            )
        where, seed = tiles_NRV3TT.device, config.run.seed
        self._of_tiles = EpochOrder(num_bundles * self._per_bundle, f"{seed}/tiles", where)
        self._of_bundles = EpochOrder(num_bundles, f"{seed}/bundles", where)

    def micro_batches(self, step: int) -> list[PictureBatch]:
        """The batches to accumulate in optimizer step `step`, counted from 0."""
        return list(self._of_step(step))

    def _of_step(self, step: int) -> Iterator[PictureBatch]:
        is_whole = step % 2 == 1
        size = self._per_bundle if is_whole else 1
        order = self._of_bundles if is_whole else self._of_tiles
        in_all, share, micro = (
            count // size for count in (self._global, self._global // self._world_size, self._micro)
        )
        noise = self._noise(step, in_all, is_whole)
        first = self._rank * share
        indices = order.at(step // 2 * in_all + first, share)
        for start in range(0, share, micro):
            some = indices[start : start + micro]
            images = joined(self._tiles[some]) if is_whole else self._tiles.flatten(0, 2)[some]
            own = noise[first + start : first + start + micro]
            yield PictureBatch(images, own)

    def _noise(self, step: int, count: int, is_whole: bool) -> Tensor:
        channels, scale = self._latent
        rows, views, _, tile, _ = self._tiles.shape[1:]
        height, width = (rows * tile, views * tile) if is_whole else (tile, tile)
        shape = (count, channels, height // scale, width // scale)
        generator = seeded(f"{self._seed}/noise/{step}", self._device)
        return torch.randn(shape, generator=generator, device=self._device)


def joined(tiles_BRV3TT: Tensor) -> Tensor:
    """Tiles as the bundles that they are of, [B, 3, R*T, V*T]."""
    num, rows, views, _, tile, _ = tiles_BRV3TT.shape
    return tiles_BRV3TT.permute(0, 3, 1, 4, 2, 5).reshape(num, 3, rows * tile, views * tile)
