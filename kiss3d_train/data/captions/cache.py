"""Answers that were paid for, by picture, model and question."""

from __future__ import annotations

import json
from pathlib import Path

from kiss3d_infer.files import sha256_of, writing

CACHE_NAME = ".captions"
"""Folder beside the samples; hidden, as nothing else reads it."""


class AnswerCache:
    """One small file per answer, which appears only when whole.

    Args:
        folder: of the samples.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / CACHE_NAME

    def get(self, key: str) -> str | None:
        """The answer kept under a key."""
        try:
            return str(json.loads(self._path(key).read_bytes())["answer"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, answer: str) -> None:
        """Keep an answer."""
        with writing(self._path(key)) as aside:
            aside.write_text(json.dumps({"answer": answer}, ensure_ascii=False), encoding="utf-8")

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def cache_key(pixels: bytes, model: str, question: str) -> str:
    """Names an answer by what it depends on.

    Args:
        pixels: of the picture, unencoded: encoders of other versions give other bytes.
        model: that is asked.
        question: the words that go with the picture.
    """
    parts = [sha256_of(pixels), sha256_of(model.encode()), sha256_of(question.encode())]
    return sha256_of("\n".join(parts).encode())
