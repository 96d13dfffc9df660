"""A line of the quarantine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiss3d_train.data.quarantine import Record


def record_of(item: Mapping[str, Any], reason: str) -> Record:
    """The line for an item, given by its fields, that could not be rendered."""
    return {"reason": reason} | {name: item[name] for name in ("key", "source", "locator")}
