"""Meshes below a prefix of an object store, through fsspec."""

from __future__ import annotations

import hashlib
import json
import posixpath
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.folder import LIBRARY_SUFFIX, SUFFIXES, FolderSource, item_at
from kiss3d_train.data.sources.item import MeshItem
from kiss3d_train.data.sources.references import follow
from kiss3d_train.data.storage import SCHEMES, open_store

MAX_MODEL_BYTES = 1 << 30
"""A mesh and the files it refers to, together."""
_SELF_CONTAINED = (".glb", ".stl")
_VERSIONS = ("ETag", "md5Hash", "etag", "mtime", "created")
"""What a listing says about a file's content, best first: S3, GCS, others."""


class RemoteSource:
    """What `FolderSource` finds in a folder, below a URL; libraries are not read there.

    Only `items` lists the prefix: a locator holds, behind the path, a digest of what the listing
    said about the mesh and the files it may refer to. A mesh is fetched with those files into a
    temporary folder, which goes when it has been loaded or the next one is fetched.

    Args:
        url: of one of `SCHEMES`, such as "s3://bucket/prefix". The whole of it enters the keys.

    Raises:
        InputError: the scheme is another one.
    """

    def __init__(self, url: str) -> None:
        require_known(url)
        self.url = url.rstrip("/")
        self._held: tuple[str, tempfile.TemporaryDirectory[str]] | None = None

    def items(self) -> Sequence[MeshItem]:
        """All items, ordered by path; the listing is the only request.

        Raises:
            InputError: the prefix cannot be listed, or holds no mesh.
        """
        store, root = self._opened
        with explained(self.url):
            store.invalidate_cache()
            listing = store.find(root, detail=True)
        versions = {
            path[len(root) :].lstrip("/"): version_of(listing[path]) for path in sorted(listing)
        }
        items = list(self._found(versions))
        if not items:
            raise InputError("no meshes there", where=self.url, fix=f"put {', '.join(SUFFIXES)}")
        return items

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with what its sidecar says, and its file's checksum."""
        folder, here = self._fetched(item)
        try:
            return replace(folder.describe(here), locator=item.locator)
        except InputError:
            self._release()  # it will not be loaded
            raise

    def fingerprint(self, item: MeshItem) -> str:
        """Of what the listing said about the mesh, its sidecar and the files beside it.

        A GLB is taken to hold its textures. The other formats depend on every file in the mesh's
        folder and below that is no mesh and no sidecar: which of them it uses, only it can tell.
        """
        return item.locator.rpartition("#")[2]

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh."""
        folder, here = self._fetched(item)
        try:
            return folder.load(here)
        finally:
            self._release()

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        store, root = open_store(self.url)
        return store, root.rstrip("/")

    def _found(self, versions: Mapping[str, str]) -> Iterator[MeshItem]:
        beside = _beside(versions)
        for name, version in versions.items():
            # Strings: a path object for each of a million names would take a minute.
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() not in (*SUFFIXES, LIBRARY_SUFFIX):
                continue
            parts = [version, versions.get(f"{stem}.json", "")]
            if suffix.lower() not in _SELF_CONTAINED:
                parts.append(beside.get(posixpath.dirname(name), ""))
            digest = sha256_of(json.dumps(parts).encode())[:32]
            item = item_at(PurePosixPath(name), self.url)
            yield replace(item, locator=f"{name}#{digest}")

    def _fetched(self, item: MeshItem) -> tuple[FolderSource, MeshItem]:
        """The item in a folder of its own, fetched unless it is there."""
        path = PurePosixPath(item.locator.rpartition("#")[0])
        if self._held is None or self._held[0] != item.locator:
            self._release()
            folder = tempfile.TemporaryDirectory(prefix="kiss3d-remote-")
            self._held = item.locator, folder
            try:
                self._fetch(path, Path(folder.name))
            except BaseException:
                self._release()
                raise
        return FolderSource(Path(self._held[1].name)), replace(item, locator=path.name)

    def _fetch(self, path: PurePosixPath, folder: Path) -> None:
        where = f"{self.url}/{path}"
        if path.suffix.lower() == LIBRARY_SUFFIX:
            raise InputError("a library is only read from a disk", where=where, fix="copy it there")
        store, root = self._opened
        copier = _Copier(store, posixpath.join(root, *path.parent.parts), folder)
        try:
            mesh = copier.get(path.name)
        except FileNotFoundError as error:
            raise InputError("the mesh is gone since it was listed", where=where) from error
        for _ in follow(path.suffix, mesh, copier.get):
            pass
        # Not through `get`, which would take a file of that name from elsewhere.
        copier.copy(path.with_suffix(".json").name)

    def _release(self) -> None:
        if self._held is not None:
            self._held[1].cleanup()
            self._held = None


class _Copier:
    """Copies files of one remote folder, and below, to the same places in a local one.

    Args:
        store: fsspec's file system.
        remote: the folder in it.
        local: where the copies go.
    """

    def __init__(self, store: Any, remote: str, local: Path) -> None:
        self._store, self._remote, self._local = store, remote, local
        self._bytes_left = MAX_MODEL_BYTES

    def get(self, name: str) -> bytes:
        """The content of a file, copied where trimesh's FilePathResolver will look for it.

        Raises:
            FileNotFoundError: there is none in this folder and below.
            InputError: it cannot be fetched, or all together are too large.
        """
        name = name.strip()
        for candidate in dict.fromkeys((name, name.lstrip("/"), PurePosixPath(name).name)):
            inside = posixpath.normpath(candidate)
            if inside in (".", "..") or inside.startswith(("/", "../")):
                continue
            content = self.copy(inside)
            if content is not None:
                return content
        raise FileNotFoundError(name)

    def copy(self, inside: str) -> bytes | None:
        """Copy one file, if there is such a file, and return its content."""
        path = posixpath.join(self._remote, inside)
        with explained(path):
            try:
                info = self._store.info(path)
                if info["type"] != "file":
                    return None
                self._bytes_left -= info["size"]
                if self._bytes_left < 0:
                    raise InputError("the mesh and its textures are too large", where=path)
                content: bytes = self._store.cat_file(path)
            except FileNotFoundError:
                return None
        target = self._local / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return content


def require_known(url: str) -> None:
    """Refuse a URL of another scheme than `SCHEMES`, or without a place.

    Raises:
        InputError: it is one.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest.strip("/"):
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise InputError("meshes cannot be read from there", where=url, fix=f"use {known}")
    if scheme == "file" and not rest.startswith("/"):
        raise InputError("the path is relative", where=url, fix="write file:///folder")


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Whatever a store's library raises, as an InputError; each has errors of its own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"cannot be read from the store ({type(error).__name__}: {error})",
            where=where,
            fix="check the address, the network and your credentials",
        ) from error


def version_of(info: Mapping[str, Any]) -> str:
    """Changes when the file does, as far as a listing tells."""
    known = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return f"{known} {info['size']}"


def _beside(versions: Mapping[str, str]) -> dict[str, str]:
    """A digest, for each folder, of the files in it and below that a mesh may refer to."""
    digests: dict[str, Any] = {}
    for name, version in versions.items():
        if posixpath.splitext(name)[1].lower() in (*SUFFIXES, LIBRARY_SUFFIX, ".json"):
            continue
        folder = name
        while folder:
            folder = posixpath.dirname(folder)
            digest = digests.setdefault(folder, hashlib.sha256())
            digest.update(json.dumps([name, version]).encode())
    return {folder: digest.hexdigest() for folder, digest in digests.items()}
