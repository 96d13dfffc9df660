"""What curation knows of a rendered sample: its description and figures, not its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kiss3d_infer.config import explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.progress import track
from kiss3d_train.data.curation.statistics import Statistics
from kiss3d_train.data.descriptions import read_description, require_descriptions

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Sample:
    """The part of a sample's description that decides whether it is accepted."""

    key: str
    uid: str
    name: str
    caption: str
    category: str
    tags: tuple[str, ...]
    source: str
    licence: str | None
    statistics: Statistics

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Sample:
        """From the description that `kiss3d data render` writes.

        Raises:
            InputError: it has no figures, or others than this version's.
        """
        try:
            statistics = Statistics.model_validate(meta["statistics"])
        except KeyError as error:
            raise InputError(
                f"{meta['key']} has no figures to be curated by",
                fix="run 'kiss3d data render' over the folder again",
            ) from error
        except ValidationError as error:
            reason = explain(error, Statistics)
            raise InputError(
                f"the figures of {meta['key']} are wrong: {reason[:300]}",
                fix="render it again",
            ) from error
        return cls(
            key=meta["key"],
            uid=str(meta.get("uid") or ""),
            name=str(meta.get("name") or ""),
            caption=str(meta.get("caption") or ""),
            category=str(meta.get("category") or ""),
            tags=tuple(map(str, meta.get("tags") or ())),
            source=str(meta.get("source") or ""),
            licence=meta.get("licence"),
            statistics=statistics,
        )

    def digest(self) -> str:
        """Changes when anything does that a decision may rest on."""
        known = asdict(self) | {"statistics": self.statistics.model_dump(mode="json")}
        return sha256_of(json.dumps(known, sort_keys=True).encode())[:16]


def read_samples(folder: Path) -> list[Sample]:
    """Every sample that a render job left in a folder, ordered by key.

    Raises:
        InputError: there are none, or a description cannot be used.
    """
    paths = require_descriptions(folder)
    return [Sample.of(read_description(path)) for path in track(paths, "reading descriptions")]


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case: "CC-BY_NC 4.0" becomes cc, by, nc, 4, 0."""
    return tuple(_WORD.findall(text.casefold()))


def says(text: str, phrase: str) -> bool:
    """Whether a text contains a phrase, word by word: "car" is in "a red car", not in "card"."""
    wanted, words = words_of(phrase), words_of(text)
    ends = range(len(words) - len(wanted) + 1)
    return any(words[i : i + len(wanted)] == wanted for i in ends)
