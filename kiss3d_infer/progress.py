"""Progress that suits both a terminal and a log file."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

ProgressFn = Callable[[str, float], None]
"""Called as (stage, fraction in [0, 1]); an exception raised in it cancels the work."""

_LOG_EVERY_SECONDS = 5.0


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many are done: a bar on a terminal, else a line at times.

    Progress goes to stderr, so that a command's output can be piped.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def show_stages(label: str) -> ProgressFn:
    """Return a `ProgressFn` that prints each new stage, and its share done every few seconds."""
    began = time.monotonic()
    last_stage, last_time = "", began

    def report(stage: str, fraction: float) -> None:
        nonlocal last_stage, last_time
        now = time.monotonic()
        if stage != last_stage or now - last_time >= _LOG_EVERY_SECONDS:
            print(f"{label}: {stage} {fraction:.0%} ({now - began:.0f} s)", file=sys.stderr)
            last_stage, last_time = stage, now

    return report


def _bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    began = last = time.monotonic()
    count = 0
    of_total = "" if total is None else f"/{total}"
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= _LOG_EVERY_SECONDS:
            print(f"{label}: {count}{of_total} ({now - began:.0f} s)", file=sys.stderr)
            last = now
    elapsed = time.monotonic() - began
    print(f"{label}: {count}{of_total} done ({elapsed:.0f} s)", file=sys.stderr)
