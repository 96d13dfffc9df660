"""Packs rendered samples into shards; the same samples give the same bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from kiss3d_infer.bundle.image import encode_image, load_bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writable_folder
from kiss3d_infer.progress import track
from kiss3d_train.data.curation import accepted_only
from kiss3d_train.data.descriptions import picture_of, read_description, require_descriptions
from kiss3d_train.data.shards.index import (
    INDEX_NAME,
    ImageFormat,
    IndexedSample,
    IndexedShard,
    ShardIndex,
    Split,
    digest_of,
    is_shard_name,
    load_index,
    publish_index,
    shard_name,
)
from kiss3d_train.data.storage import Folder, LocalFolder, Place, folder_at


@dataclass(frozen=True)
class Packing:
    """How samples are put into tars.

    Attributes:
        image_format: lossless "webp" (smaller) or "png".
        max_samples: per shard.
        max_bytes: per shard, of member bytes; a larger sample gets a shard of its own.
    """

    image_format: ImageFormat = "webp"
    max_samples: int = 1000
    max_bytes: int = 256 << 20


def write_shards(
    rendered: Path,
    out: Place,
    *,
    subset: str | None = None,
    image_format: ImageFormat = "webp",
    val_share: float = 0.05,
    max_samples: int = 1000,
    max_bytes: int = 256 << 20,
) -> ShardIndex:
    """Pack the samples that `render_source` left in a folder.

    The data set appears at `out` only when it is whole. The same samples give the same bytes. A
    sample's split and place follow from a hash of its key, so that neighbours in the source are
    spread over the shards.

    Args:
        rendered: folder of `<key>.bundle.png` and `<key>.json`; what `curate` rejects is left out.
        out: a new folder, or a URL.
        subset: only the samples of a subset that a curation names.
        image_format: lossless "webp" (smaller) or "png".
        val_share: share of samples held out for validation; at least one of two or more, and never
            all.
        max_samples: per shard.
        max_bytes: per shard, of member bytes; a larger sample gets a shard of its own.

    Raises:
        InputError: no samples, samples of several layouts or tile sizes, a damaged sample, a
            curation that is out of date, or `out` holds something else.
    """
    target = folder_at(out)
    _require_no_other(target)
    samples = accepted_only(rendered, rendered_samples(rendered), subset)
    layout, tile = common_settings(samples, rendered)
    packing = Packing(image_format, max_samples, max_bytes)
    with _appearing(target) as folder:
        shards = pack(rendered, folder, _split(samples, val_share), packing)
        index = ShardIndex(
            layout=layout,
            tile=tile,
            image_format=image_format,
            shards=tuple(shards),
            digest=digest_of(layout, shards),
        )
        publish_index(folder, index)
    return index


def pack(
    rendered: Path,
    folder: Folder,
    samples: Mapping[Split, list[dict[str, Any]]],
    packing: Packing,
    first: Mapping[Split, int] | None = None,
) -> list[IndexedShard]:
    """Write samples into tars of a folder, which no index names yet.

    Args:
        rendered: folder of the samples.
        folder: where the tars go; one of the same name is replaced.
        samples: descriptions by split, in order.
        packing: format and bounds.
        first: number of the first tar of a split, 0 if not given.
    """
    shards = []
    encode = functools.partial(_encoded, rendered, packing.image_format)
    for split, members in samples.items():
        encoded = _ahead(encode, track(members, f"packing {split}"))
        groups = _bounded(encoded, packing.max_samples, packing.max_bytes)
        for number, group in enumerate(groups, (first or {}).get(split, 0)):
            shards.append(write_shard(folder, shard_name(split, number), split, group))
    return shards


@contextmanager
def _appearing(target: Folder) -> Iterator[Folder]:
    """A folder to write a new data set to, which is at the target when the block succeeds."""
    if not isinstance(target, LocalFolder):
        yield target  # a store has no renaming of folders: the index, written last, is the sign
        return
    out = target.place
    writable_folder(out.parent)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield LocalFolder(partial)
        _publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rendered_samples(folder: Path) -> list[dict[str, Any]]:
    """The descriptions of all whole samples, ordered by the hash of their key."""
    samples = []
    for path in require_descriptions(folder):
        meta = read_description(path)
        if not isinstance(meta.get("tile"), int) or not picture_of(path).is_file():
            raise InputError("the sample is incomplete", where=path, fix="render it again")
        samples.append(meta)
    return sorted(samples, key=lambda meta: _key_hash(meta["key"]))


def common_settings(samples: Sequence[dict[str, Any]], folder: Path) -> tuple[BundleLayout, int]:
    """The one layout and tile size of rendered samples.

    Raises:
        InputError: they have several.
    """
    settings = {json.dumps([meta["layout"], meta["tile"]], sort_keys=True) for meta in samples}
    if len(settings) > 1:
        raise InputError(
            f"the samples have {len(settings)} different layouts or tile sizes",
            where=folder,
            fix="render them again with the same settings",
        )
    return BundleLayout.model_validate(samples[0]["layout"]), int(samples[0]["tile"])


def _split(samples: list[dict[str, Any]], val_share: float) -> dict[Split, list[dict[str, Any]]]:
    """Those whose key's hash is lowest are for validation; samples come ordered by that hash."""
    num_val = sum(is_held_out(meta["key"], val_share) for meta in samples)
    num_val = min(max(num_val, int(val_share > 0)), len(samples) - 1)
    return {"train": samples[num_val:], "val": samples[:num_val]}


