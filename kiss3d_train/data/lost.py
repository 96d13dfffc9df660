"""Shards that cannot be encoded any more: which they are, and what a run does about them.

Training reads encoded shards. A tar that is missing or cut is a loss only where its shard has not
been encoded before.
"""

import sys
from collections.abc import Mapping, Sequence

from kiss3d_infer.errors import InputError
from kiss3d_train.config import OnCorrupt
from kiss3d_train.data.latents import not_encoded
from kiss3d_train.data.shards import IndexedShard, ShardIndex, Split
from kiss3d_train.data.shards.index import check_size
from kiss3d_train.data.storage import DamageError, Folder, Place, folder_at


def damaged_tars(folder: Folder, shards: Sequence[IndexedShard]) -> dict[str, DamageError]:
    """What is wrong with the tars that are missing or not as long as indexed, by name."""
    sizes, found = folder.sizes(), dict[str, DamageError]()
    for shard in shards:
        try:
            check_size(folder, shard, sizes)
        except DamageError as damage:
            found[shard.name] = damage
    return found


def require_tars(shards: Place, index: ShardIndex) -> None:
    """Refuse a data set with a tar that is missing or cut.

    Raises:
        DamageError: there is one.
    """
    for damage in damaged_tars(folder_at(shards), index.shards).values():
        raise damage


def require_encodable(
    shards: Place, index: ShardIndex, latents: Place, on_corrupt: OnCorrupt
) -> None:
    """Refuse a data set for a run that could not do without what is lost of it.

    Args:
        shards: the data set.
        index: its index.
        latents: folder of one encoder's results, which need not exist.
        on_corrupt: what the recipe says.

    Raises:
        DamageError: a shard is lost that no other may take the place of.
    """
    lost = _not_encoded_of(damaged_tars(folder_at(shards), index.shards), index, latents)
    for shard, damage in lost:
        if not may_skip(shard.split, on_corrupt):
            raise damage


def lost_shards(
    shards: Place, index: ShardIndex, latents: Place, on_corrupt: OnCorrupt
) -> set[str]:
    """Names of the shards that are not encoded and cannot be; tells of every damaged tar.

    Arguments and errors are those of `require_encodable`.
    """
    damaged = damaged_tars(folder_at(shards), index.shards)
    lost = _not_encoded_of(damaged, index, latents)
    for shard, damage in lost:
        skip_or_raise(damage, shard.split, on_corrupt)
    if kept := len(damaged) - len(lost):
        print(
            f"warning: {kept} shards of {shards} are missing or cut; they were encoded before, "
            "and that is used",
            file=sys.stderr,
        )
    return {shard.name for shard, _ in lost}


def may_skip(split: Split, on_corrupt: OnCorrupt) -> bool:
    """Whether others may take the place of a split's samples. Held-out ones stay comparable."""
    return on_corrupt == "skip" and split == "train"


def skip_or_raise(damage: InputError, split: Split, on_corrupt: OnCorrupt) -> None:
    """Tell that a shard is left out, or raise what is wrong with it."""
    if not may_skip(split, on_corrupt):
        raise damage
    print(f"warning: a shard's samples are skipped: {damage}", file=sys.stderr)


def _not_encoded_of(
    damaged: Mapping[str, DamageError], index: ShardIndex, latents: Place
) -> list[tuple[IndexedShard, DamageError]]:
    shards = [shard for shard in index.shards if shard.name in damaged]
    # Nothing is asked of the cache for a sound data set.
    lost = not_encoded(latents, shards) if shards else []
    return [(shard, damaged[shard.name]) for shard in lost]
