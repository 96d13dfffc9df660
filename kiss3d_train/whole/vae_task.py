"""Training of the VAE: read all tiles, train, measure held-out ones, fold and export."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kiss3d_infer.flux.base import load_base
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.draws import EpochOrder
from kiss3d_train.data.resident import ShowFn
from kiss3d_train.data.shards import ShardReader
from kiss3d_train.engine import Engine
from kiss3d_train.loop import Batches
from kiss3d_train.validation import shares
from kiss3d_train.whole.autoencoder import PictureBatch, WholeVae, psnr, vae_losses
from kiss3d_train.whole.calibrate import calibrate
from kiss3d_train.whole.config import FullSection
from kiss3d_train.whole.export import load_weights, write_base
from kiss3d_train.whole.pictures import read_pictures, resident
from kiss3d_train.whole.tiles import TileStream, joined

_MEASURED_TILES = 1024
"""Training tiles that the latents' factors are measured with."""


class VaeTask:
    """See `Task`."""

    def __init__(
        self,
        config: TrainConfig,
        full: FullSection,
        reader: ShardReader,
        device: torch.device,
        show: ShowFn | None,
    ) -> None:
        self._config, self._full, self._device = config, full, device
        self._rows = reader.index.layout.rows
        torch.backends.cudnn.benchmark = True  # the same few shapes, thousands of times
        vae = load_base(config.base.path, dtype="float32", parts=("vae",)).vae.to(device)
        self.model: nn.Module = WholeVae(vae)
        readers, held_out = config.data.readers, config.validation.samples
        pictures = read_pictures(reader, "train", readers=readers, show=show)
        self._tiles = resident(pictures.tiles_NRV3TT, device)
        self.has_validation = held_out > 0 and reader.num_samples("val") > 0
        if self.has_validation:
            found = read_pictures(reader, "val", readers=readers, most=held_out)
            self._held_out = found.tiles_NRV3TT.to(device)
        self.stream: Batches = TileStream(
            self._tiles,
            (vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)),
            config,
            device,
            dist.get_rank(),
            dist.get_world_size(),
        )

    def losses(self, model: nn.Module, batch: PictureBatch) -> Tensor:
        """See `Task.losses`."""
        return vae_losses(model, batch, self._full.kl_weight)

    def validate(self, engine: Engine) -> dict[str, float]:
        """The loss of held-out tiles, and mean PSNR in dB: of them, by row, and of whole bundles.

        All of it from the posterior's mean. Collective.
        """
        num, num_rows, num_views = self._held_out.shape[:3]
        per_pass = self._config.scaling.micro_batch // (num_rows * num_views)
        # PSNR by row and of bundles, the loss, and how many bundles.
        sums = torch.zeros(num_rows + 3, device=self._device)
        for chunk, counted in shares(range(num), per_pass):
            bundles = self._held_out[chunk]
            tiles = bundles.flatten(0, 2)
            of_tiles = engine.losses(psnr, tiles)
            by_row = of_tiles.reshape(per_pass, num_rows, num_views).mean(dim=2)[:counted]
            losses = engine.losses(self.losses, PictureBatch(tiles, None)).reshape(per_pass, -1)
            of_bundles = engine.losses(psnr, joined(bundles))[:counted]
            sums[:num_rows] += by_row.sum(dim=0)
            sums[num_rows] += of_bundles.sum()
            sums[-2] += losses[:counted].mean(dim=1).sum()
            sums[-1] += counted
        dist.all_reduce(sums)
        *by_row_means, of_bundles_mean, loss = (sums[:-1] / sums[-1]).tolist()
        rows = {f"val/psnr_{n}": db for n, db in zip(self._rows, by_row_means, strict=True)}
        mean = sum(by_row_means) / num_rows
        return {"val/loss": loss, "val/psnr": mean, **rows, "val/psnr_bundle": of_bundles_mean}

    def export(self, weights: Mapping[str, Tensor], out: Path) -> None:
        """See `Task.export`; the latents get unit deviation by channel (`calibrate`)."""
        base = self._config.base.path
        vae = load_base(base, dtype="float32", parts=("vae",)).vae
        load_weights(vae, "vae", weights)
        vae.to(self._device)
        tiles = self._tiles.flatten(0, 2)
        order = EpochOrder(len(tiles), f"{self._config.run.seed}/measured", tiles.device)
        calibrate(vae, tiles[order.at(0, min(_MEASURED_TILES, len(tiles)))])
        write_base(base, {"vae": vae.cpu()}, self._full.save_dtype, out)
