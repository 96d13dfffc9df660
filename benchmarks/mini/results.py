"""The results' file, written after every prompt, and the means over all."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import describe, write_report
from benchmarks.mini.samples import Row
from kiss3d_infer.errors import InputError


class Results:
    """Rows of one model and one way to draw; a file that holds some goes on from there.

    Args:
        path: of the JSON file.
        setup: what the rows depend on.

    Raises:
        InputError: the file holds rows of another setup, or is no results' file.
    """

    def __init__(self, path: Path, setup: Row) -> None:
        self.path = path
        self._report: Row = {"command": "python -m benchmarks.mini", "setup": setup, "rows": []}
        if path.exists():
            self._report = _read(path, setup)

    @property
    def rows(self) -> list[Row]:
        """One for each prompt measured so far, in order."""
        rows: list[Row] = self._report["rows"]
        return rows

    def add(self, row: Row) -> None:
        """Note a prompt."""
        self.rows.append(row)
        self.write()

    def note(self, name: str, value: Any) -> None:
        """Note what is measured once."""
        self._report[name] = value
        self.write()

    def noted(self, name: str) -> Any:
        """What was noted, or None."""
        return self._report.get(name)

    def write(self) -> None:
        """Write everything; the file is never half written."""
        report = self._report | {
            "machine": describe("diffusers", "transformers"),
            "mean": means(self.rows),
        }
        report["rows"] = report.pop("rows")  # last, so that the means are seen first
        write_report(report, "mini", self.path)


def means(rows: list[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """By section and figure: the mean over the rows that have it, and their number."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for section, figures in row.items():
            if isinstance(figures, dict):
                for name, value in figures.items():
                    if isinstance(value, bool | int | float):
                        values[section][name].append(float(value))
    return {
        section: {name: {"mean": mean(v), "of": len(v)} for name, v in figures.items()}
        for section, figures in values.items()
    }


def _read(path: Path, setup: Row) -> Row:
    try:
        report: Row = json.loads(path.read_bytes())
        known = report["setup"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("these are no results", where=path, fix="choose another --out") from error
    if known != json.loads(json.dumps(setup)):
        differing = sorted(name for name in setup if known.get(name) != setup[name])
        raise InputError(
            f"these are results of another setup ({', '.join(differing)} differ)",
            where=path,
            fix="choose another --out",
        )
    return report
