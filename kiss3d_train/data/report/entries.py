"""The samples of a rendered folder or of a folder of shards, as a page shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError
from kiss3d_train.data.curation import Curation, Decision, read_curation
from kiss3d_train.data.descriptions import (
    QUARANTINE_NAME,
    descriptions,
    picture_of,
    read_description,
)
from kiss3d_train.data.quarantine import Quarantine
from kiss3d_train.data.shards.index import INDEX_NAME, SPLITS, Split
from kiss3d_train.data.shards.reader import ShardReader, decode_sample
from kiss3d_train.data.storage import Place


@dataclass(frozen=True)
class Entry:
    """A sample.

    Attributes:
        meta: its description.
        decision: what its curation said; None = not curated.
        picture: reads the encoded bundle.
    """

    key: str
    meta: dict[str, Any]
    decision: Decision | None
    picture: Callable[[], bytes]

    @property
    def is_rejected(self) -> bool:
        """Whether a curation rejected it."""
        return self.decision is not None and not self.decision.accepted


@dataclass(frozen=True)
class DataSet:
    """What a folder holds.

    Attributes:
        kind: what its samples are, to be read after their number.
        entries: ordered by key.
        curation: of rendered samples, if there was one.
        quarantine: reasons for which meshes could not be rendered.
    """

    folder: Place
    kind: str
    entries: list[Entry]
    curation: Curation | None
    quarantine: Counter[str]


def open_data_set(folder: Place) -> DataSet:
    """Read every description of a folder.

    Raises:
        InputError: the folder holds neither shards nor rendered samples, or is damaged.
    """
    if not isinstance(folder, Path) or (folder / INDEX_NAME).is_file():
        return _shards(folder)
    curation = read_curation(folder)
    decisions = {} if curation is None else {d.key: d for d in curation.decisions}
    entries = [_rendered(path, decisions) for path in descriptions(folder)]
    if not entries:
        raise InputError(
            "neither rendered samples nor shards in the folder",
            where=folder,
            fix="make some with 'kiss3d data render' or 'kiss3d data shard'",
        )
    reasons = Quarantine(folder / QUARANTINE_NAME).reasons()
    return DataSet(folder, "rendered samples", entries, curation, reasons)


def _rendered(path: Path, decisions: dict[str, Decision]) -> Entry:
    meta, key = read_description(path), path.stem
    return Entry(key, meta, decisions.get(key), picture_of(path).read_bytes)


def _shards(folder: Place) -> DataSet:
    reader = ShardReader(folder)
    entries = [
        _sharded(reader, split, i) for split in SPLITS for i in range(reader.num_samples(split))
    ]
    entries.sort(key=lambda entry: entry.key)
    kind = f"samples in {len(reader.index.shards)} shards with tiles of {reader.index.tile} pixels"
    return DataSet(folder, kind, entries, None, Counter())


def _sharded(reader: ShardReader, split: Split, index: int) -> Entry:
    key = reader.key(split, index)

    def picture() -> bytes:
        members = reader.read(split, index)
        decode_sample(members, where=key)
        return next(data for name, data in members.items() if name.startswith("bundle."))

    return Entry(key, reader.describe(split, index), None, picture)
