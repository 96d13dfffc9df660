"""Make a packed base: see `kiss3d_infer.flux.packed`."""

import shutil
from pathlib import Path

from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing_folder
from kiss3d_infer.flux.base import PARTS, require_base, require_weights
from kiss3d_infer.flux.packed import (
    PACKED_HEADER,
    PACKED_NAME,
    is_packed,
    packed_tensors,
    read_tensors,
)

_COPIED = (".json", ".txt", ".model")
"""Configuration and vocabularies."""


def pack_base(base: Path, out: Path) -> Path:
    """Write a base in a quarter of the size of float32; `load_base` takes it as any other.

    `kiss3d_infer.flux.packed` says what its weights look like.

    Args:
        base: a diffusers folder of a Flux model.
        out: the folder to make; appears only when whole.

    Returns:
        `out`.

    Raises:
        InputError: there is no base, a part cannot be read, is packed already or holds NaN, or
            `out` exists.
    """
    require_base(base)
    with writing_folder(out) as aside:
        shutil.copy(base / "model_index.json", aside)
        for folder in sorted(entry for entry in base.iterdir() if entry.is_dir()):
            _copy_configuration(folder, aside / folder.name)
        for part in PARTS:
            _pack_part(base / part, aside / part)
    return out


def _copy_configuration(folder: Path, out: Path) -> None:
    out.mkdir()
    for file in sorted(folder.iterdir()):
        is_shard_index = file.name.endswith(".safetensors.index.json")
        if file.is_file() and file.suffix in _COPIED and not is_shard_index:
            shutil.copy(file, out)


def _pack_part(part: Path, out: Path) -> None:
    from safetensors.torch import save_file

    require_weights(part)
    if is_packed(part):
        raise InputError("this base is packed already", where=part, fix="give the one it came from")
    packed: dict[str, Tensor] = {}
    for file in sorted(part.glob("*.safetensors")):
        for name, tensor in read_tensors(file)[0].items():
            if not tensor.is_floating_point():
                packed[name] = tensor
                continue
            weight = tensor.float()
            if not weight.isfinite().all():
                raise InputError(f"{name} holds NaN or infinity", where=file, fix="give another")
            packed |= packed_tensors(name, weight)
    save_file(packed, out / PACKED_NAME, metadata=PACKED_HEADER)
