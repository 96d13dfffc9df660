"""What each data job tells its MLflow run: counts, the data set, files and pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_infer.tracking import Tracker
from kiss3d_train.data.captions.job import CAPTION_QUARANTINE, CaptionSummary
from kiss3d_train.data.curation import CURATION_NAME, Curation
from kiss3d_train.data.descriptions import (
    QUARANTINE_NAME,
    descriptions,
    picture_of,
    read_description,
)
from kiss3d_train.data.job_run import JobRun
from kiss3d_train.data.order import picked
from kiss3d_train.data.render import RenderSummary
from kiss3d_train.data.shards import SPLITS, ShardIndex, load_index
from kiss3d_train.data.storage import Place, name_of

_NUM_PICTURES = 12
SHEET_NAME = "contact_sheet.png"


def record_render(run: JobRun, summary: RenderSummary, source: str) -> None:
    """Tell of a render job: counts, quarantine, data set and some bundles."""

    def record(tracker: Tracker, scratch: Path) -> None:
        counts = {name: getattr(summary, name) for name in ("rendered", "kept", "quarantined")}
        _log_counts(tracker, counts, summary.rendered, summary.seconds)
        _log_file(tracker, summary.out / QUARANTINE_NAME)
        _log_samples(tracker, summary.out, source, "rendered")
        _log_sheet(tracker, summary.out, scratch)

    run.at_end(record)
    run.made(summary.out)


def record_captions(run: JobRun, summary: CaptionSummary) -> None:
    """Tell of a caption job: counts, what it cost, quarantine, data set and some captions."""

    def record(tracker: Tracker, scratch: Path) -> None:
        names = ("captioned", "kept", "quarantined", "unanswered")
        counts = {name: getattr(summary, name) for name in names} | summary.figures
        _log_counts(tracker, counts, summary.captioned, summary.seconds)
        _log_file(tracker, summary.folder / CAPTION_QUARANTINE)
        _log_samples(tracker, summary.folder, str(summary.folder), "captioned")
        _log_sheet(tracker, summary.folder, scratch)

    run.at_end(record)
    run.made(summary.folder)


def record_curation(run: JobRun, curation: Curation, folder: Path) -> None:
    """Tell of a curation: counts by filter and subset, every decision, and the data set."""

    def record(tracker: Tracker, _: Path) -> None:
        accepted = curation.num_accepted()
        counts: dict[str, float] = {
            "accepted": accepted,
            "rejected": len(curation.decisions) - accepted,
            **{f"rejected_by/{name}": n for name, (n, _) in curation.rejected_by().items()},
            **{f"subset/{name}": count for name, count in curation.subset_sizes().items()},
        }
        _log_counts(tracker, counts)
        _log_file(tracker, folder / CURATION_NAME)
        _log_samples(tracker, folder, str(folder), "curated")

    run.at_end(record)
    run.made(folder)


def record_shards(run: JobRun, index: ShardIndex, rendered: Path, out: Place) -> None:
    """Tell of a shard job: counts and the data set."""

    def record(tracker: Tracker, _: Path) -> None:
        counts: dict[str, float] = {split: sum(index.counts(split)) for split in SPLITS}
        counts |= {"shards": len(index.shards), "bytes": sum(s.size for s in index.shards)}
        _log_counts(tracker, counts)
        tracker.log_dataset(name_of(out), index.digest, str(rendered), "sharded")

    run.at_end(record)
    run.made(out)


def record_encoding(run: JobRun, shards: Place) -> None:
    """Tell of an encode job: which data set was encoded."""

    def record(tracker: Tracker, _: Path) -> None:
        index = load_index(shards)
        _log_counts(tracker, {split: sum(index.counts(split)) for split in SPLITS})
        tracker.log_dataset(name_of(shards), index.digest, str(shards), "encoded")

    run.at_end(record)


def manifest_digest(folder: Path) -> str:
    """Names what a rendered folder holds: SHA-256 over keys, checksums of bundles and captions."""
    digest = hashlib.sha256()
    for path in descriptions(folder):
        meta = read_description(path)
        line = [path.stem, meta.get("bundle_sha256"), meta.get("caption")]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _log_counts(
    tracker: Tracker, counts: Mapping[str, float], num_made: int = 0, seconds: float = 0.0
) -> None:
    metrics = {f"data/{name}": value for name, value in counts.items()}
    if seconds:
        metrics |= {"perf/seconds": seconds, "perf/samples_per_s": num_made / seconds}
    tracker.log_metrics(metrics, step=0)


def _log_file(tracker: Tracker, path: Path) -> None:
    if path.is_file():
        tracker.log_artifact(path)


def _log_samples(tracker: Tracker, folder: Path, source: str, context: str) -> None:
    tracker.log_dataset(folder.name, manifest_digest(folder), source, context)


def _log_sheet(tracker: Tracker, folder: Path, scratch: Path) -> None:
    """A picture of some bundles under their captions."""
    from PIL import Image

    from kiss3d_infer.bundle.image import opened_image
    from kiss3d_infer.scene.pictures import contact_sheet

    cells: list[tuple[str, Image.Image]] = []
    for path in picked(descriptions(folder), _NUM_PICTURES, "contact sheet"):
        caption = str(read_description(path).get("caption") or path.stem)
        try:
            with opened_image(picture_of(path)) as picture:
                cells.append((caption, picture.reduce(max(1, picture.width // 512))))
        except InputError:
            continue  # a damaged picture is the next job's business
    if cells:
        contact_sheet(cells, columns=3, width=1536).save(scratch / SHEET_NAME)
        tracker.log_artifact(scratch / SHEET_NAME)
