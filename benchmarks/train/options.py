"""What both programs of this folder can be told."""

import argparse
import time
from pathlib import Path


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that they share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="file to write; results/ by default")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", nargs="*", help="rows whose name holds one of these words")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a row")
    parser.add_argument("--limit-s", type=float, default=1e9, help="no row starts after this")
    return parser


def starts(name: str, options: argparse.Namespace, began: float) -> bool:
    """Whether a row is wanted, and its time has not run out since `began` (`perf_counter`)."""
    is_wanted = any(word in name for word in options.only or [name])
    return is_wanted and time.perf_counter() - began <= options.limit_s
