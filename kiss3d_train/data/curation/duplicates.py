"""Finds samples that look the same and have meshes alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kiss3d_train.data.curation.filters import Duplicates, Finding
from kiss3d_train.data.curation.picture import hash_bits
from kiss3d_train.data.curation.sample import Sample


def duplicates(samples: Sequence[Sample], limits: Duplicates) -> dict[str, Finding]:
    """The samples that repeat an earlier one that stays, by key.

    A function of the samples alone, in whatever order they come.

    Args:
        samples: with different keys.
        limits: how much two that count as the same may differ.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    earlier: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first, second, bits in _pairs(ordered, limits):
        earlier[second].append((first, bits))
    found: dict[str, Finding] = {}
    for second in sorted(earlier):
        for first, bits in sorted(earlier[second]):
            original = ordered[first].key
            if original not in found:
                reason = f"looks like {original}, {bits} bits differ"
                found[ordered[second].key] = Finding(reason, {"like": original, "bits": bits})
                break
    return found


def _pairs(samples: Sequence[Sample], limits: Duplicates) -> Iterator[tuple[int, int, int]]:
    """Each pair of like samples, the first before the second, and the bits that differ."""
    by_views: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        by_views[len(sample.statistics.image_hash)].append(i)
    for members in by_views.values():
        table = _Table([samples[i] for i in members])
        places = np.array(members)
        for first, seconds in table.candidates(limits.max_bits + 1):
            bits = table.differing_bits(first, seconds)
            alike = (bits <= limits.max_bits) & table.alike(first, seconds, limits)
            for second, count in zip(seconds[alike], bits[alike], strict=True):
                yield int(places[first]), int(places[second]), int(count)


class _Table:
    """The figures of samples with equally many views, as arrays."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        figures = [sample.statistics for sample in samples]
        self.hashes = np.stack([hash_bits(f.image_hash) for f in figures])
        self.extents = np.array([f.extents for f in figures])
        self.faces = np.array([f.num_faces for f in figures], float)
        self.colors = np.array([_mean_color(f.colors) for f in figures])

    def candidates(self, num_bands: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Each sample with the later ones that share a band of its hash.

        Two hashes that differ in fewer bits than there are bands agree in at least one band.
        """
        bits = np.unpackbits(self.hashes, axis=1)
        for band in np.array_split(bits, num_bands, axis=1):
            values = np.packbits(band, axis=1)
            _, label = np.unique(values, axis=0, return_inverse=True)
            order = np.argsort(label.ravel(), kind="stable")
            starts = np.flatnonzero(np.diff(label.ravel()[order], prepend=-1))
            for group in np.split(order, starts[1:]):
                for i in range(len(group) - 1):
                    yield int(group[i]), group[i + 1 :]

    def differing_bits(self, first: int, others: NDArray[np.intp]) -> NDArray[np.intp]:
        differing = np.bitwise_count(self.hashes[first] ^ self.hashes[others])
        return np.asarray(differing.sum(1, dtype=np.intp))

    def alike(self, first: int, others: NDArray[np.intp], limits: Duplicates) -> NDArray[np.bool_]:
        extent = np.abs(self.extents[first] - self.extents[others]).max(1)
        color = np.abs(self.colors[first] - self.colors[others]).max(1)
        ratio = self.faces[first] / self.faces[others]
        return np.asarray(
            (extent <= limits.max_extent)
            & (color <= limits.max_color)
            & (np.maximum(ratio, 1 / ratio) <= limits.max_faces)
        )


def _mean_color(colors: Sequence[tuple[str, float]]) -> NDArray[np.float64]:
    """The mean of the main colours in [0, 1]."""
    if not colors:
        return np.ones(3)
    values = np.array([list(bytes.fromhex(name[1:])) for name, _ in colors]) / 255
    return np.asarray(np.average(values, axis=0, weights=[share for _, share in colors]))
