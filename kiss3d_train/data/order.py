"""The order in which training sees samples: a pure function of (seed, epoch, position).

Shards are permuted, grouped into windows of a few shards, and the samples of a window are permuted
among themselves by a Feistel network. A reader therefore touches few shards at a time, any position
is found without walking to it, and neither the number of workers nor a restart changes the order.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from kiss3d_infer.errors import InputError

T = TypeVar("T")
_ROUNDS = 6
_WORD = (1 << 64) - 1


class Permutation:
    """A pseudo-random permutation of range(size) in constant memory.

    A balanced Feistel network over the next even number of bits; results beyond the size are put
    through again (cycle walking, Black and Rogaway 2002), at most four times on average.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(seed.encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """Where `index` in [0, size) goes."""
        mask = (1 << self._half) - 1
        while True:
            left, right = index >> self._half, index & mask
            for key in self._keys:
                left, right = right, left ^ (_mixed(right, key) & mask)
            index = (left << self._half) | right
            if index < self.size:
                return index


def picked(items: Sequence[T], most: int, seed: str) -> list[T]:
    """At most so many of some items, at random but always the same ones."""
    order = Permutation(len(items), seed)
    return [items[order(i)] for i in range(min(most, len(items)))]


class SampleOrder:
    """Maps an index of an epoch to the sample that is trained on there.

    Args:
        counts: samples per shard.
        seed: another seed, another order.
        window: shards whose samples are mixed with each other; one reader keeps so many open.

    Raises:
        InputError: there are no samples.
    """

    def __init__(self, counts: Sequence[int], seed: int, window: int = 8) -> None:
        self.counts, self.seed, self.window = tuple(counts), seed, window
        self.num_samples = sum(self.counts)
        """Samples in one epoch."""
        if self.num_samples == 0:
            raise InputError("the data set has no samples", fix="render and shard some meshes")
        self._first = list(accumulate(self.counts, initial=0))
        self._shards = self._shard_order(0)

    def at(self, epoch: int, index: int) -> tuple[int, int]:
        """The (shard, row) at an index of an epoch."""
        if self._shards.epoch != epoch:
            self._shards = self._shard_order(epoch)
        shards, starts = self._shards.shards, self._shards.starts
        first = (bisect_right(starts, index) - 1) // self.window * self.window
        members = shards[first : first + self.window]
        edges = list(accumulate((self.counts[shard] for shard in members), initial=0))
        within = Permutation(edges[-1], f"{self.seed}/{epoch}/{first}")
        row = within(index - starts[first])
        member = bisect_right(edges, row) - 1
        return members[member], row - edges[member]

    def flat(self, epoch: int, index: int) -> int:
        """The same place as one number: the sample's index over all shards in their order."""
        shard, row = self.at(epoch, index)
        return self._first[shard] + row

    def _shard_order(self, epoch: int) -> _ShardOrder:
        permuted = Permutation(len(self.counts), f"{self.seed}/{epoch}/shards")
        shards = [permuted(i) for i in range(len(self.counts))]
        starts = list(accumulate((self.counts[shard] for shard in shards), initial=0))[:-1]
        return _ShardOrder(epoch, shards, starts)


@dataclass(frozen=True)
class _ShardOrder:
    """The shards of one epoch in order, and the index of each one's first sample."""

    epoch: int
    shards: list[int]
    starts: list[int]


def _mixed(value: int, key: int) -> int:
    """A 64-bit mixing step (the finalizer of SplitMix64, Steele et al. 2014)."""
    value = (value * 0x9E3779B97F4A7C15 + key) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)
