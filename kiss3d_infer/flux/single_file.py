"""The transformer in a single-file base: its names, and the scales of 8-bit weights.

A file has diffusers' names or those of the original code, behind ComfyUI's prefix if it holds other
parts too. 8-bit weights may have a scale each, as ComfyUI writes them: `weight = fp8 * scale`.
diffusers' converter is not used: it drops keys it does not know, scales among them, and holds
FLUX.1-dev's width.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError, first_of
from kiss3d_infer.flux.lora_names import layers_of
from kiss3d_infer.flux.packed import filled

_PREFIX = re.compile(r"^(model\.)?diffusion_model\.")
_OTHER_PARTS = ("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")
_NORM = re.compile(
    r"(?P<block>double_blocks\.\d+\.(?P<side>img|txt)_attn|single_blocks\.\d+)"
    r"\.norm\.(?P<which>query|key)_norm\.scale"
)
_SCALES = (".scale_weight", ".weight_scale")
_OF_COMPUTING_IN_8_BITS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
"""Scales of inputs, and remarks: nothing that weights in more bits need."""
_SHIFT_THEN_SCALE = "final_layer.adaLN_modulation.1"
"""diffusers holds this layer's two halves in the other order."""


def load_transformer(file: Path, folder: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Build the transformer of a single file, ready for inference.

    Args:
        file: .safetensors.
        folder: the transformer's, with its config.json.
        dtype: the weights are converted to it.

    Returns:
        It, and the names of weights that the file lacks.

    Raises:
        InputError: the file holds weights that do not belong there, or are quantized in a way that
            is not understood.
        SafetensorError, OSError: it cannot be read.
    """
    from diffusers import FluxTransformer2DModel
    from safetensors import safe_open

    config = FluxTransformer2DModel.load_config(folder)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    with safe_open(file, framework="pt") as content:
        names = content.keys()
        own = [name for name in names if not name.startswith(_OTHER_PARTS)]
        weights = to_diffusers(restored(own, content.get_tensor, dtype, file), width, file)
    return filled(FluxTransformer2DModel, folder, weights, file)


def require_unscaled(file: Path) -> None:
    """Refuse a file whose text encoders or VAE have scales, which diffusers would leave out.

    Raises:
        InputError: they have.
        SafetensorError, OSError: it cannot be read.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        names = content.keys()
    if scales := [x for x in names if x.startswith(_OTHER_PARTS) and x.endswith(_SCALES)]:
        raise InputError(
            f"scales of a text encoder or VAE in a single file are not read: {first_of(scales)}",
            where=file,
            fix="put these parts beside the file, in folders as diffusers has them",
        )


def restored(
    names: Sequence[str], read: Callable[[str], Tensor], dtype: torch.dtype, file: Path
) -> Iterator[tuple[str, Tensor]]:
    """Weights in a floating-point type, multiplied by their scales, without ComfyUI's prefix.

    Args:
        names: of all of the transformer's tensors.
        read: a tensor by its name.
        dtype: of the result.
        file: named in errors.

    Raises:
        InputError: a weight is an integer, or a scale fits no weight.
    """
    weights = [name for name in names if not name.endswith((*_SCALES, *_OF_COMPUTING_IN_8_BITS))]
    scales = [name for name in names if name.endswith(_SCALES)]
    scale_of = {f"{name.rpartition('.')[0]}.weight": name for name in scales}
    if lone := sorted(scale_of.keys() - set(weights)):
        raise _not_understood(f"{scale_of[lone[0]]} scales nothing", file)
    for name in weights:
        weight = read(name)
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise _not_understood(f"weights in {kind} are not read, such as {name}", file)
        if name in scale_of:
            scale = read(scale_of[name]).float()
            if scale.numel() not in (1, weight.shape[0]):
                what = f"{scale_of[name]} holds neither one scale nor one for each row"
                raise _not_understood(what, file)
            weight = weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))
        # Copied, as what is mapped from a file may begin at an odd address, and end with the file.
        yield _PREFIX.sub("", name), weight.to(dtype, copy=True)


def to_diffusers(
    weights: Iterable[tuple[str, Tensor]], width: int, file: Path
) -> dict[str, Tensor]:
    """Weights by diffusers' names. What is not the original code's keeps its name.

    Args:
        weights: with their names.
        width: of a token inside the transformer.
        file: named in errors.

    Raises:
        InputError: a fused layer has not the size of its parts, or a layer is there twice.
    """
    renamed: dict[str, Tensor] = {}
    for name, weight in weights:
        parts = _parts(name, weight, width, file)
        if twice := renamed.keys() & parts.keys():
            raise InputError(f"{min(twice)} is there twice, one time as {name}", where=file)
        renamed |= parts
    return renamed


def _parts(name: str, weight: Tensor, width: int, file: Path) -> dict[str, Tensor]:
    if norm := _NORM.fullmatch(name):
        return {_norm_name(norm): weight}
    module, _, kind = name.rpartition(".")
    layers = layers_of(module) if kind in ("weight", "bias") else ()
    if not layers:
        return {name: weight}
    if module == _SHIFT_THEN_SCALE:
        weight = torch.cat(weight.chunk(2)[::-1])
    num_rows = weight.shape[0]
    fused = [width] * 3 + [num_rows - 3 * width] * (len(layers) == 4)
    sizes = fused if len(layers) > 1 else [num_rows]
    if min(sizes) <= 0 or sum(sizes) != num_rows:
        raise InputError(
            f"{name} has {num_rows} rows, which does not fit tokens of {width} numbers",
            where=file,
            fix="give a file of the architecture that transformer/config.json describes",
        )
    parts = torch.split(weight, sizes)
    if len(parts) > 1:
        parts = tuple(part.clone() for part in parts)  # a view would keep the whole in memory
    return {f"{layer}.{kind}": part for layer, part in zip(layers, parts, strict=True)}


def _not_understood(what: str, file: Path) -> InputError:
    return InputError(
        f"the weights are quantized in an unknown way: {what}",
        where=file,
        fix="give a file in bf16, or in fp8 with at most a scale for each weight or row",
    )


def _norm_name(norm: re.Match[str]) -> str:
    block, letter = norm["block"], norm["which"][0]
    number = block.split(".")[1]
    if norm["side"] is None:
        return f"single_transformer_blocks.{number}.attn.norm_{letter}.weight"
    added = "added_" if norm["side"] == "txt" else ""
    return f"transformer_blocks.{number}.attn.norm_{added}{letter}.weight"
