"""FLUX.1-dev's transformer with random weights, made on the device, and invented samples for it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kiss3d_train.data.stream import Sample

_MODELS = Path(__file__).parents[2] / "configs" / "models"
_STD = 0.02
_NUM_SAMPLES = 4


@dataclass(frozen=True)
class Size:
    """What a step is measured on.

    Attributes:
        base: folder with the configuration of the model.
        grid: rows and columns of image tokens.
    """

    base: Path
    grid: tuple[int, int]
    text_tokens: int

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of the transformer."""
        text = (self.base / "transformer" / "config.json").read_text(encoding="utf-8")
        settings: dict[str, Any] = json.loads(text)
        return settings

    @property
    def image_tokens(self) -> int:
        """Image tokens of a sample."""
        return self.grid[0] * self.grid[1]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.settings["num_attention_heads"])

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * int(self.settings["attention_head_dim"])


FULL = Size(_MODELS / "flux1-dev", grid=(64, 128), text_tokens=512)
"""A bundle of 1024 x 2048 pixels in FLUX.1-dev."""
TINY = Size(_MODELS / "tiny", grid=(4, 8), text_tokens=16)
"""What a CPU trains in seconds, to try the program out."""


def random_transformer(size: Size, device: torch.device) -> Any:
    """In bfloat16; norms 1, biases 0, matrices normal with standard deviation 0.02."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(size.settings).to(torch.bfloat16)
    transformer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=_STD, generator=generator)
            else:
                parameter.fill_(float(name.endswith("weight")))
    return transformer


class InventedSamples:
    """Encoded samples in memory, as a cache of latents and text embeddings would give them."""

    def __init__(self, size: Size) -> None:
        settings, (rows, columns) = size.settings, size.grid
        channels = settings["in_channels"] // 4
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        prompt = (size.text_tokens, settings["joint_attention_dim"])
        self._samples = [
            Sample(
                mean_chw=normal(channels, 2 * rows, 2 * columns),
                std_chw=torch.full((channels, 2 * rows, 2 * columns), 0.1),
                prompt_LD=normal(*prompt).bfloat16(),
                pooled_P=normal(settings["pooled_projection_dim"]).bfloat16(),
                bare_prompt_LD=normal(*prompt).bfloat16(),
                bare_pooled_P=normal(settings["pooled_projection_dim"]).bfloat16(),
            )
            for _ in range(_NUM_SAMPLES)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]
