"""Rows of text in aligned columns, for the terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns that are as wide as their widest value; nothing is cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{x:{w}}" for x, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
