"""Writing the base whose parts were trained: a whole diffusers folder, visible when complete."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing_folder
from kiss3d_infer.flux.base import quiet_libraries
from kiss3d_train.whole.config import Part


def require_folder(base: Path) -> None:
    """Refuse a base that is a single file; its parts cannot be replaced one by one.

    Raises:
        InputError: it is one.
    """
    if base.is_file():
        raise InputError(
            "whole parts are trained of a base in folders, one per part",
            where=base,
            fix="set base.path to a diffusers folder",
        )


@torch.no_grad()
def load_weights(network: nn.Module, part: str, weights: Mapping[str, Tensor]) -> None:
    """Take over trained weights, whose names begin with the part's."""
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[f"{part}.{name}"])


def write_base(source: Path, parts: Mapping[Part, Any], save_dtype: str, out: Path) -> None:
    """Copy a base with some of its parts replaced; an earlier `out` is replaced at the end.

    Args:
        source: the base's folder.
        parts: trained networks by part; converted to `save_dtype`.
        save_dtype: float32 or bfloat16.
        out: where the new base goes.

    Raises:
        InputError: the disk is full.
    """
    with writing_folder(out, replaces=True) as aside:
        shutil.copytree(source, aside, ignore=_hidden, dirs_exist_ok=True)
        for name, network in parts.items():
            shutil.rmtree(aside / name)
            with quiet_libraries():
                network.to(getattr(torch, save_dtype)).save_pretrained(aside / name)


def _hidden(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(".")]