def is_held_out(key: str, val_share: float) -> bool:
    """Whether a sample is for validation, by a hash of its key alone."""
    return _key_hash(key) < val_share * 2.0**64


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


S = TypeVar("S")
T = TypeVar("T")

Encoded = tuple[str, dict[str, bytes]]
"""A sample's key and members."""


def _encoded(folder: Path, image_format: ImageFormat, meta: dict[str, Any]) -> Encoded:
    path = picture_of(folder / f"{meta['key']}.json")
    data = path.read_bytes()
    if sha256_of(data) != meta["bundle_sha256"]:
        raise InputError("the image is not the one described", where=path, fix="render it again")
    if image_format != "png":
        data = encode_image(load_bundle(data), image_format)
    described = meta | {"bundle_sha256": sha256_of(data)}
    text = json.dumps(described, sort_keys=True, ensure_ascii=False)
    return meta["key"], {f"bundle.{image_format}": data, "json": text.encode()}


def _ahead(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Map in order over all cores, a few items ahead; image codecs run without the GIL."""
    workers = os.cpu_count() or 1
    running: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _bounded(
    samples: Iterator[Encoded], max_samples: int, max_bytes: int
) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    size = 0
    for key, members in samples:
        added = sum(map(len, members.values()))
        if group and (len(group) == max_samples or size + added > max_bytes):
            yield group
            group, size = [], 0
        group.append((key, members))
        size += added
    if group:
        yield group


def add_sample(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> IndexedSample:
    """Append a sample's members to a tar and say where they lie in it."""
    places = {}
    for extension, data in members.items():
        # A fresh header has fixed owner, mode and time, so that the bytes repeat.
        header = tarfile.TarInfo(f"{key}.{extension}")
        header.size = len(data)
        tar.addfile(header, BytesIO(data))
        padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        places[extension] = (tar.offset - padded, len(data))
    return IndexedSample(key=key, members=places, sha256=sha256_of(b"".join(members.values())))


def write_shard(
    folder: Folder, name: str, split: Split, samples: Sequence[Encoded]
) -> IndexedShard:
    """Write samples, as they come, into one tar; the same samples give the same bytes."""
    indexed = []
    with folder.writing(name) as aside:
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                indexed.append(add_sample(tar, key, members))
        size, sha256 = aside.stat().st_size, sha256_of(aside)
    return IndexedShard(name=name, split=split, size=size, sha256=sha256, samples=tuple(indexed))


def _publish(partial: Path, out: Path) -> None:
    if (out / INDEX_NAME).is_file() and load_index(out).digest == load_index(partial).digest:
        return
    _require_empty(out)
    if out.exists():
        out.rmdir()
    partial.rename(out)


def _require_no_other(target: Folder) -> None:
    """Refuse, before any work, a place that the data set could not appear at."""
    if isinstance(target, LocalFolder):
        if not (target.place / INDEX_NAME).is_file():
            _require_empty(target.place)
        return
    found = target.sizes()
    if INDEX_NAME in found:
        raise InputError(
            "there is a data set already",
            where=target.place,
            fix="add to it with --append, or write to a new place",
        )
    # Tars without an index are what an interrupted job left; they are replaced.
    if any(not is_shard_name(name) for name in found):
        raise _not_empty(target.place)


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise _not_empty(out)


def _not_empty(where: Place) -> InputError:
    return InputError(
        "the folder is not empty and holds something else",
        where=where,
        fix="write to a new folder, or delete this one",
    )
