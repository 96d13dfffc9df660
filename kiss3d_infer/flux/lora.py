"""LoRA files: load diffusers', kohya's, ComfyUI's and x-flux' layouts, save and convert."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout, Domains
from kiss3d_infer.config import Config, explain
from kiss3d_infer.errors import InputError, first_of
from kiss3d_infer.files import sha256_of, writing
from kiss3d_infer.flux.base import quiet_libraries
from kiss3d_infer.flux.lora_names import Exported, LoraNameError, Pair, from_layers, to_layers
from kiss3d_infer.flux.packed import read_tensors

if TYPE_CHECKING:
    from diffusers import FluxPipeline

FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""

LoraFormat = Literal["diffusers", "kohya", "comfyui", "x-flux"]

_PREFIX = "transformer."
_WEIGHT = re.compile(r"transformer\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_MATRICES = ("lora_A.weight", "lora_B.weight", "down.weight", "up.weight")
_OWN_SCALES = ("alpha_pattern", "use_rslora")
_DIFFUSERS_HEADER = "lora_adapter_metadata"
_OUR_HEADER = "kiss3d"


class LoraMetadata(Config):
    """What a LoRA file of ours says about itself."""

    version: Literal[1] = 1
    rank: int
    """Of every layer."""
    alpha: float
    """delta W = alpha / rank * B @ A."""
    base: str
    """Identity of the base it was trained on (`base_identity`): a record that nothing compares,
    because computing it reads every weight of the base."""
    data: str
    """Digest of the data it was trained on; a record too."""
    layout: BundleLayout
    """Of the bundles it draws."""
    domains: Domains = "bundle"
    """How it draws them."""


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA that was applied; `metadata` is None for files that others wrote."""

    rank: int
    num_layers: int
    format: LoraFormat
    metadata: LoraMetadata | None = None

    @property
    def layout(self) -> BundleLayout:
        """What its bundles show; files of others are taken for the published convention's."""
        return self.metadata.layout if self.metadata else PUBLISHED

    @property
    def domains(self) -> Domains:
        """How it draws them; files of others draw them whole."""
        return self.metadata.domains if self.metadata else "bundle"


def apply_lora(pipeline: "FluxPipeline", path: Path, scale: float = 1.0) -> LoraInfo:
    """Load a LoRA into the pipeline and make it the active one.

    Every tensor of the file must belong to a linear layer of the transformer and have its shape;
    nothing is skipped in silence. An alpha is honoured in every format.

    Args:
        pipeline: with its transformer.
        path: a .safetensors file, or a folder with `pytorch_lora_weights.safetensors`.
        scale: strength; 1 is what it was trained for.

    Raises:
        InputError: the file cannot be read, or does not fit the base.
    """
    file = _lora_file(path)
    tensors, header = read_tensors(file, fix=None)
    metadata = _parse_metadata(header, file)
    lora_format = _format_of(tensors, file)
    _check_shapes(tensors, file)
    is_native = lora_format == "diffusers" and not any(key.endswith(".alpha") for key in tensors)
    weights = tensors if is_native else _converted(tensors, file)
    ranks = _check_fit(weights, pipeline.transformer, file)
    name = f"lora_{lora_identity(file)[:16]}"
    if name not in getattr(pipeline.transformer, "peft_config", {}):
        # Only a path brings the header along, with the alpha in it.
        source = str(file) if is_native else weights
        # peft's and diffusers' hints are of no use here: the fit is checked above.
        with warnings.catch_warnings(action="ignore"), quiet_libraries(), _explaining(file):
            pipeline.load_lora_weights(source, adapter_name=name, local_files_only=True)
    pipeline.set_adapters([name], [scale])
    return LoraInfo(max(ranks.values()), len(ranks), lora_format, metadata)


def lora_identity(path: Path) -> str:
    """SHA-256 of the file."""
    return sha256_of(_lora_file(path))


def read_lora(path: Path) -> tuple[dict[str, Tensor], float | None]:
    """The weights of a LoRA in diffusers' layout, named as `save_lora` takes them, and its alpha.

    Args:
        path: a .safetensors file, or a folder with `pytorch_lora_weights.safetensors`.

    Returns:
        The weights, and the alpha that the header states; None if it states none, which means the
        rank.

    Raises:
        InputError: the file cannot be read, or has another layout.
    """
    file = _lora_file(path)
    tensors, header = read_tensors(file, fix=None)
    if strangers := [key for key in tensors if not _WEIGHT.fullmatch(key)]:
        raise InputError(
            f"not a LoRA of the transformer in diffusers' layout: {first_of(strangers)}", where=file
        )
    alpha = _stated_alpha(header, file)
    return {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}, alpha


