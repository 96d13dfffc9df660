"""Training of what draws: encode all views or bundles, train, measure held-out ones, export."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kiss3d_infer.flux.base import PARTS, load_base
from kiss3d_infer.flux.prompt import clip_prompt, view_clip_prompt
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.draws import seeded
from kiss3d_train.data.resident import ShowFn
from kiss3d_train.data.shards import ShardReader, Split
from kiss3d_train.data.tile import check_tile
from kiss3d_train.engine import Engine
from kiss3d_train.loop import Batches
from kiss3d_train.objective import weighted
from kiss3d_train.recorded import record_passes
from kiss3d_train.validation import shares
from kiss3d_train.whole.config import FullSection
from kiss3d_train.whole.export import load_weights, write_base
from kiss3d_train.whole.flux import WholeFlux, view_losses
from kiss3d_train.whole.pictures import read_pictures
from kiss3d_train.whole.views import ViewBatch, Views, ViewStream, encode_views


class ViewTask:
    """See `Task`."""

    def __init__(
        self,
        config: TrainConfig,
        full: FullSection,
        reader: ShardReader,
        device: torch.device,
        show: ShowFn | None,
    ) -> None:
        check_tile(reader.index.tile, config.data.shards)
        self._config, self._full, self._device = config, full, device
        layout, held_out = reader.index.layout, config.validation.samples
        of_bundles = full.draws == "bundles"
        rgb = layout.rows.index("rgb")
        pipeline = load_base(config.base.path, dtype="float32", parts=PARTS, device=str(device))

        def views_of(split: Split, most: int | None, told: ShowFn | None) -> Views:
            pictures = read_pictures(
                reader,
                split,
                readers=config.data.readers,
                rows=slice(None) if of_bundles else slice(rgb, rgb + 1),
                most=most,
                show=told,
            )
            return encode_views(pipeline, pictures, layout, full.draws, device, told)

        views = views_of("train", None, show)
        self.has_validation = held_out > 0 and reader.num_samples("val") > 0
        if self.has_validation:
            self._held_out = views_of("val", held_out, None)
        self.model: nn.Module = WholeFlux(
            pipeline,
            full.parts,
            config.objective.guidance,
            clip_prompt(layout) if of_bundles else view_clip_prompt(),
            compiled=config.engine.compiles_on(device.type),
        )
        if config.engine.records_on(device.type):
            record_passes(self.model)
        self.stream: Batches = ViewStream(views, config, dist.get_rank(), dist.get_world_size())

    def losses(self, model: nn.Module, batch: ViewBatch) -> Tensor:
        """See `Task.losses`."""
        return weighted(view_losses(model, batch), batch.sigma_B, self._config.objective)

    def validate(self, engine: Engine) -> dict[str, float]:
        """Mean loss of the held-out views at fixed noise levels, with fixed noise. Collective.

        The noise is drawn by the CPU, so it is the same in every run and on every device.
        """
        sigmas, views = self._config.validation.sigmas, self._held_out
        noise = self._held_out_noise()
        pairs = [(index, k) for k in range(len(sigmas)) for index in range(len(views))]
        sums = torch.zeros(len(sigmas), device=self._device)
        for chunk, counted in shares(pairs, self._config.scaling.micro_batch):
            index = torch.tensor([index for index, _ in chunk], device=self._device)
            level = torch.tensor([k for _, k in chunk], device=self._device)
            sigma = torch.tensor([sigmas[k] for _, k in chunk], device=self._device)
            losses = engine.losses(view_losses, views.batch(index, noise[index], sigma))
            sums.index_add_(0, level[:counted], losses[:counted])
        dist.all_reduce(sums)
        means = (sums / len(views)).tolist()
        by_sigma = {f"val/loss_sigma_{s:g}": m for s, m in zip(sigmas, means, strict=True)}
        return {"val/loss": sum(means) / len(means), **by_sigma}

    def _held_out_noise(self) -> Tensor:
        shape = self._held_out.latents_OVNC.flatten(0, 1).shape
        generator = seeded("validation", torch.device("cpu"))
        return torch.randn(shape, generator=generator).to(self._device)

    def export(self, weights: Mapping[str, Tensor], out: Path) -> None:
        """See `Task.export`."""
        base, parts = self._config.base.path, self._full.parts
        pipeline = load_base(base, dtype="float32", parts=parts)
        networks = {part: getattr(pipeline, part) for part in parts}
        for part, network in networks.items():
            load_weights(network, part, weights)
        write_base(base, networks, self._full.save_dtype, out)
