"""Writes the captions of a rendered folder: resumable, several at a time, whole files only."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from kiss3d_infer.files import locked, sweep, writing
from kiss3d_infer.progress import track
from kiss3d_train.data.captions.captioner import (
    EXACT,
    BadSampleError,
    Captioner,
    NoAnswerError,
    Sample,
    StopCaptioningError,
)
from kiss3d_train.data.descriptions import require_descriptions
from kiss3d_train.data.quarantine import Quarantine

CAPTION_QUARANTINE = "captions.quarantine.jsonl"
"""One line per sample whose caption failed; delete it to have them tried again."""
_MAX_FAILURES_IN_A_ROW = 10


@dataclass
class CaptionSummary:
    """What a caption job did.

    Attributes:
        captioned: samples whose caption was written now.
        kept: samples that had one of the same captioner, or an exact one.
        quarantined: samples that get none; reasons are in `captions.quarantine.jsonl`.
        unanswered: samples that got none this time; run again.
        stopped: why the job ended early, else empty.
        figures: what the captioner took, e.g. tokens.
    """

    folder: Path
    captioned: int = 0
    kept: int = 0
    quarantined: int = 0
    unanswered: int = 0
    stopped: str = ""
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether no sample is left for another run."""
        return not (self.stopped or self.unanswered)

    def __str__(self) -> str:
        """One line, and another with the reason if the job ended early."""
        used = "".join(f", {name.replace('_', ' ')} {n:g}" for name, n in self.figures.items())
        unanswered = f", {self.unanswered} unanswered" if self.unanswered else ""
        line = (
            f"{self.captioned} captioned, {self.kept} kept, {self.quarantined} quarantined"
            f"{unanswered} in {self.seconds:.0f} s{used}: {self.folder}"
        )
        return f"{line}\n{self.stopped}" if self.stopped else line


def caption_samples(
    folder: Path, captioner: Captioner, *, overwrite: bool = False, limit: int | None = None
) -> CaptionSummary:
    """Write `caption` and `caption_source` into the description of every sample that needs them.

    A sample is done when its caption comes from this captioner, model and prompt; one that another
    captioner has described is described anew. Ctrl-C waits for the answers under way and leaves
    whole files; the next run goes on.

    Args:
        folder: left by `render_source`.
        captioner: who writes.
        overwrite: replace the exact captions that came with the meshes, too.
        limit: only the first so many samples.

    Raises:
        InputError: no samples, another job works in the folder, or the captioner's settings are
            wrong.
    """
    paths = require_descriptions(folder)[:limit]
    with locked(folder):
        sweep(folder)
        quarantine = Quarantine(folder / CAPTION_QUARANTINE)
        summary = CaptionSummary(folder)
        began = time.monotonic()
        try:
            todo = _todo(paths, captioner, quarantine, summary, overwrite)
            _caption_all(todo, len(paths), captioner, quarantine, summary)
        finally:
            quarantine.save()
            summary.seconds = time.monotonic() - began
            summary.figures = dict(captioner.figures)
    return summary


def _todo(
    paths: Iterable[Path],
    captioner: Captioner,
    quarantine: Quarantine,
    summary: CaptionSummary,
    overwrite: bool,
) -> Generator[Sample]:
    """The samples that need a caption; the others are counted."""
    source = captioner.source.to_json()
    done = [source] if overwrite else [source, EXACT]
    for path in paths:
        sample = Sample.read(path)
        before = sample.meta.get("caption_source")
        if before in done:
            summary.kept += 1
        elif quarantine.get(sample.key, {}).get("caption_source") == source:
            summary.quarantined += 1
        else:
            yield sample


Outcome = str | Exception
"""A caption, or why there is none."""


def _caption_all(
    todo: Iterable[Sample],
    num_samples: int,
    captioner: Captioner,
    quarantine: Quarantine,
    summary: CaptionSummary,
) -> None:
    source = captioner.source.to_json()
    failures_in_a_row = 0
    with closing(_outcomes(todo, captioner, summary)) as outcomes:
        for sample, outcome in track(outcomes, "captioning", num_samples):
            if isinstance(outcome, str):
                _store(sample, outcome, source)
                quarantine.note(sample.key, None)
                summary.captioned += 1
                failures_in_a_row = 0
                continue
            if isinstance(outcome, BadSampleError):
                record = {"key": sample.key, "reason": str(outcome), "caption_source": source}
                quarantine.note(sample.key, record)
                summary.quarantined += 1
            elif isinstance(outcome, NoAnswerError | StopCaptioningError):
                summary.unanswered += 1
            else:
                raise outcome
            failures_in_a_row += 1
            if isinstance(outcome, StopCaptioningError):
                summary.stopped = summary.stopped or str(outcome)
            elif failures_in_a_row == _MAX_FAILURES_IN_A_ROW:
                summary.stopped = f"{failures_in_a_row} samples in a row failed: {outcome}"


def _store(sample: Sample, caption: str, source: dict[str, str]) -> None:
    meta = sample.meta | {"caption": caption, "caption_source": source}
    with writing(sample.description) as aside:
        aside.write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


def _outcomes(
    todo: Iterable[Sample], captioner: Captioner, summary: CaptionSummary
) -> Generator[tuple[Sample, Outcome]]:
    """Each sample with its outcome, in the order in which they end; none begins after a stop."""
    running: dict[Future[str], Sample] = {}
    with ThreadPoolExecutor(captioner.num_threads) as pool:
        try:
            for sample in todo:
                running[pool.submit(captioner.caption, sample)] = sample
                # One more than there are threads, so that none waits for this one.
                if len(running) > captioner.num_threads:
                    yield from _ended(running)
                if summary.stopped:
                    break
            while running:
                yield from _ended(running)
        finally:
            captioner.stop()
            for future in running:
                future.cancel()


def _ended(running: dict[Future[str], Sample]) -> Generator[tuple[Sample, Outcome]]:
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in ended:
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        yield running.pop(future), error or future.result()
