"""Checks a whole data set: sizes, checksums, tar members, images and descriptions."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.errors import InputError, first_of
from kiss3d_infer.files import sha256_of
from kiss3d_infer.progress import track
from kiss3d_train.data.shards.index import (
    MAKE_AGAIN,
    IndexedShard,
    ShardIndex,
    check_size,
    digest_of,
    load_index,
)
from kiss3d_train.data.shards.reader import decode_sample, read_members
from kiss3d_train.data.storage import Folder, LocalFolder, Place, folder_at


@dataclass(frozen=True)
class ShardDamage:
    """What is wrong with a shard.

    Attributes:
        shard: what is wrong with the tar, even if all its samples are sound.
        samples: reason by key of a sample that cannot be used.
        is_cut: whether the tar is missing or not as long as indexed.
    """

    shard: tuple[str, ...]
    samples: Mapping[str, str]
    is_cut: bool

    def __bool__(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.shard or self.samples)

    def lines(self) -> Iterator[str]:
        """What to tell: a tar that is gone or cut is one damage, not one for each sample."""
        yield from self.shard
        if not self.is_cut:
            yield from self.samples.values()


def verify(place: Place) -> ShardIndex:
    """Check a whole data set: sizes, checksums, tar members, images and descriptions.

    Returns:
        The index of the sound data set.

    Raises:
        InputError: it is damaged; the message names every damaged shard and sample found (the
            first five in full).
    """
    index, folder = load_index(place), folder_at(place)
    sizes = folder.sizes()
    damage: list[str] = []
    for shard in track(index.shards, "verifying"):
        damage.extend(damage_of(folder, shard, index, sizes).lines())
    if index.digest != digest_of(index.layout, index.shards):
        damage.append("the index's digest does not match its shards")
    if damage:
        raise InputError(
            f"the data set is damaged: {first_of(damage, most=5)}",
            where=place,
            fix=MAKE_AGAIN,
        )
    return index


def damage_of(
    folder: Folder, shard: IndexedShard, index: ShardIndex, sizes: Mapping[str, int]
) -> ShardDamage:
    """What is wrong with a shard and with each of its samples.

    Args:
        folder: the data set.
        shard: one of its shards.
        index: of the data set, for its layout and tile.
        sizes: of the files in the folder.

    Raises:
        InputError: the shard is there and cannot be opened, which says nothing about its samples.
    """
    cut: tuple[str, ...] = ()
    try:
        check_size(folder, shard, sizes)
    except InputError as error:
        cut = (str(error),)
    if shard.name not in sizes:
        lost = {sample.key: "its shard is missing" for sample in shard.samples}
        return ShardDamage(cut, lost, is_cut=True)
    with folder.fetched(shard.name) as path:
        _require_readable(path)
        samples = dict(_sample_damage(path, shard, index))
        return ShardDamage(cut or tuple(_tar_damage(path, shard)), samples, is_cut=bool(cut))


def _require_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InputError(
            f"a shard cannot be opened: {error.strerror}", where=path, fix="see to its permissions"
        ) from error


def _tar_damage(path: Path, shard: IndexedShard) -> Iterator[str]:
    if sha256_of(path) != shard.sha256:
        yield f"the checksum of {shard.name} differs"
    indexed = {
        f"{sample.key}.{extension}": place
        for sample in shard.samples
        for extension, place in sample.members.items()
    }
    try:
        if _tar_members(path) != indexed:
            yield f"the members of {shard.name} are not those indexed"
    except InputError as error:
        yield str(error)


def _sample_damage(path: Path, shard: IndexedShard, index: ShardIndex) -> Iterator[tuple[str, str]]:
    folder = LocalFolder(path.parent)
    for sample in shard.samples:
        where = f"{shard.name}:{sample.key}"
        try:
            bundle, _ = decode_sample(read_members(folder, path.name, sample), where)
            if (bundle.layout, bundle.tile) != (index.layout, index.tile):
                yield sample.key, f"{where} has another layout or tile size"
        except InputError as error:
            yield sample.key, f"{error.what} ({where})"


def _tar_members(path: Path) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"not a whole tar: {error}", where=path) from error
