"""What both programs of this folder can be told."""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that they share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="file to write; results/ by default")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", nargs="*", help="rows whose name holds one of these words")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a row")
    parser.add_argument("--limit-s", type=float, default=1e9, help="no row starts after this")
    return parser


def started(rows: Mapping[str, T], options: argparse.Namespace) -> Iterator[T]:
    """The wanted ones of named rows; each is told as it starts, and none starts after the limit."""
    began = time.perf_counter()
    wanted = {
        name: row
        for name, row in rows.items()
        if any(word in name for word in options.only or [name])
    }
    for number, (name, row) in enumerate(wanted.items(), 1):
        seconds = time.perf_counter() - began
        if seconds > options.limit_s:
            return
        print(f"row {number}/{len(wanted)}: {name} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        yield row
