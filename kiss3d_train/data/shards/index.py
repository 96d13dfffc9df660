"""The index of a data set: which tar holds which sample, where, and with which checksum."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.config import Config, explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_train.data.storage import DamageError, Folder, Place, folder_at

INDEX_NAME = "index.json"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
ImageFormat = Literal["webp", "png"]
MAKE_AGAIN = "make or fetch it again, or drop what is damaged with 'kiss3d data repair'"
_SHARD_NAME = r"^(train|val)-\d{5,}\.tar$"


class IndexedSample(Config):
    """Where one sample lies in its shard."""

    key: str
    members: dict[str, tuple[int, int]]
    """Extension ("bundle.webp", "json") to the (offset, size) of its bytes in the tar."""
    sha256: str
    """Over the members' bytes, in the order of `members`."""


class IndexedShard(Config):
    """One tar."""

    name: Annotated[str, Field(pattern=_SHARD_NAME)]
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
    parents: tuple[str, ...] = ()
    """Digests of the data sets that this one was before it was appended to or repaired."""

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


def load_index(place: Place) -> ShardIndex:
    """Read a data set's index.

    Raises:
        InputError: there is none, or this version cannot read it.
    """
    try:
        return ShardIndex.model_validate_json(folder_at(place).read(INDEX_NAME))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            "no data set in the folder", where=place, fix="make one with 'kiss3d data shard'"
        ) from error
    except ValidationError as error:
        reason = explain(error, ShardIndex)
        raise InputError(
            f"the index cannot be read: {reason[:300]}", where=f"{place}/{INDEX_NAME}"
        ) from error


def publish_index(folder: Folder, index: ShardIndex) -> None:
    """Make the shards that an index names the data set in a folder; they must be there."""
    with folder.writing(INDEX_NAME) as aside:
        aside.write_text(index.model_dump_json(indent=1), encoding="utf-8")


def shard_name(split: Split, number: int) -> str:
    """The name of a tar."""
    return f"{split}-{number:05d}.tar"


def is_shard_name(name: str) -> bool:
    """Whether a tar may have that name."""
    return re.match(_SHARD_NAME, name) is not None


def next_numbers(index: ShardIndex) -> dict[Split, int]:
    """The first number of each split that no shard has."""
    return {
        split: max((int(shard.name[len(split) + 1 : -4]) for shard in index.of(split)), default=-1)
        + 1
        for split in SPLITS
    }


def digest_of(layout: BundleLayout, shards: Sequence[IndexedShard]) -> str:
    """Names a data set: SHA-256 over its layout and its shards' names and checksums."""
    lines = [layout.model_dump_json(), *(f"{shard.name} {shard.sha256}" for shard in shards)]
    return sha256_of("\n".join(lines).encode())


def check_size(folder: Folder, shard: IndexedShard, sizes: Mapping[str, int]) -> None:
    """Refuse a shard that is missing or not as long as indexed.

    Args:
        folder: the data set.
        shard: one of its shards.
        sizes: of the files in the folder.

    Raises:
        DamageError: it is.
    """
    where = f"{folder.place}/{shard.name}"
    found = sizes.get(shard.name)
    if found is None:
        raise DamageError("a shard is missing", where=where, fix=MAKE_AGAIN)
    if found != shard.size:
        state = "empty" if found == 0 else f"{found} bytes long, not {shard.size}"
        raise DamageError(f"a shard is {state}", where=where, fix=MAKE_AGAIN)
