"""Folders of files on this machine or in an object store: the few verbs that a data set needs.

A place is a path or a URL: `s3://bucket/set`, `gs://bucket/set`, `file:///data/set`, or
`memory://set` in tests. Other schemes are refused, `pipe:` among them, which runs commands in plain
webdataset. Credentials and endpoints come from where each store's own tools look for them.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import DISK_FULL, explaining_full_disk, writing

Place = Path | str
"""A path, or a URL of one of `SCHEMES`."""
SCHEMES = ("s3", "gs", "file", "memory")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_TRIES = 6
_FIRST_DELAY = 0.5
"""Seconds before the second try; doubled before each further one."""

Range = tuple[int, int]
"""(offset, size) in a file."""
T = TypeVar("T")


class DamageError(InputError):
    """Bytes that are missing, or are not those that were indexed; reading again does not help."""


class UnreachableError(RuntimeError):
    """A store that did not answer, however often it was asked."""


class Folder(Protocol):
    """A folder without subfolders of interest. A file in it is whole or absent.

    Reading what is not there raises FileNotFoundError; a store that does not answer, an
    UnreachableError after several tries.
    """

    @property
    def place(self) -> Place:
        """Where it is."""

    def child(self, name: str) -> Folder:
        """A folder in it."""

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, hidden ones left out; empty if there is no such folder."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """Parts of a file that lie close to each other; shorter where the file ends before."""

    def fetched(self, name: str) -> AbstractContextManager[Path]:
        """A file as a path on this machine, for the length of a block."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A temporary path whose content becomes the file when the block succeeds."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""


def parse_place(text: Place) -> Place:
    """A path or a URL from what a person wrote; `file:` URLs become paths.

    Raises:
        InputError: the URL's scheme is not one of `SCHEMES`, or it names no folder.
    """
    if isinstance(text, Path):
        return text
    found = _SCHEME.match(text)
    if not found:
        return Path(text)
    scheme = found[1].lower()
    if scheme not in SCHEMES or not text[found.end() :].startswith("//"):
        raise InputError(
            f"data is not read from '{found[0]}' addresses",
            where=text,
            fix=f"use a path or {', '.join(f'{name}://' for name in SCHEMES)}",
        )
    parts = urlsplit(text)
    if scheme == "file":
        return Path(unquote(parts.path))
    if not parts.netloc:
        raise InputError("the address names no bucket", where=text, fix=f"{scheme}://bucket/folder")
    return f"{scheme}://{text[found.end() + 2 :].rstrip('/')}"


def folder_at(place: Place) -> Folder:
    """The folder at a path or URL; nothing is opened yet.

    Raises:
        InputError: see `parse_place`.
    """
    place = parse_place(place)
    return LocalFolder(place) if isinstance(place, Path) else RemoteFolder(place)


def name_of(place: Place) -> str:
    """The last part of a place."""
    return place.name if isinstance(place, Path) else place.rsplit("/", 1)[1]


def absolute(place: Place) -> Place:
    """The place as other processes, which run in folders of their own, can name it."""
    place = parse_place(place)
    return place.absolute() if isinstance(place, Path) else place


def exists(place: Place) -> bool:
    """Whether there is anything at a place."""
    place = parse_place(place)
    return place.exists() if isinstance(place, Path) else bool(folder_at(place).sizes())


class LocalFolder:
    """A folder of this machine, or one that all machines mount."""

    def __init__(self, path: Path) -> None:
        self.place: Path = path

    def child(self, name: str) -> LocalFolder:
        """A folder in it."""
        return LocalFolder(self.place / name)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it."""
        try:
            with os.scandir(self.place) as entries:
                return {
                    entry.name: entry.stat().st_size
                    for entry in entries
                    if entry.is_file() and not entry.name.startswith(".")
                }
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.place / name).stat().st_size

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.place / name).read_bytes()

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """Parts of a file."""
        # Opened each time: data sets have more shards than a process may have open files.
        file = os.open(self.place / name, os.O_RDONLY)
        try:
            return [os.pread(file, size, offset) for offset, size in ranges]
        finally:
            os.close(file)

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """The file itself."""
        yield self.place / name

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Write aside, then rename."""
        with writing(self.place / name) as aside:
            yield aside

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.place / name).unlink(missing_ok=True)


class RemoteFolder:
    """A prefix of an object store, where a PUT is atomic."""

    def __init__(self, url: str) -> None:
        self.place: str = url

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_store(self.place)

    def _ask(self, name: str, verb: Callable[[Any, str], T]) -> T:
        where = f"{self.place}/{name}" if name else self.place
        store, prefix = self._opened
        return persistently(lambda: verb(store, f"{prefix}/{name}" if name else prefix), where)

    def child(self, name: str) -> RemoteFolder:
        """A prefix below it."""
        return RemoteFolder(f"{self.place}/{name}")

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it."""
        try:
            listed = self._ask("", lambda store, path: store.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        files = [entry for entry in listed if entry["type"] == "file"]
        return {entry["name"].rsplit("/", 1)[1]: int(entry["size"]) for entry in files}

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._ask(name, lambda store, path: store.size(path)))

    def read(self, name: str) -> bytes:
        """A whole file."""
        return bytes(self._ask(name, lambda store, path: store.cat_file(path)))

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """Parts of a file, fetched as one: a request costs more than the gaps between them."""
        first = min(offset for offset, _ in ranges)
        end = max(offset + size for offset, size in ranges)
        span = self._ask(name, lambda store, path: store.cat_file(path, start=first, end=end))
        return [bytes(span[offset - first : offset - first + size]) for offset, size in ranges]

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        """A copy in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="kiss3d-") as folder:
            copy = Path(folder) / name
            with explaining_full_disk(folder):
                self._ask(name, lambda store, path: store.get_file(path, str(copy)))
            yield copy

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Write to a temporary folder, then upload."""
        with tempfile.TemporaryDirectory(prefix="kiss3d-") as folder:
            aside = Path(folder) / name
            with explaining_full_disk(folder):
                yield aside
            self._ask(name, lambda store, path: store.put_file(str(aside), path))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self._ask(name, lambda store, path: store.rm_file(path))


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system that a URL names, and the path in it.

    Raises:
        InputError: the package for such stores is not installed.
    """
    import fsspec

    try:
        # A cached listing would hide what other processes have published since.
        opened: tuple[Any, str] = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"a package is missing for such addresses: {error}",
            where=url,
            fix="install the extra 'cloud' (pip install 'kiss3d[cloud]')",
        ) from error
    return opened


def persistently(request: Callable[[], T], where: object) -> T:
    """The answer to a request, repeated with growing pauses while it fails.

    Raises:
        FileNotFoundError: at once; there is nothing to wait for.
        InputError: at once, if the store refuses access.
        UnreachableError: it failed six times, over 15 seconds or more.
    """
    for attempt in range(_TRIES):
        try:
            return request()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise InputError(
                f"the store refuses access: {error}", where=where, fix="check its credentials"
            ) from error
        except Exception as error:  # every store's library has its own
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            if attempt == _TRIES - 1:
                raise UnreachableError(
                    f"no answer in {_TRIES} tries from {where}: {type(error).__name__}: {error}"
                ) from error
            time.sleep(_FIRST_DELAY * 2**attempt)
    raise AssertionError
