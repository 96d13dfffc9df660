"""The words around a caption; training and generation must use the same ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_VIEWS = (
    "front",
    "front right",
    "right",
    "back right",
    "back",
    "back left",
    "left",
    "front left",
)
"""By azimuth, in steps of 45 degrees."""
_DOMAINS: dict[tuple[str, ...], str] = {("rgb",): "color image", ("normal",): "normal map"}
"""What a lone row is called; words that the small bases' tokenizers have, too."""


def check_prompt(prompt: str) -> None:
    """Refuse a prompt without words, which would draw any object.

    Raises:
        InputError: it is empty, or white space only.
    """
    if not prompt.strip():
        raise InputError(
            "the prompt is empty", where="prompt", fix="say what to draw, e.g. 'a red wooden chair'"
        )


def bundle_prefix(layout: BundleLayout = PUBLISHED) -> str:
    """The sentences that ask for a bundle; the published weights were trained with them.

    For one of `BundleLayout.pictures("switch")` they name the row.

    Source: Kiss3DGen's released pipeline (github.com/EnVision-Research/Kiss3DGen).
    """
    elevations = list(dict.fromkeys(layout.elevations))
    if len(elevations) > 1:
        elevations = list(layout.elevations)
    angles = ", ".join(f"{elevation:g}" for elevation in elevations)
    grid = f"{len(layout.rows)}x{layout.num_views}"
    shown = _DOMAINS.get(layout.rows, "image")
    return f"A grid of {grid} multi-view {shown}, elevation {angles}. White background."


def clip_prompt(layout: BundleLayout = PUBLISHED) -> str:
    """What CLIP reads: the prefix alone, as its 77 tokens give one pooled vector only."""
    return bundle_prefix(layout)


def t5_prompt(caption: str, layout: BundleLayout = PUBLISHED) -> str:
    """What T5 reads: the prefix, then the caption; an empty caption leaves the prefix."""
    return f"{bundle_prefix(layout)} {caption.strip()}".strip()


def view_clip_prompt() -> str:
    """What CLIP reads where a single view is drawn."""
    return "A single view of an object. White background."


def view_t5_prompt(caption: str, azimuth: float) -> str:
    """What T5 reads where a single view is drawn: "a red sofa, front view".

    Args:
        caption: of the object; an empty one leaves the view alone.
        azimuth: of the camera in degrees; 0 is the front, 90 the right view (+X).
    """
    view = f"{_VIEWS[round(azimuth / 45) % len(_VIEWS)]} view"
    return f"{caption.strip()}, {view}" if caption.strip() else view


def t5_length(pipeline: "FluxPipeline") -> int:
    """Tokens to which this base pads every T5 prompt: 512 for FLUX.1-dev."""
    return min(512, int(pipeline.tokenizer_2.model_max_length))


def encode_captions(
    pipeline: "FluxPipeline", captions: Sequence[str], layout: BundleLayout = PUBLISHED
) -> tuple[Tensor, Tensor]:
    """Embed captions exactly as sampling does.

    Returns:
        T5 states [B, L, C] and pooled CLIP vectors [B, C'], in the encoders' dtype.
    """
    with torch.no_grad():
        states, pooled, _ = pipeline.encode_prompt(
            prompt=[clip_prompt(layout)] * len(captions),
            prompt_2=[t5_prompt(caption, layout) for caption in captions],
            max_sequence_length=t5_length(pipeline),
        )
    return states, pooled
