"""Curates a folder of rendered samples, from their descriptions alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kiss3d_infer.files import locked, writing
from kiss3d_train.data.curation.config import CurationConfig
from kiss3d_train.data.curation.duplicates import duplicates
from kiss3d_train.data.curation.filters import Finding, SampleFilter
from kiss3d_train.data.curation.record import CURATION_NAME, FORMAT, Curation, Decision
from kiss3d_train.data.curation.sample import Sample, read_samples
from kiss3d_train.data.curation.subsets import chosen
from kiss3d_train.data.descriptions import require_descriptions


def curate(folder: Path, config: CurationConfig | None = None) -> Curation:
    """Decide about every sample that `render_source` left in a folder, from descriptions alone.

    The decisions, accepted samples included, are written to `curation.jsonl`; the last ones are
    replaced. They are a function of the descriptions and the configuration.

    Raises:
        InputError: there are no samples, they have no figures, or another job works here.
    """
    config = config or CurationConfig()
    require_descriptions(folder)  # before the lock, which would make a folder that is not there
    with locked(folder):
        samples = read_samples(folder)
        curation = decide(samples, config)
        header = {"format": FORMAT, "version": 1, "config": config.model_dump(mode="json")}
        lines = [json.dumps(header), *(decision.to_json() for decision in curation.decisions)]
        with writing(folder / CURATION_NAME) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return curation


def decide(samples: Sequence[Sample], config: CurationConfig) -> Curation:
    """The decisions about samples, ordered by key."""
    filters = {
        name: filter
        for name, filter in config.filters.named().items()
        if isinstance(filter, SampleFilter) and filter.enabled
    }
    reasons: dict[str, dict[str, Finding]] = {}
    for sample in samples:
        findings = {name: filter.finding(sample) for name, filter in filters.items()}
        reasons[sample.key] = {name: found for name, found in findings.items() if found}
    if config.filters.duplicates.enabled:
        passed = [sample for sample in samples if not reasons[sample.key]]
        for key, finding in duplicates(passed, config.filters.duplicates).items():
            reasons[key]["duplicates"] = finding
    accepted = [sample for sample in samples if not reasons[sample.key]]
    members = {name: chosen(accepted, subset) for name, subset in config.subsets.items()}
    decisions = (
        Decision(
            sample.key,
            sample.digest(),
            reasons[sample.key],
            tuple(name for name, keys in members.items() if sample.key in keys),
        )
        for sample in sorted(samples, key=lambda sample: sample.key)
    )
    return Curation(config, tuple(decisions))
