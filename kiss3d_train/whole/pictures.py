"""A split's pictures in memory, read once at the start."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.errors import InputError
from kiss3d_train.data.resident import ShowFn, showing
from kiss3d_train.data.shards import ShardReader, Split, decode_sample

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
    threads: int,
    rows: slice = slice(None),
    most: int | None = None,
    show: ShowFn | None = None,
) -> Pictures:
    """Read and decode a split's bundles in the order of its shards.

    Args:
        reader: of the data set.
        split: which bundles.
        threads: that read and decode.
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

    def read(index: int) -> str:
        members = reader.read(split, index)
        bundle, meta = decode_sample(members, where=reader.key(split, index))
        tiles[index] = _tiles_of(bundle)[rows]
        return str(meta["caption"])

    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        captions = tuple(showing(pool.map(read, range(num)), num, f"{split} bundles", show))
    return Pictures(tiles, captions)


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
