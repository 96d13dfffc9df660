"""The points of a run's curves in a file beside it, for those that never reach the server."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

Point = tuple[str, float, int, int]
"""Key, value, milliseconds since 1970, step."""


class PointLog:
    """One JSON line per call of `append`, written at once; a line that a kill cut off is skipped.

    Opening it fixes what counts as earlier: the lines that are there already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._earlier = path.stat().st_size if path.exists() else 0
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if self._earlier:
            self._file.write("\n")  # after a line that was cut off

    def append(self, values: Mapping[str, float], milliseconds: int, step: int) -> None:
        """Keep the points of a step."""
        self._file.write(f"{json.dumps([step, milliseconds, dict(values)])}\n")

    def last_steps(self) -> dict[str, int]:
        """The last step of each metric among the earlier points."""
        last: dict[str, int] = {}
        for key, _, _, step in self._points():
            last[key] = max(step, last.get(key, -1))
        return last

    def earlier(self, size: int) -> Iterator[list[Point]]:
        """The earlier points in order, as many at a time; the file is never whole in memory."""
        points = self._points()
        while part := list(itertools.islice(points, size)):
            yield part

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _points(self) -> Iterator[Point]:
        with self._path.open("rb") as file:
            while file.tell() < self._earlier:
                try:
                    step, milliseconds, values = json.loads(file.readline())
                    yield from [(key, float(x), milliseconds, step) for key, x in values.items()]
                except (ValueError, TypeError, AttributeError):
                    continue
