"""Shards: WebDataset tars of captioned bundles with an index of every member's place.

A data set is a folder of `train-00000.tar`, `val-00000.tar`, ... and `index.json`. Each sample is
`key.bundle.webp` (lossless; or `.png`) and `key.json`. Plain webdataset can read the tars; the
index makes any sample reachable with one read, and carries the checksums. Nothing is unpickled.
"""

from kiss3d_train.data.shards.change import Appended, append_shards, repair
from kiss3d_train.data.shards.index import (
    SPLITS,
    IndexedSample,
    IndexedShard,
    ShardIndex,
    Split,
    load_index,
)
from kiss3d_train.data.shards.inspection import inspect
from kiss3d_train.data.shards.reader import ShardReader, decode_sample
from kiss3d_train.data.shards.verify import verify
from kiss3d_train.data.shards.writer import write_shards

__all__ = [
    "SPLITS",
    "Appended",
    "IndexedSample",
    "IndexedShard",
    "ShardIndex",
    "ShardReader",
    "Split",
    "append_shards",
    "decode_sample",
    "inspect",
    "load_index",
    "repair",
    "verify",
    "write_shards",
]
