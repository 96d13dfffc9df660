"""What lies in a rendered folder: of each sample a picture and, written last, its description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError

QUARANTINE_NAME = "quarantine.jsonl"
"""One line per mesh that could not be rendered."""


def descriptions(folder: Path) -> list[Path]:
    """The descriptions of a folder's samples, `<key>.json`, ordered by key; there may be none."""
    # Hidden files were being written when a job was killed.
    return sorted(folder.glob("[!.]*.json"), key=lambda path: path.stem)


def require_descriptions(folder: Path) -> list[Path]:
    """The descriptions of a folder's samples, ordered by key.

    Raises:
        InputError: there are none.
    """
    paths = descriptions(folder)
    if not paths:
        raise InputError(
            "no rendered samples in the folder", where=folder, fix="run 'kiss3d data render' first"
        )
    return paths


def read_description(path: Path) -> dict[str, Any]:
    """A sample's description.

    Raises:
        InputError: the file is none, or another sample's.
    """
    try:
        meta = json.loads(path.read_bytes())
        is_described = meta["key"] == path.stem
    except (ValueError, KeyError, TypeError):
        is_described = False
    if not is_described:
        raise InputError("not the description of a sample", where=path)
    return dict(meta)


def picture_of(description: Path) -> Path:
    """The picture that belongs to a description."""
    return description.with_suffix(".bundle.png")
