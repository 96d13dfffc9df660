"""A bounded cache on this machine's disk for what was read over the network.

Each entry is a file named by a checksum of what it holds, so that an entry is never out of date and
one that was damaged is noticed and fetched again. Several processes may use one cache: entries are
written aside and renamed, and the total is kept under a lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kiss3d_infer.files import writable_folder
from kiss3d_train.data.storage import DamageError

_TOTAL = ".total"
"""Holds the bytes of all entries; the lock is on this file."""
_ENCODE_AGAIN = "delete the file and run `kiss3d data encode`, which makes what is missing"
_KEPT = 0.9
"""Share of the limit that is left after old entries were dropped."""


class DiskCache:
    """Least recently used entries go first when the limit is reached.

    Args:
        folder: made if needed.
        limit: bytes; larger entries are not kept.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = writable_folder(folder), limit

    def get(self, key: str) -> bytes | None:
        """An entry, if it is here."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)  # marks it as used
        except FileNotFoundError:
            return None
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry. A full disk is no error: the entry is then not kept."""
        path = self._path(key)
        if len(data) > self.limit:
            return
        aside = self.folder / f"{key}.{os.getpid()}.{os.urandom(3).hex()}.partial"
        try:
            path.parent.mkdir(exist_ok=True)
            with self._locked() as total:
                replaced = path.stat().st_size if path.exists() else 0
                total += len(data) - replaced
                if total > self.limit:
                    total = self._drop(int(self.limit * _KEPT) - len(data)) + len(data)
                aside.write_bytes(data)
                aside.replace(path)
                self._note(total)
        except OSError:
            aside.unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        """Forget an entry."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with (self.folder / _TOTAL).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            yield int(text) if text.isdigit() else self._drop(self.limit)

    def _note(self, total: int) -> None:
        (self.folder / _TOTAL).write_text(str(total))

    def _drop(self, allowed: int) -> int:
        """Delete the entries used longest ago until the rest fits; returns what the rest takes."""
        for left_by_a_kill in self.folder.glob("*.partial"):
            left_by_a_kill.unlink(missing_ok=True)  # writers hold the lock, and so do we
        entries = []
        for path in self.folder.glob("??/*"):
            status = path.stat()
            entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= allowed:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total


def read_checked(
    read: Callable[[], list[bytes]],
    is_right: Callable[[list[bytes]], bool],
    key: str,
    cache: DiskCache | None,
    where: object,
) -> list[bytes]:
    """Bytes that are what they should be, from a cache or from where they lie.

    Wrong ones are read once more: what is kept on the way may be wrong while the source is right.

    Args:
        read: from where they lie, in parts.
        is_right: checks the parts.
        key: names the content in the cache, which holds the parts as one.
        cache: None to do without.
        where: named in errors.

    Raises:
        DamageError: they are missing, or wrong twice.
    """
    if cache and (kept := cache.get(key)) is not None:
        if is_right([kept]):
            return [kept]
        cache.drop(key)
    for _ in range(2):
        try:
            parts = read()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DamageError(
                f"the data cannot be read: {reason}", where=where, fix=_ENCODE_AGAIN
            ) from error
        if is_right(parts):
            if cache:
                cache.put(key, b"".join(parts))
            return parts
    raise DamageError("the bytes differ from the index", where=where, fix=_ENCODE_AGAIN)
