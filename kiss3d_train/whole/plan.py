"""What a recipe for whole parts will take, worked out before any device is."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from kiss3d_infer.flux.base import read_config
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import ShardIndex, load_index
from kiss3d_train.data.storage import exists
from kiss3d_train.memory import GIB
from kiss3d_train.whole.config import Part, Subject

_MOMENTS = 2
"""Of AdamW, float32 as the weights and their gradients."""


@dataclass(frozen=True)
class WholePlan:
    """The figures of a recipe.

    Attributes:
        num_weights: by part that trains.
        index: of the data set; None while it does not exist.
        unit: what a batch is counted in.
    """

    config: TrainConfig
    num_weights: dict[str, int]
    index: ShardIndex | None
    unit: Literal["tiles"] | Subject

    def figures(self) -> list[tuple[str, str]]:
        """Names and values of everything worked out, for people."""
        num = sum(self.num_weights.values())
        has_average = int(self.config.optimizer.ema_decay is not None)
        weights = ", ".join(f"{part} {n / 1e6:,.2f} M" for part, n in self.num_weights.items())
        checkpoint, step = 1 + _MOMENTS + has_average, 2 + _MOMENTS + has_average
        return [
            ("global batch", f"{self.config.batch_arithmetic} {self.unit}"),
            ("weights that train", weights),
            ("checkpoint", f"{4 * checkpoint * num / 2**20:,.1f} MiB"),
            *self._data_figures(),
            (
                "memory per worker",
                f"{4 * step * num / GIB:,.1f} GiB of weights and what belongs to them, "
                "the pictures, and what a forward pass keeps",
            ),
        ]

    def _data_figures(self) -> list[tuple[str, str]]:
        if self.index is None:
            return [("data", f"{self.config.data.shards} does not exist yet")]
        views, rows = self.index.layout.num_views, len(self.index.layout.rows)
        per_bundle = {"tiles": views * rows, "views": views, "bundles": 1}[self.unit]
        pictures = per_bundle * sum(self.index.counts("train"))
        epochs = self.config.run.steps * self.config.data.global_batch / pictures
        return [
            ("data", str(self.index)),
            (f"{self.unit} to train on", f"{pictures:,}"),
            ("epochs in all", f"{epochs:.1f} in {self.config.run.steps} steps"),
        ]


def plan_whole(config: TrainConfig) -> WholePlan:
    """Work out a recipe's figures; needs the base's configuration files, not its weights.

    Raises:
        InputError: the base's configuration cannot be read.
    """
    if config.full is None:
        raise ValueError("this recipe trains an adapter")
    return WholePlan(
        config=config,
        num_weights={part: _num_weights(config, part) for part in config.full.parts},
        index=load_index(config.data.shards) if exists(config.data.shards) else None,
        unit="tiles" if config.full.is_vae else config.full.draws,
    )


def _num_weights(config: TrainConfig, part: Part) -> int:
    settings = read_config(config.base.path, f"{part}/config.json")
    with torch.device("meta"):
        network = _network(part, settings)
    return sum(parameter.numel() for parameter in network.parameters())


def _network(part: Part, settings: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    match part:
        case "vae":
            return AutoencoderKL.from_config(settings)
        case "transformer":
            return FluxTransformer2DModel.from_config(settings)
        case "text_encoder":
            return CLIPTextModel(CLIPTextConfig.from_dict(settings))
        case "text_encoder_2":
            return T5EncoderModel(T5Config.from_dict(settings))
