"""The index of a data set: which tar holds which sample, where, and with which checksum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.config import Config, explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of

INDEX_NAME = "index.json"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
ImageFormat = Literal["webp", "png"]


class IndexedSample(Config):
    """Where one sample lies in its shard."""

    key: str
    members: dict[str, tuple[int, int]]
    """Extension ("bundle.webp", "json") to the (offset, size) of its bytes in the tar."""
    sha256: str
    """Over the members' bytes, in the order of `members`."""


class IndexedShard(Config):
    """One tar."""

    name: Annotated[str, Field(pattern=r"^(train|val)-\d{5,}\.tar$")]
    split: Split
    size: int
    sha256: str
    samples: tuple[IndexedSample, ...]


class ShardIndex(Config):
    """What `index.json` holds."""

    format: Literal["kiss3d-shards"] = "kiss3d-shards"
    version: Literal[1] = 1
    layout: BundleLayout
    tile: int
    image_format: ImageFormat
    shards: tuple[IndexedShard, ...]
    digest: str
    """Names the content: SHA-256 over the layout and every shard's checksum."""

    def of(self, split: Split) -> list[IndexedShard]:
        """The shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def counts(self, split: Split) -> list[int]:
        """Samples per shard of a split."""
        return [len(shard.samples) for shard in self.of(split)]

    def __str__(self) -> str:
        """One line: samples, shards and size."""
        parts = ", ".join(f"{sum(self.counts(split))} {split}" for split in SPLITS)
        size = sum(shard.size for shard in self.shards) / 1e6
        return f"{parts} samples in {len(self.shards)} shards, {size:.1f} MB, tile {self.tile}"


def load_index(folder: Path) -> ShardIndex:
    """Read a data set's index.

    Raises:
        InputError: there is none, or this version cannot read it.
    """
    path = folder / INDEX_NAME
    try:
        return ShardIndex.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            "no data set in the folder", where=folder, fix="make one with 'kiss3d data shard'"
        ) from error
    except ValidationError as error:
        reason = explain(error, ShardIndex)
        raise InputError(f"the index cannot be read: {reason[:300]}", where=path) from error


def digest_of(layout: BundleLayout, shards: Sequence[IndexedShard]) -> str:
    """Names a data set: SHA-256 over its layout and its shards' names and checksums."""
    lines = [layout.model_dump_json(), *(f"{shard.name} {shard.sha256}" for shard in shards)]
    return sha256_of("\n".join(lines).encode())


def check_size(path: Path, size: int) -> None:
    """Raise an InputError unless a shard is there and as long as indexed."""
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise InputError(
            "a shard is missing", where=path, fix="make or fetch the data set again"
        ) from error
    if found != size:
        state = "empty" if found == 0 else f"{found} bytes long, not {size}"
        raise InputError(f"a shard is {state}", where=path, fix="make or fetch the data set again")
