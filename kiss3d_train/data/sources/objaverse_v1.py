"""Objects of Objaverse 1.0, through the `objaverse` package: `objaverse:uids.txt`."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem, make_key

VERSION = "hf-objaverse-v1"
"""The data set, whose objects never change, and the folder that the package keeps it in."""
_CUT_OFF = (EOFError, gzip.BadGzipFile, zlib.error, ValueError)
_CHECK_NETWORK = "check the network, or copy the package's cache of another machine here"
T = TypeVar("T")


class ObjaverseSource:
    """The objects that a file lists by uid, one a line; lines that begin with # are comments.

    The package downloads what its cache, `~/.objaverse`, does not hold: the table of all paths
    (once), the annotations (in 160 files) and each object. Items are ordered by path, so that a
    worker's objects share files of annotations; an unknown uid is an item that fails.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, listed: Path) -> None:
        self.listed = listed
        package()

    def items(self) -> Sequence[MeshItem]:
        """All items, named by their uid only.

        Raises:
            InputError: the list cannot be read or is empty, or there is no table of paths.
        """
        uids = [line.removesuffix(".glb") for line in read_lines(self.listed)]
        paths = object_paths()
        items = [_item(uid, paths.get(uid, "")) for uid in dict.fromkeys(uids)]
        return sorted(items, key=lambda item: (not item.locator, item.locator))

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with its annotation and its file's checksum.

        Raises:
            InputError: there is no such object, or it cannot be downloaded.
        """
        item = annotated(item, item.uid)
        return replace(item, sha256=sha256_of(object_file(item.uid)))

    def fingerprint(self, item: MeshItem) -> str:
        """Data set and uid: neither a mesh nor its annotation ever changes."""
        return f"{VERSION}/{item.uid}"

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh."""
        return load_mesh(object_file(item.uid))


def read_lines(path: Path) -> list[str]:
    """The lines of a list, without blank ones and comments.

    Raises:
        InputError: it cannot be read, or lists nothing.
    """
    fix = "write one a line"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read the list: {error.strerror}", where=path, fix=fix) from error
    except UnicodeDecodeError as error:
        raise InputError("the list is no text file", where=path, fix=fix) from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError("the list is empty", where=path, fix=fix)
    return lines


@lru_cache(maxsize=1)
def package() -> Any:
    """The `objaverse` package, quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import objaverse
        from loguru import logger
    except ImportError as error:
        raise InputError(
            f"a package is missing: {error}", fix="run pip install 'kiss3d[objaverse]'"
        ) from error
    logger.disable("objaverse")
    # Each of its functions reads this table of 800,000 paths anew, which takes a second or two.
    objaverse._load_object_paths = lru_cache(maxsize=1)(objaverse._load_object_paths)
    return objaverse


def cache_folder() -> Path:
    """Where the package keeps what it downloads: `~/.objaverse`."""
    return Path(package().BASE_PATH)


def object_paths() -> Mapping[str, str]:
    """Of every object, the path of its file in the data set, by uid.

    Raises:
        InputError: the table cannot be downloaded.
    """
    paths: Mapping[str, str] = _read(
        cache_folder() / VERSION / "object-paths.json.gz",
        package()._load_object_paths,
    )
    return paths


def object_file(uid: str) -> Path:
    """The object's file, downloaded if need be.

    Raises:
        InputError: there is no such object, or it cannot be downloaded.
    """
    _path_of(uid)
    try:
        with redirect_stdout(io.StringIO()):  # it prints a line for each download
            return Path(package().load_objects([uid])[uid])
    except OSError as error:
        raise InputError(
            f"the object cannot be downloaded: {error}", where=uid, fix=_CHECK_NETWORK
        ) from error


def annotated(item: MeshItem, uid: str) -> MeshItem:
    """The item with the name, author, licence, tags and categories of an object.

    Raises:
        InputError: there is no such object, or its annotation cannot be downloaded.
    """
    said = _annotations(_path_of(uid).split("/")[1]).get(uid, {})
    return replace(item, **said)


def _path_of(uid: str) -> str:
    try:
        return object_paths()[uid]
    except KeyError as error:
        raise InputError(f"Objaverse 1.0 has no object {uid}", fix="check the uid") from error


def _item(uid: str, path: str) -> MeshItem:
    return MeshItem(
        key=make_key("objaverse", uid, unique=f"objaverse/{uid}"),
        name="",
        caption=None,
        category="",
        tags=(),
        source="objaverse",
        licence=None,
        author=None,
        locator=path,
        uid=uid,
    )


@lru_cache(maxsize=4)
def _annotations(folder: str) -> Mapping[str, Mapping[str, Any]]:
    """What the annotations of the objects in one folder say, by uid, as fields of an item."""
    uids = [uid for uid, path in object_paths().items() if path.split("/")[1] == folder]
    raw = _read(
        cache_folder() / VERSION / "metadata" / f"{folder}.json.gz",
        lambda: package().load_annotations(uids),
    )
    return {uid: _fields(annotation) for uid, annotation in raw.items()}


def _fields(annotation: Mapping[str, Any]) -> Mapping[str, Any]:
    user = annotation.get("user") or {}
    categories = [entry["name"] for entry in annotation.get("categories") or []]
    tags = [entry["name"] for entry in annotation.get("tags") or []]
    return {
        "name": annotation.get("name") or "",
        "category": categories[0] if categories else "",
        "tags": (*categories[1:], *tags),
        "licence": _licence(annotation.get("license")),
        "author": user.get("displayName") or user.get("username"),
    }


def _licence(code: str | None) -> str | None:
    """Sketchfab's code ("by-nc") as SPDX writes it ("CC-BY-NC-4.0")."""
    if code == "cc0":
        return "CC0-1.0"
    return f"CC-{code.upper()}-4.0" if code and code.startswith("by") else code or None


def _read(file: Path, read: Callable[[], T]) -> T:
    """What the package reads from a file that it downloads if it is not there.

    It writes such a file under its final name, so that one may find a half of it: while another
    process downloads, or after that was killed.
    """
    from filelock import FileLock

    if file.is_file():
        with suppress(*_CUT_OFF):
            return read()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if file.is_file():
                with suppress(*_CUT_OFF):
                    return read()
                file.unlink()
            return read()
    except (OSError, *_CUT_OFF) as error:
        raise InputError(
            f"Objaverse's tables cannot be downloaded: {error}", where=file, fix=_CHECK_NETWORK
        ) from error
