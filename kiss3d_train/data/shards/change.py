"""Changes a data set in place: appends samples, or drops damaged ones.

No tar that the index names is ever overwritten: new tars get new names, the index that names them
is published in one step, and only then are tars deleted that nothing names any more. Whenever the
job ends, the data set is either the old one or the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked, sweep
from kiss3d_infer.progress import track
from kiss3d_train.data.curation import accepted_only
from kiss3d_train.data.shards.index import (
    IndexedShard,
    ShardIndex,
    Split,
    digest_of,
    is_shard_name,
    load_index,
    next_numbers,
    publish_index,
    shard_name,
)
from kiss3d_train.data.shards.reader import read_members
from kiss3d_train.data.shards.verify import ShardDamage, damage_of
from kiss3d_train.data.shards.writer import (
    Packing,
    common_settings,
    is_held_out,
    pack,
    rendered_samples,
    write_shard,
)
from kiss3d_train.data.storage import Folder, LocalFolder, Place, folder_at


@dataclass(frozen=True)
class Appended:
    """What an append did.

    Attributes:
        index: of the data set as it is now.
        added: samples that are new.
        skipped: samples whose key was there already.
    """

    index: ShardIndex
    added: int
    skipped: int

    def __str__(self) -> str:
        """Two lines: what was done, and what there is now."""
        return f"added {self.added} samples, skipped {self.skipped} already there\n{self.index}"


@dataclass(frozen=True)
class Dropped:
    """A sample that a repair dropped, from which tar, and why."""

    key: str
    shard: str
    reason: str


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        index: of the data set as it is now.
        dropped: samples that are gone.
        replaced: names of damaged tars, whose sound samples lie in new ones.
    """

    index: ShardIndex
    dropped: tuple[Dropped, ...]
    replaced: tuple[str, ...]

    def __str__(self) -> str:
        """A line for each dropped sample, and what there is now."""
        lines = [f"dropped {lost.key} of {lost.shard}: {lost.reason}" for lost in self.dropped]
        done = f"dropped {len(self.dropped)} samples, replaced {len(self.replaced)} shards"
        return "\n".join((*lines, done, str(self.index)))


def append_shards(
    rendered: Path,
    place: Place,
    *,
    subset: str | None = None,
    val_share: float = 0.05,
    max_samples: int = 1000,
    max_bytes: int = 256 << 20,
) -> Appended:
    """Add rendered samples to a data set as new tars; the old ones are not touched.

    A sample whose key is there already is skipped, so that the same command may be given again, or
    with a folder that grew. Its split follows from its key as in `write_shards`.

    Args:
        rendered: folder of `<key>.bundle.png` and `<key>.json`; what `curate` rejects is left out.
        place: the data set.
        subset: only the samples of a subset that a curation names.
        val_share: share of the new samples held out for validation.
        max_samples: per shard.
        max_bytes: per shard, of member bytes.

    Raises:
        InputError: there is no data set, the samples have another layout or tile size than it has,
            or another job is changing it.
    """
    with _changing(place) as (folder, index):
        samples = accepted_only(rendered, rendered_samples(rendered), subset)
        if common_settings(samples, rendered) != (index.layout, index.tile):
            raise InputError(
                f"the samples have another layout or tile size than the data set at {place}",
                where=rendered,
                fix="render them with the same settings, or make a data set of their own",
            )
        known = {sample.key for shard in index.shards for sample in shard.samples}
        new = [meta for meta in samples if meta["key"] not in known]
        if not new:
            return Appended(index, 0, len(samples))
        splits: dict[Split, list[dict[str, Any]]] = {"train": [], "val": []}
        for meta in new:
            splits["val" if is_held_out(meta["key"], val_share) else "train"].append(meta)
        packing = Packing(index.image_format, max_samples, max_bytes)
        added = pack(rendered, folder, splits, packing, next_numbers(index))
        changed = _succeeding(index, (*index.shards, *added))
        _publish(folder, index, changed)
    return Appended(changed, len(new), len(samples) - len(new))


def repair(place: Place) -> Repair:
    """Drop the samples of a data set that are damaged or missing, and tars that no index names.

    Sound samples of a damaged tar are written into a new one.

    Raises:
        InputError: there is no data set or no sound sample in it, or another job is changing it.
    """
    with _changing(place) as (folder, index):
        sizes = folder.sizes()
        numbers = next_numbers(index)
        shards: list[IndexedShard] = []
        dropped: list[Dropped] = []
        replaced: list[str] = []
        for shard in track(index.shards, "repairing"):
            damage = damage_of(folder, shard, index, sizes)
            if not damage:
                shards.append(shard)
                continue
            replaced.append(shard.name)
            dropped += [Dropped(key, shard.name, why) for key, why in damage.samples.items()]
            if len(damage.samples) < len(shard.samples):
                name = shard_name(shard.split, numbers[shard.split])
                numbers[shard.split] += 1
                shards.append(_without(folder, shard, damage, name))
        if not shards:
            raise InputError("no sample is sound", where=place, fix="make the data set again")
        changed = _succeeding(index, tuple(shards))
        if changed.digest != index.digest:
            _publish(folder, index, changed)
            index = changed
        _remove_unnamed(folder, sizes, index)
    return Repair(index, tuple(dropped), tuple(replaced))


def _without(folder: Folder, shard: IndexedShard, damage: ShardDamage, name: str) -> IndexedShard:
    sound = [sample for sample in shard.samples if sample.key not in damage.samples]
    with folder.fetched(shard.name) as path:
        source = LocalFolder(path.parent)
        samples = [(s.key, read_members(source, path.name, s)) for s in sound]
    return write_shard(folder, name, shard.split, samples)


def _succeeding(index: ShardIndex, shards: tuple[IndexedShard, ...]) -> ShardIndex:
    changes = {
        "shards": shards,
        "digest": digest_of(index.layout, shards),
        "parents": (*index.parents, index.digest),
    }
    return index.model_copy(update=changes)


def _publish(folder: Folder, before: ShardIndex, after: ShardIndex) -> None:
    # An object store has no locks; this leaves two jobs a moment to collide in, not hours.
    if load_index(folder.place).digest != before.digest:
        raise InputError(
            "another job has changed the data set meanwhile",
            where=folder.place,
            fix="give the same command again",
        )
    publish_index(folder, after)


def _remove_unnamed(folder: Folder, sizes: Mapping[str, int], index: ShardIndex) -> None:
    named = {shard.name for shard in index.shards}
    for name in sizes:
        if is_shard_name(name) and name not in named:
            folder.remove(name)


@contextmanager
def _changing(place: Place) -> Iterator[tuple[Folder, ShardIndex]]:
    """A data set that no other job of these changes for the length of the block."""
    folder, index = folder_at(place), load_index(place)
    if not isinstance(folder, LocalFolder):
        yield folder, index
        return
    with locked(folder.place):
        sweep(folder.place)
        yield folder, load_index(place)
