"""Checks a whole data set: sizes, checksums, tar members, images and descriptions."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.progress import track
from kiss3d_train.data.shards.index import (
    IndexedShard,
    ShardIndex,
    check_size,
    digest_of,
    load_index,
)
from kiss3d_train.data.shards.reader import decode_sample, read_members


def verify(folder: Path) -> ShardIndex:
    """Check a whole data set: sizes, checksums, tar members, images and descriptions.

    Returns:
        The index of the sound data set.

    Raises:
        InputError: it is damaged; the message names every damaged shard and sample found (the
            first five in full).
    """
    index = load_index(folder)
    damage: list[str] = []
    for shard in track(index.shards, "verifying"):
        damage.extend(_damage(folder / shard.name, shard, index))
    if index.digest != digest_of(index.layout, index.shards):
        damage.append("the index's digest does not match its shards")
    if damage:
        more = f" and {len(damage) - 5} more" if len(damage) > 5 else ""
        raise InputError(
            f"the data set is damaged: {'; '.join(damage[:5])}{more}",
            where=folder,
            fix="make or fetch these shards again",
        )
    return index


def _damage(path: Path, shard: IndexedShard, index: ShardIndex) -> Iterator[str]:
    try:
        check_size(path, shard.size)
        places = _tar_members(path)
    except InputError as error:
        yield str(error)
        return
    if sha256_of(path) != shard.sha256:
        yield f"the checksum of {path.name} differs"
    indexed = {
        f"{sample.key}.{extension}": place
        for sample in shard.samples
        for extension, place in sample.members.items()
    }
    if places != indexed:
        yield f"the members of {path.name} are not those indexed"
        return
    for sample in shard.samples:
        where = f"{path.name}:{sample.key}"
        try:
            bundle, _ = decode_sample(read_members(path, sample), where)
            if (bundle.layout, bundle.tile) != (index.layout, index.tile):
                yield f"{where} has another layout or tile size"
        except InputError as error:
            yield f"{error.what} ({error.where})"


def _tar_members(path: Path) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"not a whole tar: {error}", where=path) from error
