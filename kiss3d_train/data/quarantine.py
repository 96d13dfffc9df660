"""A job's list of what it could not use: one JSON object per line, with the reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from kiss3d_infer.files import writing

Record = dict[str, Any]
"""A line; it has at least `key` and `reason`."""


class Quarantine:
    """The samples that a job could not use, ordered by key.

    Args:
        path: of the file, read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._records: dict[str, Record] = {
            record["key"]: record for record in map(json.loads, lines)
        }

    def get(self, key: str, default: Record) -> Record:
        """A sample's record, or the default."""
        return self._records.get(key, default)

    def reasons(self) -> Counter[str]:
        """How many samples could not be used for each reason."""
        return Counter(str(record["reason"]) for record in self._records.values())

    def note(self, key: str, record: Record | None) -> None:
        """Note a failure, or with None that all went well."""
        self._records.pop(key, None)
        if record is not None:
            self._records[key] = record

    def save(self) -> None:
        """Write the file, empty if all went well."""
        lines = [
            json.dumps(self._records[key], ensure_ascii=False) for key in sorted(self._records)
        ]
        with writing(self.path) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
