"""Packs rendered samples into shards; the same samples give the same bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from kiss3d_infer.bundle.image import encode_image, load_bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writable_folder, writing
from kiss3d_infer.progress import track
from kiss3d_train.data.shards.index import (
    INDEX_NAME,
    ImageFormat,
    IndexedSample,
    IndexedShard,
    ShardIndex,
    Split,
    digest_of,
    load_index,
)


def write_shards(
    rendered: Path,
    out: Path,
    *,
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
        rendered: folder of `<key>.bundle.png` and `<key>.json`.
        out: a new folder.
        image_format: lossless "webp" (smaller) or "png".
        val_share: share of samples held out for validation; at least one of two or more, and never
            all.
        max_samples: per shard.
        max_bytes: per shard, of member bytes; a larger sample gets a shard of its own.

    Raises:
        InputError: no samples, samples of several layouts or tile sizes, a damaged sample, or
            `out` holds something else.
    """
    if not (out / INDEX_NAME).is_file():
        _require_empty(out)
    samples = _rendered_samples(rendered)
    layout, tile = _common_settings(samples, rendered)
    writable_folder(out.parent)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        shards: list[IndexedShard] = []
        encode = functools.partial(_encoded, rendered, image_format)
        for split, members in _split(samples, val_share).items():
            encoded = _ahead(encode, track(members, f"packing {split}"))
            for names in _bounded(encoded, max_samples, max_bytes):
                number = sum(shard.split == split for shard in shards)
                shards.append(write_shard(partial / f"{split}-{number:05d}.tar", split, names))
        index = ShardIndex(
            layout=layout,
            tile=tile,
            image_format=image_format,
            shards=tuple(shards),
            digest=digest_of(layout, shards),
        )
        with writing(partial / INDEX_NAME) as aside:
            aside.write_text(index.model_dump_json(indent=1), encoding="utf-8")
        _publish(partial, out, index)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def _rendered_samples(folder: Path) -> list[dict[str, Any]]:
    """The descriptions of all whole samples, ordered by the hash of their key."""
    samples = []
    # Hidden files were being written when a render job was killed.
    for path in folder.glob("[!.]*.json"):
        try:
            meta = json.loads(path.read_bytes())
            complete = meta["key"] == path.stem and isinstance(meta["tile"], int)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("not the description of a sample", where=path) from error
        if not complete or not (folder / f"{path.stem}.bundle.png").is_file():
            raise InputError("the sample is incomplete", where=path, fix="render it again")
        samples.append(meta)
    if not samples:
        raise InputError(
            "no rendered samples in the folder", where=folder, fix="run 'kiss3d data render' first"
        )
    return sorted(samples, key=lambda meta: _key_hash(meta["key"]))


def _common_settings(samples: Sequence[dict[str, Any]], folder: Path) -> tuple[BundleLayout, int]:
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
    num_val = sum(_key_hash(meta["key"]) < val_share * 2.0**64 for meta in samples)
    num_val = min(max(num_val, int(val_share > 0)), len(samples) - 1)
    return {"train": samples[num_val:], "val": samples[:num_val]}


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


S = TypeVar("S")
T = TypeVar("T")

Encoded = tuple[str, dict[str, bytes]]
"""A sample's key and members."""


def _encoded(folder: Path, image_format: ImageFormat, meta: dict[str, Any]) -> Encoded:
    path = folder / f"{meta['key']}.bundle.png"
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


def write_shard(path: Path, split: Split, samples: Sequence[Encoded]) -> IndexedShard:
    """Write samples, as they come, into one tar; the same samples give the same bytes."""
    indexed = []
    with writing(path) as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            indexed.append(add_sample(tar, key, members))
    return IndexedShard(
        name=path.name,
        split=split,
        size=path.stat().st_size,
        sha256=sha256_of(path),
        samples=tuple(indexed),
    )


def _publish(partial: Path, out: Path, index: ShardIndex) -> None:
    if (out / INDEX_NAME).is_file() and load_index(out).digest == index.digest:
        return
    _require_empty(out)
    if out.exists():
        out.rmdir()
    partial.rename(out)


def _require_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "the folder is not empty and holds something else",
            where=out,
            fix="write to a new folder, or delete this one",
        )
