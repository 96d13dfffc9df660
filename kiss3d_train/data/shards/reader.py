"""Reads samples of a data set by index, each with a read of its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kiss3d_infer.bundle.image import Bundle, load_bundle
from kiss3d_infer.errors import InputError
from kiss3d_train.data.shards.index import (
    MAKE_AGAIN,
    SPLITS,
    IndexedSample,
    Split,
    check_size,
    load_index,
)
from kiss3d_train.data.storage import DamageError, Folder, Place, folder_at


class ShardReader:
    """Reads any sample by its place in the tar and checks it against the index.

    It holds no open file: threads may share it, and other processes may be sent it. They are sent
    the place alone and open it by themselves, as an index may have megabytes.

    Args:
        place: the data set.

    Raises:
        InputError: there is no data set, or a shard is missing or not as long as indexed.
    """

    def __init__(self, place: Place) -> None:
        self.folder = folder_at(place)
        self.index = load_index(place)
        sizes = self.folder.sizes()
        for shard in self.index.shards:
            check_size(self.folder, shard, sizes)
        self._shards = {split: self.index.of(split) for split in SPLITS}
        self._rows = {
            split: [(s, r) for s, shard in enumerate(shards) for r in range(len(shard.samples))]
            for split, shards in self._shards.items()
        }

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Place]]:
        return ShardReader, (self.folder.place,)

    def num_samples(self, split: Split) -> int:
        """How many samples a split has."""
        return len(self._rows[split])

    def key(self, split: Split, index: int) -> str:
        """The key of sample `index` of a split."""
        shard, row = self._rows[split][index]
        return self._shards[split][shard].samples[row].key

    def read(self, split: Split, index: int) -> dict[str, bytes]:
        """The members of sample `index` of a split, by extension.

        Raises:
            InputError: its bytes are not those that were indexed.
        """
        return self.read_at(split, *self._rows[split][index])

    def read_at(self, split: Split, shard: int, row: int) -> dict[str, bytes]:
        """The members of the sample at a (shard, row), by extension."""
        indexed = self._shards[split][shard]
        return read_members(self.folder, indexed.name, indexed.samples[row])

    def describe(self, split: Split, index: int) -> dict[str, Any]:
        """The description of sample `index` of a split: caption, source, licence, checksums.

        Raises:
            InputError: its bytes are not those that were indexed, or it has no caption.
        """
        return description_in(self.read(split, index), self.key(split, index))


def read_members(folder: Folder, tar: str, sample: IndexedSample) -> dict[str, bytes]:
    """The members of a sample by extension.

    Raises:
        DamageError: they cannot be read, or are not those that were indexed.
    """
    where = f"{folder.place}/{tar}"
    try:
        parts = folder.read_ranges(tar, list(sample.members.values()))
    except OSError as error:
        reason = error.strerror or str(error)
        raise DamageError(
            f"a shard cannot be read: {reason}", where=where, fix=MAKE_AGAIN
        ) from error
    if not is_sound(sample, parts):
        raise DamageError(
            "the sample's bytes differ from the index",
            where=f"{where}:{sample.key}",
            fix=MAKE_AGAIN,
        )
    return dict(zip(sample.members, parts, strict=True))


def is_sound(sample: IndexedSample, parts: list[bytes]) -> bool:
    """Whether members, in the order of the index, are those that were indexed."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest() == sample.sha256


def decode_sample(members: dict[str, bytes], where: object = None) -> tuple[Bundle, dict[str, Any]]:
    """A sample's bundle and description.

    Args:
        members: as `ShardReader.read` returns them.
        where: named in errors.

    Raises:
        InputError: a member is missing, the image is none, or the description is no JSON object
            with a caption.
    """
    images = [data for extension, data in members.items() if extension.startswith("bundle.")]
    if not images:
        raise InputError("the sample has no image", where=where, fix=MAKE_AGAIN)
    try:
        bundle = load_bundle(images[0])
    except InputError as error:
        raise InputError(error.what, where=where, fix=MAKE_AGAIN) from error
    return bundle, description_in(members, where)


def description_in(members: dict[str, bytes], where: object = None) -> dict[str, Any]:
    """A sample's description alone, of the same arguments and with the same errors."""
    try:
        meta = json.loads(members.get("json", b""))
    except ValueError:
        meta = None
    if not (isinstance(meta, dict) and isinstance(meta.get("caption"), str)):
        raise InputError(
            "the sample has no description with a caption", where=where, fix=MAKE_AGAIN
        )
    return meta
