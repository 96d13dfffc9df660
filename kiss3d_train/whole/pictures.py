"""A split's pictures in memory, read once at the start."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.errors import InputError
from kiss3d_train.data.resident import ShowFn, showing
from kiss3d_train.data.shards import ShardReader, Split, decode_sample

_Found = tuple[NDArray[np.uint8], str]
_MANY = 2000
"""Bundles that are worth the seconds in which processes start."""
_CHUNK = 8
"""Bundles that a process is asked for at a time."""
_SHARE_OF_DEVICE = 0.5
"""Of a GPU's free memory; the rest is for the step."""


@dataclass(frozen=True)
class Pictures:
    """Tiles of N bundles with R rows and V views, in main memory.

    Attributes:
        tiles_NRV3TT: uint8 sRGB values, rows in the layout's order.
        captions: one per bundle.
    """

    tiles_NRV3TT: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)


def read_pictures(
    reader: ShardReader,
    split: Split,
    *,
    readers: int,
    rows: slice = slice(None),
    most: int | None = None,
    show: ShowFn | None = None,
) -> Pictures:
    """Read and decode a split's bundles in the order of its shards.

    Args:
        reader: of the data set.
        split: which bundles.
        readers: threads that read and decode; processes where there are many bundles.
        rows: which rows of the layout are kept.
        most: only so many of the first bundles.
        show: told at times how far it is.

    Raises:
        InputError: a sample is damaged, or there are none.
    """
    layout, tile = reader.index.layout, reader.index.tile
    num = reader.num_samples(split)
    num = num if most is None else min(most, num)
    if num == 0:
        raise InputError(
            f"the data set has no {split} samples",
            where=reader.folder.place,
            fix="render and shard more meshes",
        )
    kept = len(layout.rows[rows])
    tiles = torch.empty(num, kept, layout.num_views, 3, tile, tile, dtype=torch.uint8)

    captions = []
    with _reading(_Read(reader, split, rows), num, readers) as found:
        for index, (read, caption) in enumerate(showing(found, num, f"{split} bundles", show)):
            tiles[index] = torch.from_numpy(read)
            captions.append(caption)
    return Pictures(tiles, tuple(captions))


class _Read:
    """Reads bundles of a split by index: tiles [R, V, 3, T, T] uint8, and the caption."""

    def __init__(self, reader: ShardReader, split: Split, rows: slice) -> None:
        self._reader, self._split, self._rows = reader, split, rows

    def __call__(self, index: int) -> _Found:
        members = self._reader.read(self._split, index)
        bundle, meta = decode_sample(members, where=self._reader.key(self._split, index))
        return _tiles_of(bundle)[self._rows].contiguous().numpy(), str(meta["caption"])


@contextmanager
def _reading(read: _Read, num: int, count: int) -> Iterator[Iterator[_Found]]:
    """The first `num` bundles in order, read by threads or processes that end with the block."""
    if num < _MANY:
        with ThreadPoolExecutor(count, thread_name_prefix="pictures") as threads:
            yield threads.map(read, range(num))
        return
    # Spawned: a forked process would inherit a CUDA that it cannot use, and locks of threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _set_read, (read,)) as processes:
        yield processes.map(_read_here, range(num), chunksize=_CHUNK)


_here: list[_Read] = []
"""Of a process that reads, which was sent it at its start."""


def _set_read(read: _Read) -> None:
    torch.set_num_threads(1)
    _here.append(read)


def _read_here(index: int) -> _Found:
    return _here[0](index)


def resident(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, or in page-locked memory where it would fill a GPU's."""
    if device.type != "cuda":
        return tensor.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.to(device) if tensor.nbytes < _SHARE_OF_DEVICE * free else tensor.pin_memory()


def _tiles_of(bundle: Bundle) -> Tensor:
    """[R, V, 3, T, T] uint8."""
    rows, views, tile = len(bundle.layout.rows), bundle.layout.num_views, bundle.tile
    values = bundle.image.mul(255).round_().byte()
    return values.reshape(3, rows, tile, views, tile).permute(1, 3, 0, 2, 4)
