"""Packed bases: int8 weights with a scale per output channel, restored when they are loaded.

A packed part holds one `packed.safetensors` in the place of its weights. A large matrix or kernel
stands there as int8 under its own name, and beside it, as `<name>.int8_scale`, a float32 scale for
each of its rows: `weight = int8 * scale`. Everything else is stored as bfloat16. The rest of the
folder is that of the base it was made from.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError, first_of

PACKED_NAME = "packed.safetensors"
"""The one file of a packed part; diffusers' own loaders look for other names."""
PACKED_HEADER = {"format": "pt", "kiss3d_packed": "1"}
"""In the file; the last entry is the version of what this module describes."""
_SCALE = ".int8_scale"
_LEAST_VALUES = 4096
"""What is smaller is not worth rounding."""
_MAKE_AGAIN = "make it again with `kiss3d convert pack-base`, or fetch it again"


def is_packed(part: Path) -> bool:
    """Whether a part's folder holds packed weights."""
    return (part / PACKED_NAME).is_file()


def read_packed(part: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a packed part under their own names, restored in a floating-point type.

    Raises:
        InputError: the file is damaged, or another version has packed it.
    """
    file = part / PACKED_NAME
    stored, header = read_tensors(file)
    if header != PACKED_HEADER:
        raise InputError(
            "this version cannot read these packed weights",
            where=file,
            fix="use the version of kiss3d that packed them",
        )
    names = [name for name in stored if not name.endswith(_SCALE)]
    if lone := [name for name in stored if name.removesuffix(_SCALE) not in names]:
        raise _damaged(f"{lone[0]} scales nothing", file)
    return {name: _restored(name, stored, dtype, file) for name in names}


def load_packed(network: Any, part: Path, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Build a network of diffusers or transformers from a packed part.

    Returns:
        The network, ready for inference, and the names of weights that the file lacks.

    Raises:
        InputError: see `read_packed`; or the weights are not those of its config.json.
    """
    weights = read_packed(part, dtype)
    if not getattr(network, "config_class", None):
        return filled(network, part, weights, part)
    with _telling_of_shapes(part):
        return _from_transformers(network, part, weights, dtype)


def filled(
    network: Any, part: Path, weights: Mapping[str, Tensor], where: Path
) -> tuple[Any, list[str]]:
    """Build a network of diffusers around weights.

    Args:
        network: its class.
        part: the folder with its config.json.
        weights: by diffusers' names, in the type that the network is to have.
        where: they come from; named in errors.

    Returns:
        The network, ready for inference, and the names of weights that are missing.

    Raises:
        InputError: the weights are not those of its config.json.
    """
    with _telling_of_shapes(where):
        with torch.device("meta"):
            model = network.from_config(network.load_config(part))
        missing, strangers = model.load_state_dict(weights, strict=False, assign=True)
    if strangers:
        raise InputError(f"config.json has no place for {first_of(strangers)}", where=where)
    return model.eval(), list(missing)


@contextmanager
def _telling_of_shapes(where: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises for another shape
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"the weights do not fit config.json: {reason}", where=where) from error


def _from_transformers(
    network: Any, part: Path, weights: dict[str, Tensor], dtype: torch.dtype
) -> tuple[Any, list[str]]:
    """By its own loader, which ties weights and knows the names of older releases."""
    model, info = network.from_pretrained(
        None,
        config=network.config_class.from_pretrained(part, local_files_only=True),
        state_dict=weights,
        dtype=dtype,
        output_loading_info=True,
    )
    return model, sorted(info["missing_keys"])


def packed_tensors(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What is stored of a finite float32 weight: it alone, or an int8 of it and its scale."""
    if weight.ndim < 2 or weight.numel() < _LEAST_VALUES:
        return {name: weight.bfloat16().contiguous()}
    largest = weight.abs().flatten(1).amax(1)
    scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (weight / _per_row(scale, weight)).round().clamp(-127, 127)
    return {name: rounded.to(torch.int8).contiguous(), name + _SCALE: scale}


def _restored(name: str, stored: Mapping[str, Tensor], dtype: torch.dtype, file: Path) -> Tensor:
    tensor, scale = stored[name], stored.get(name + _SCALE)
    if tensor.dtype == torch.int8:
        if scale is None or scale.shape != tensor.shape[:1] or not scale.isfinite().all():
            raise _damaged(f"{name} has no scale for each of its rows", file)
        return (tensor.float() * _per_row(scale.float(), tensor)).to(dtype)
    if scale is not None:
        raise _damaged(f"{name} has a scale but is {tensor.dtype}", file)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _per_row(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.ndim - 1))


def _damaged(what: str, file: Path) -> InputError:
    return InputError(f"the packed weights are damaged: {what}", where=file, fix=_MAKE_AGAIN)


def read_tensors(
    file: Path, fix: str | None = _MAKE_AGAIN
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file as they are stored, and its header.

    Raises:
        InputError: it cannot be read; `fix` says what to do.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()
            return {name: content.get_tensor(name) for name in names}, content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"not a readable safetensors file: {error}", where=file, fix=fix
        ) from error
