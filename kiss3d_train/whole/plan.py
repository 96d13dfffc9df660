"""What a recipe for whole parts will take, worked out before any device is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kiss3d_infer.flux.base import read_config
from kiss3d_train.checkpoint import checkpoints_of
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.shards import ShardIndex, Split, load_index
from kiss3d_train.data.storage import exists
from kiss3d_train.data.tile import PIXELS_PER_TOKEN, check_tile
from kiss3d_train.disk import Need
from kiss3d_train.figures import Row, buckets, card, epochs, on_disks
from kiss3d_train.memory import GIB, Room, in_bytes, room_of
from kiss3d_train.whole.config import FullSection, Part, Subject
from kiss3d_train.whole.export import require_folder

_MOMENTS = 2
"""Of AdamW, float32 as the weights and their gradients."""


@dataclass(frozen=True)
class WholePlan:
    """What follows from a recipe; `whole_figures` has it in words.

    Attributes:
        num_weights: by part that trains.
        index: of the data set; None while it does not exist.
        unit: what a batch is counted in.
        room: of a worker's device; None on a CPU.
    """

    config: TrainConfig
    full: FullSection
    num_weights: dict[str, int]
    index: ShardIndex | None
    unit: Literal["tiles"] | Subject
    room: Room | None

    @property
    def num_trainable(self) -> int:
        """Weights of all parts that train."""
        return sum(self.num_weights.values())

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        return 4 * (1 + _MOMENTS + self._has_average) * self.num_trainable

    @property
    def state_gib(self) -> float:
        """GiB per worker of weights, gradients, moments and the average if one is kept."""
        return 4 * (2 + _MOMENTS + self._has_average) * self.num_trainable / GIB

    @property
    def units_per_bundle(self) -> int:
        """How many units a bundle gives; 0 while there is no data set."""
        if self.index is None:
            return 0
        views, rows = self.index.layout.num_views, len(self.index.layout.rows)
        return {"tiles": views * rows, "views": views, "bundles": 1}[self.unit]

    @property
    def image_tokens(self) -> int | None:
        """Of what the transformer draws; None for the VAE, and while there is no data set."""
        if self.index is None or self.full.is_vae:
            return None
        of_tile = (self.index.tile // PIXELS_PER_TOKEN) ** 2
        if self.unit == "views":
            return of_tile
        return of_tile * self.index.layout.num_views * len(self.index.layout.rows)

    def num_bundles(self, split: Split) -> int:
        """Bundles of a split; 0 while there is no data set."""
        return 0 if self.index is None else sum(self.index.counts(split))

    def needs(self) -> list[Need]:
        """Everything large that the run writes on disks.

        A checkpoint is written aside before an old one goes, and so is the base.
        """
        config = self.config
        kept = (config.checkpoint.keep + 1) * self.checkpoint_bytes
        files = [file for file in config.base.path.rglob("*") if file.is_file()]
        value_bytes = 2 if self.full.save_dtype == "bfloat16" else 4
        base = sum(file.stat().st_size for file in files) + value_bytes * self.num_trainable
        return [
            Need("checkpoints", checkpoints_of(config), kept),
            Need("the base with its new parts", config.run.dir, base),
        ]

    @property
    def _has_average(self) -> bool:
        return self.config.optimizer.ema_decay is not None


def whole_figures(plan: WholePlan) -> list[Row]:
    """Names and values of everything worked out, for people."""
    weights = ", ".join(f"{part} {n / 1e6:,.2f} M" for part, n in plan.num_weights.items())
    return [
        ("global batch", f"{plan.config.batch_arithmetic} {plan.unit}"),
        ("weights that train", weights),
        *buckets(plan.config, plan.num_trainable),
        ("checkpoint", in_bytes(plan.checkpoint_bytes)),
        *_data(plan),
        (
            "memory per worker",
            f"{in_bytes(plan.state_gib * GIB)} of weights and what belongs to them, "
            "the pictures, and what a forward pass keeps",
        ),
        *card(plan.room, plan.state_gib, "for the pictures and the passes"),
        *on_disks(plan.needs()),
    ]


def _data(plan: WholePlan) -> Iterator[Row]:
    if plan.index is None:
        yield "data", f"{plan.config.data.shards} does not exist yet"
        return
    units = plan.units_per_bundle * plan.num_bundles("train")
    yield "data", str(plan.index)
    yield f"{plan.unit} to train on", f"{units:,}"
    yield from epochs(plan.config, plan.index, units, plan.unit)


def plan_whole(config: TrainConfig) -> WholePlan:
    """Work out a recipe's figures; needs the base's configuration files, not its weights.

    Raises:
        InputError: the base is a single file, its configuration cannot be read, or the tiles of
            the data set cannot be trained on.
    """
    full = config.full
    if full is None:
        raise ValueError("this recipe trains an adapter")
    require_folder(config.base.path)
    index = load_index(config.data.shards) if exists(config.data.shards) else None
    if index is not None and not full.is_vae:
        check_tile(index.tile, config.data.shards)
    return WholePlan(
        config=config,
        full=full,
        num_weights={part: _num_weights(config, part) for part in full.parts},
        index=index,
        unit="tiles" if full.is_vae else full.draws,
        room=room_of(config),
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
