"""Named subsets of a data set: by tag, by list and by number, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_train.data.curation.config import Subset
from kiss3d_train.data.curation.sample import Sample, says


def chosen(samples: Sequence[Sample], subset: Subset) -> set[str]:
    """The keys of the samples that belong to a subset.

    Args:
        samples: those that are accepted.
        subset: which of them.

    Raises:
        InputError: the subset's list cannot be read.
    """
    listed = None if subset.keys is None else _listed(subset.keys)
    keys = [
        sample.key
        for sample in samples
        if _is_tagged(sample, subset.tags)
        and (listed is None or sample.key in listed or sample.uid in listed)
    ]
    if subset.size is not None:
        keys = sorted(keys, key=lambda key: _rank(subset.seed, key))[: subset.size]
    return set(keys)


def _is_tagged(sample: Sample, tags: Sequence[str]) -> bool:
    texts = (sample.name, sample.category, *sample.tags)
    return not tags or any(says(text, tag) for text in texts for tag in tags)


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"subset {seed} {key}".encode()).digest()


def _listed(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "the subset's list cannot be read", where=path, fix="give a text file, one key a line"
        ) from error
    return {line.strip() for line in lines} - {""}
