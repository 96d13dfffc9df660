"""The record of a curation: which samples are accepted, which are not, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError
from kiss3d_train.data.curation.config import CurationConfig
from kiss3d_train.data.curation.filters import Finding
from kiss3d_train.data.curation.sample import Sample

CURATION_NAME = "curation.jsonl"
"""In the folder of samples: the configuration in the first line, then a line per sample."""
FORMAT = "kiss3d-curation"
_CURATE = "run 'kiss3d data curate' on the folder"


@dataclass(frozen=True)
class Decision:
    """What became of one sample.

    Attributes:
        sample: changes when the sample does.
        reasons: what each filter that rejects it found, by the filter's name; none = accepted.
        subsets: the names of those that it belongs to.
    """

    key: str
    sample: str
    reasons: Mapping[str, Finding]
    subsets: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether no filter rejects it."""
        return not self.reasons

    def to_json(self) -> str:
        """A line of the record."""
        reasons = [{"filter": name, **asdict(finding)} for name, finding in self.reasons.items()]
        record = {
            "key": self.key,
            "accepted": self.accepted,
            "reasons": reasons,
            "subsets": self.subsets,
            "sample": self.sample,
        }
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Decision:
        """A line of the record, read back."""
        record = json.loads(line)
        reasons = {
            reason["filter"]: Finding(reason["reason"], reason["figures"])
            for reason in record["reasons"]
        }
        return cls(record["key"], record["sample"], reasons, tuple(record["subsets"]))


@dataclass(frozen=True)
class Curation:
    """The decisions about every sample of a folder, ordered by key, and what they rest on."""

    config: CurationConfig
    decisions: tuple[Decision, ...]

    def rejected_by(self) -> dict[str, tuple[int, int]]:
        """For each enabled filter: how many it rejects, and how many no other filter does."""
        every: Counter[str] = Counter()
        alone: Counter[str] = Counter()
        for decision in self.decisions:
            every.update(decision.reasons.keys())
            if len(decision.reasons) == 1:
                alone.update(decision.reasons.keys())
        filters = self.config.filters.named().items()
        return {name: (every[name], alone[name]) for name, filter in filters if filter.enabled}

    def subset_sizes(self) -> dict[str, int]:
        """How many samples each subset has."""
        sizes = Counter(name for decision in self.decisions for name in decision.subsets)
        return {name: sizes[name] for name in self.config.subsets}

    def num_accepted(self) -> int:
        """How many samples are accepted."""
        return sum(decision.accepted for decision in self.decisions)

    def __str__(self) -> str:
        """A table of outcomes by filter, and the subsets."""
        accepted = self.num_accepted()
        rows = [
            f"{name:<16} {every:>8} {alone:>8}"
            for name, (every, alone) in self.rejected_by().items()
        ]
        off = [name for name, filter in self.config.filters.named().items() if not filter.enabled]
        subsets = (f"{name} {size}" for name, size in self.subset_sizes().items())
        return "\n".join(
            (
                f"{'filter':<16} {'rejected':>8} {'by it alone':>8}",
                *rows,
                *([f"switched off: {', '.join(off)}"] if off else []),
                f"{accepted} accepted, {len(self.decisions) - accepted} rejected",
                f"subsets: {', '.join(subsets)}",
            )
        )


def read_curation(folder: Path) -> Curation | None:
    """The last curation of a folder; None if there was none.

    Raises:
        InputError: its record cannot be read.
    """
    path = folder / CURATION_NAME
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        config = CurationConfig.model_validate(json.loads(header)["config"])
        return Curation(config, tuple(map(Decision.from_json, lines)))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the record of a curation cannot be read", where=path, fix=_CURATE
        ) from error


def accepted_only(
    folder: Path, descriptions: Sequence[dict[str, Any]], subset: str | None = None
) -> list[dict[str, Any]]:
    """The descriptions of accepted samples; all of them where a folder was never curated.

    Args:
        folder: of the samples.
        descriptions: of every sample in it.
        subset: only the samples of a named subset.

    Raises:
        InputError: the samples are not those that were curated, a subset is asked for that the
            curation does not name, or nothing is left.
    """
    curation = read_curation(folder)
    if curation is None:
        if subset is None:
            return list(descriptions)
        raise InputError("subsets are made by a curation", where=folder, fix=f"first {_CURATE}")
    if subset is not None and subset not in curation.config.subsets:
        names = ", ".join(curation.config.subsets)
        raise InputError(
            f"the curation has no subset {subset}", where=folder, fix=f"it has {names}"
        )
    _require_same(folder, descriptions, curation)
    keys = {
        decision.key
        for decision in curation.decisions
        if decision.accepted and (subset is None or subset in decision.subsets)
    }
    left = [meta for meta in descriptions if meta["key"] in keys]
    if not left:
        of = "" if subset is None else f" of the subset {subset}"
        raise InputError(f"no sample{of} is accepted", where=folder, fix="loosen the filters")
    return left


def _require_same(folder: Path, descriptions: Sequence[dict[str, Any]], curation: Curation) -> None:
    present = {meta["key"]: Sample.of(meta).digest() for meta in descriptions}
    judged = {decision.key: decision.sample for decision in curation.decisions}
    if present == judged:
        return
    new, gone = len(present.keys() - judged.keys()), len(judged.keys() - present.keys())
    changed = sum(judged[key] != present[key] for key in present.keys() & judged.keys())
    raise InputError(
        f"the curation is out of date: {new} samples are new, {gone} gone, {changed} changed",
        where=folder / CURATION_NAME,
        fix="run 'kiss3d data curate' on the folder again",
    )
