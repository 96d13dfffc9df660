"""Tars on a disk or in an object store: which there are, and parts of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kiss3d_infer.errors import InputError
from kiss3d_train.data.sources.remote import explained, version_of
from kiss3d_train.data.storage import open_store

_MAGIC = re.compile(r"[*?\[{]")
_HEADER_BYTES = 1 << 16
"""Fetched at a time from a store while members are listed: headers, and what is small."""
Place = tuple[int, int]
"""Offset and size of a member's content."""


class Tars(Protocol):
    """The tars of a source, by their names in it.

    Attributes:
        pattern: what names them, as given.
        source: a name of them all; it enters the keys.
    """

    pattern: str
    source: str

    def versions(self) -> dict[str, str]:
        """Names in order, and what changes when a tar does: empty where its members tell.

        Raises:
            InputError: a pattern or an address is wrong.
        """
        ...

    def scan(self, name: str, look: Callable[[BinaryIO], bool]) -> bool:
        """What `look` says of an open tar; False if a disk cannot read it."""
        ...

    def read(self, name: str, places: Sequence[Place]) -> list[bytes]:
        """Parts of a tar, shorter where it ends.

        Raises:
            InputError: it cannot be read.
        """
        ...


class LocalTars:
    """Those in a folder and below, one tar, or those of a pattern.

    Args:
        pattern: a folder, a tar, or a pattern with `*`, `?`, `[...]` or `{...}`.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = str(Path(pattern).absolute())
        self.folder = base_folder(pattern)
        self.source = self.folder.name

    def versions(self) -> dict[str, str]:
        """See `Tars.versions`."""
        path = Path(self.pattern)
        if path.is_dir():
            tars = sorted(path.rglob("*.tar"))
        elif path.is_file():
            tars = [path]
        else:
            tars = sorted({tar for part in _expanded(self.pattern) for tar in _globbed(part)})
        return {tar.relative_to(self.folder).as_posix(): "" for tar in tars}

    def scan(self, name: str, look: Callable[[BinaryIO], bool]) -> bool:
        """See `Tars.scan`."""
        try:
            with (self.folder / name).open("rb") as file:
                return look(file)
        except OSError:
            return False

    def read(self, name: str, places: Sequence[Place]) -> list[bytes]:
        """See `Tars.read`."""
        path = self.folder / name
        try:
            with path.open("rb", buffering=0) as file:
                return [os.pread(file.fileno(), size, offset) for offset, size in places]
        except OSError as error:
            raise InputError(f"the tar cannot be read: {error.strerror}", where=path) from error


class RemoteTars:
    """The same below a URL; only `versions` lists, only `scan` looks for members.

    Args:
        pattern: a prefix, a tar, or a pattern, of one of `SCHEMES`.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern.rstrip("/")
        parts = self.pattern.split("/")
        magic = next((k for k, part in enumerate(parts) if _MAGIC.search(part)), None)
        self._is_prefix = magic is None and not self.pattern.endswith(".tar")
        self.source = self.pattern if self._is_prefix else "/".join(parts[: magic or -1])

    def versions(self) -> dict[str, str]:
        """See `Tars.versions`."""
        store, root = self._opened
        with explained(self.pattern):
            store.invalidate_cache()
            listing: dict[str, Any] = {}
            if self._is_prefix:
                listing = store.find(root, detail=True)
            else:
                for part in _expanded(self.pattern):
                    listing |= store.glob(open_store(part)[1], detail=True)
        return {
            path[len(root) :].lstrip("/"): version_of(listing[path])
            for path in sorted(listing)
            if path.endswith(".tar") and listing[path]["type"] == "file"
        }

    def scan(self, name: str, look: Callable[[BinaryIO], bool]) -> bool:
        """See `Tars.scan`."""
        store, root = self._opened
        with (
            explained(f"{self.source}/{name}"),
            store.open(f"{root}/{name}", "rb", block_size=_HEADER_BYTES) as file,
        ):
            return look(file)

    def read(self, name: str, places: Sequence[Place]) -> list[bytes]:
        """See `Tars.read`."""
        store, root = self._opened
        with explained(f"{self.source}/{name}"):
            return [
                store.cat_file(f"{root}/{name}", start=offset, end=offset + size) if size else b""
                for offset, size in places
            ]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        store, root = open_store(self.source)
        return store, root.rstrip("/")


def base_folder(pattern: str) -> Path:
    """The folder whose name stands for a source: the pattern's last part without wildcards."""
    path = Path(pattern).absolute()
    if path.is_dir():
        return path
    return next(parent for parent in path.parents if not _MAGIC.search(str(parent)))


def _expanded(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise InputError("the braces do not match", where=pattern, fix="write {00..31}") from error


def _globbed(pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    return Path(path.anchor).glob(path.relative_to(path.anchor).as_posix())