def save_lora(folder: Path, weights: Mapping[str, Tensor], metadata: LoraMetadata) -> Path:
    """Write `pytorch_lora_weights.safetensors`, which `load_lora_weights` takes as it is.

    Args:
        folder: created if needed.
        weights: peft's state dict of the transformer, `<layer>.lora_A.weight` [rank, in] and
            `<layer>.lora_B.weight` [out, rank].
        metadata: goes into the file's header.

    Returns:
        The file.
    """
    from safetensors.torch import save_file

    named = {_PREFIX + key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
    if strangers := [key for key in named if not _WEIGHT.fullmatch(key)]:
        raise ValueError(f"not LoRA weights: {strangers[:3]}")
    layers = sorted({key.split(".lora_")[0].removeprefix(_PREFIX) for key in named})
    adapter = {"r": metadata.rank, "lora_alpha": metadata.alpha, "target_modules": layers}
    header = {
        "format": "pt",
        _DIFFUSERS_HEADER: json.dumps({_PREFIX + key: value for key, value in adapter.items()}),
        _OUR_HEADER: metadata.model_dump_json(),
    }
    path = folder / FILE_NAME
    with writing(path) as aside:
        save_file(named, aside, metadata=header)
    return path


def convert_lora(source: Path, out: Path, to: "Exported | Literal['diffusers']") -> None:
    """Write a LoRA of any layout in another one, with the same delta W of every layer.

    The alpha is multiplied into the weights where it is not the rank. In all but "diffusers",
    layers that the original code fuses become one, block-diagonal if they share no matrix.

    Args:
        source: a .safetensors file, or a folder with `pytorch_lora_weights.safetensors`.
        out: the .safetensors file to write.
        to: its layout.

    Raises:
        InputError: the file cannot be read, holds something that is no LoRA of Flux or that has no
            place in the other layout, or `out` is no .safetensors file.
    """
    from safetensors.torch import save_file

    if out.suffix != ".safetensors":
        raise InputError("a LoRA must be .safetensors", where=out, fix="give it this ending")
    file = _lora_file(source)
    tensors, header = read_tensors(file, fix=None)
    metadata = _parse_metadata(header, file)
    _format_of(tensors, file)
    _check_shapes(tensors, file)
    layers = _layers(tensors | _alphas_of(tensors, header, file), file)
    try:
        named = _named(layers) if to == "diffusers" else from_layers(layers, to)
    except LoraNameError as error:
        raise InputError(
            f"this LoRA cannot be converted to {to}: {error}",
            where=file,
            fix="choose another layout, or train with adapter.targets=attention",
        ) from error
    ours = metadata and metadata.model_copy(update={"alpha": float(metadata.rank)})
    with writing(out) as aside:
        save_file(
            named,
            aside,
            metadata={"format": "pt"} | ({_OUR_HEADER: ours.model_dump_json()} if ours else {}),
        )


def _stated_alpha(header: Mapping[str, str], file: Path) -> float | None:
    with _explaining(file):
        stated = json.loads(header.get(_DIFFUSERS_HEADER, "{}"))
        alpha = stated.get(f"{_PREFIX}lora_alpha")
        alpha = None if alpha is None else float(alpha)
        has_own_scales = any(stated.get(_PREFIX + key) for key in _OWN_SCALES)
    if has_own_scales:
        raise InputError("this LoRA does not scale all layers by alpha / rank", where=file)
    return alpha


def _alphas_of(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], file: Path
) -> dict[str, Tensor]:
    """The alpha of diffusers' header as a tensor of each layer, as other layouts have it."""
    if _DIFFUSERS_HEADER not in header:
        return {}
    alpha = _stated_alpha(header, file)
    downs = [key for key in tensors if key.endswith(".lora_A.weight")]
    return (
        {}
        if alpha is None
        else {key.removesuffix("lora_A.weight") + "alpha": torch.tensor(alpha) for key in downs}
    )


