"""The figures of a page: counts by name and histograms, accepted samples apart from rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kiss3d_train.data.report.entries import Entry

_NUM_BINS = 24
_NUM_LISTED = 20
Getter = Callable[[Entry], float]


@dataclass(frozen=True)
class Row:
    """A name and how many accepted and rejected samples have it."""

    name: str
    accepted: int
    rejected: int

    @property
    def total(self) -> int:
        """Both."""
        return self.accepted + self.rejected


@dataclass(frozen=True)
class Histogram:
    """Counts in equally wide bins.

    Attributes:
        title: what is counted.
        ends: the lowest value, the middle of the scale and the highest value, as words.
        accepted: accepted samples per bin.
        rejected: rejected samples per bin.
    """

    title: str
    ends: list[str]
    accepted: list[int]
    rejected: list[int]

    @property
    def tallest(self) -> int:
        """The largest sum of a bin."""
        return max(map(sum, zip(self.accepted, self.rejected, strict=True)))


def counted(entries: Sequence[Entry], name_of: Callable[[Entry], str]) -> list[Row]:
    """The most frequent names; the rest in one row."""
    accepted, rejected = Counter[str](), Counter[str]()
    for entry in entries:
        (rejected if entry.is_rejected else accepted)[name_of(entry)] += 1
    names = sorted((accepted + rejected).items(), key=lambda item: (-item[1], item[0]))
    rows = [Row(name, accepted[name], rejected[name]) for name, _ in names]
    shown, rest = rows[:_NUM_LISTED], rows[_NUM_LISTED:]
    if rest:
        sums = sum(row.accepted for row in rest), sum(row.rejected for row in rest)
        shown.append(Row(f"{len(rest)} others", *sums))
    return shown


def histogram(
    title: str, entries: Sequence[Entry], value_of: Getter, *, is_log: bool = False
) -> Histogram:
    """Values of accepted and of rejected samples over common bins.

    Args:
        title: what is counted.
        entries: all samples.
        value_of: the value of one.
        is_log: for positive values of very different sizes.
    """
    values = np.array([value_of(entry) for entry in entries], float)
    is_rejected = np.array([entry.is_rejected for entry in entries])
    scaled = np.log10(np.maximum(values, 1e-3)) if is_log else values
    low, high = float(scaled.min()), float(scaled.max())
    if not is_log and (values % 1 == 0).all() and high - low < _NUM_BINS:
        edges = np.arange(low, high + 2) - 0.5  # a bin for each number
    else:
        edges = np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1)
    accepted, rejected = (
        np.histogram(scaled[part], edges)[0] for part in (~is_rejected, is_rejected)
    )
    ends = [_label(10**end if is_log else end) for end in (low, (low + high) / 2, high)]
    return Histogram(title, ends, accepted.tolist(), rejected.tolist())


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