def _lora_file(path: Path) -> Path:
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            "there is no LoRA here", where=file, fix=f"give a file or a folder with {FILE_NAME}"
        )
    if file.suffix != ".safetensors":
        raise InputError(
            "a LoRA must be .safetensors", where=file, fix="convert it; pickles may run code"
        )
    return file


def _parse_metadata(header: Mapping[str, str], file: Path) -> LoraMetadata | None:
    if _OUR_HEADER not in header:
        return None
    try:
        return LoraMetadata.model_validate_json(header[_OUR_HEADER])
    except ValidationError as error:
        raise InputError(
            f"this version cannot read the LoRA's header: {explain(error, LoraMetadata)}",
            where=file,
            fix="use the version of kiss3d that wrote it",
        ) from error


@contextmanager
def _explaining(file: Path) -> Iterator[None]:
    """The tensors fit by now, so what the libraries still stumble over is the header."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"the header's {_DIFFUSERS_HEADER!r} is damaged: {type(error).__name__}", where=file
        ) from error


def _format_of(tensors: Mapping[str, Tensor], file: Path) -> LoraFormat:
    """Which layout it is; all are read by the same table, so this is for people."""
    if any(".processor." in key for key in tensors):
        return "x-flux"
    if any(key.startswith("diffusion_model.") for key in tensors):
        return "comfyui"
    if any(".lora_down." in key for key in tensors):
        return "kohya"
    if any(".lora_A." in key for key in tensors):
        return "diffusers"
    raise InputError("no LoRA weights in this file", where=file, fix="give a LoRA for Flux")


def _converted(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Rename to diffusers' keys, with every alpha multiplied into the weights."""
    return _named(_layers(tensors, file))


def _layers(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Pair]:
    try:
        return to_layers(tensors)
    except LoraNameError as error:
        raise InputError(f"this LoRA cannot be converted: {error}", where=file) from error


def _named(layers: Mapping[str, Pair]) -> dict[str, Tensor]:
    sides = {"A": attrgetter("down"), "B": attrgetter("up")}
    return {
        f"{_PREFIX}{layer}.lora_{side}.weight": take(pair).contiguous()
        for layer, pair in layers.items()
        for side, take in sides.items()
    }


def _check_shapes(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse what no LoRA holds before it is converted: the converters take shapes for granted."""
    problems = []
    for key, tensor in tensors.items():
        if key.endswith(_MATRICES) and (tensor.ndim != 2 or tensor.numel() == 0):
            problems.append(f"{key} is {tuple(tensor.shape)}, not a matrix")
        if key.endswith(".alpha") and tensor.numel() != 1:
            problems.append(f"{key} is {tuple(tensor.shape)}, not a number")
    if problems:
        raise InputError(f"this LoRA is damaged: {first_of(problems)}", where=file)


def _check_fit(weights: Mapping[str, Tensor], transformer: nn.Module, file: Path) -> dict[str, int]:
    """Return each layer's rank, or say which tensors have no place in the base."""
    linear = {
        name: module
        for name, module in transformer.named_modules()
        if hasattr(module, "in_features")
    }
    problems: list[str] = []
    ranks: dict[str, int] = {}
    for key, tensor in weights.items():
        match = _WEIGHT.fullmatch(key)
        layer = linear.get(match["layer"]) if match else None
        if match is None or layer is None:
            problems.append(f"{key} has no place in it")
            continue
        side = match["side"]
        rank = tensor.shape[0 if side == "A" else 1]
        expected = (rank, layer.in_features) if side == "A" else (layer.out_features, rank)
        if tuple(tensor.shape) != expected:
            problems.append(f"{key} is {tuple(tensor.shape)}, must be {expected}")
        elif ranks.setdefault(match["layer"], rank) != rank:
            problems.append(f"{match['layer']} has matrices of different ranks")
    lone = [layer for layer in ranks if not _both_sides(layer, weights)]
    problems += [f"{layer} has only one of its two matrices" for layer in lone]
    if problems:
        raise InputError(
            f"this LoRA does not fit the base: {first_of(problems)}",
            where=file,
            fix="use the base that it was trained on",
        )
    return ranks


def _both_sides(layer: str, weights: Mapping[str, Tensor]) -> bool:
    return all(f"{_PREFIX}{layer}.lora_{side}.weight" in weights for side in "AB")
