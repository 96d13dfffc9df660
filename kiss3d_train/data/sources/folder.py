"""Meshes in a folder and its subfolders, with optional sidecar files that describe them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from kiss3d_infer.config import Config, Number, explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem, make_key
from kiss3d_train.data.sources.references import checksums
from kiss3d_train.data.sources.sweethome import SweetHomeSource

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
LIBRARY_SUFFIX = ".sh3f"

_library = lru_cache(maxsize=8)(SweetHomeSource)


class Sidecar(Config):
    """What `chair.json` beside `chair.glb` may say about it."""

    name: str | None = None
    caption: str | None = None
    category: str = ""
    tags: tuple[str, ...] = ()
    licence: str | None = None
    author: str | None = None
    front: Number | None = None
    """Azimuth of the front in degrees, see `MeshItem`."""

    def said(self) -> dict[str, Any]:
        """The fields that say something, to replace an item's."""
        return {name: value for name, value in self if value}


class FolderSource:
    """GLB, glTF, OBJ, PLY and STL files, and Sweet Home 3D libraries, under one folder.

    Without a sidecar the name is the file's name and the category its folder's. A key depends on
    the folder's name and on the path inside it: the same on every machine, but folders of the same
    name must be rendered into folders of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def items(self) -> Sequence[MeshItem]:
        """All items, ordered by path; a library that cannot be read is one item, to fail on load.

        Raises:
            InputError: the folder holds no mesh.
        """
        found: list[MeshItem] = []
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                found.append(self._found(path))
            elif path.suffix.lower() == LIBRARY_SUFFIX:
                found += self._models(path)
        if not found:
            kinds = ", ".join((*SUFFIXES, LIBRARY_SUFFIX))
            raise InputError("no meshes in the folder", where=self.folder, fix=f"put {kinds} there")
        return found

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with what its sidecar says, and its file's checksum.

        Raises:
            InputError: the sidecar is wrong.
        """
        if found := self._in_library(item):
            return replace(found[0].describe(found[1]), locator=item.locator)
        path = self.folder / item.locator
        said = _read_sidecar(path.with_suffix(".json")).said()
        return replace(item, **said, sha256=sha256_of(path))

    def fingerprint(self, item: MeshItem) -> str:
        """Of the bytes of the mesh, its sidecar, and the materials and textures it refers to."""
        if found := self._in_library(item):
            return found[0].fingerprint(found[1])
        path = self.folder / item.locator
        sidecar = path.with_suffix(".json")
        own, referred = checksums(path)
        said = sha256_of(sidecar) if sidecar.is_file() else ""
        return sha256_of(json.dumps([own, said, *referred]).encode())

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh."""
        if found := self._in_library(item):
            return found[0].load(found[1])
        return load_mesh(self.folder / item.locator)

    def _in_library(self, item: MeshItem) -> tuple[SweetHomeSource, MeshItem] | None:
        """The item's library and the item as that knows it, unless it is a file."""
        library, _, number = item.locator.rpartition("#")
        if not library.lower().endswith(LIBRARY_SUFFIX):
            return None
        return self._library(library), replace(item, locator=number)

    def _library(self, name: str) -> SweetHomeSource:
        return _library(self.folder / name, f"{self.folder.resolve().name}/{name}")

    def _models(self, path: Path) -> list[MeshItem]:
        name = path.relative_to(self.folder).as_posix()
        try:
            models = self._library(name).items()
        except InputError:
            models = [replace(self._found(path), locator="")]
        return [replace(model, locator=f"{name}#{model.locator}") for model in models]

    def _found(self, path: Path) -> MeshItem:
        return item_at(path.relative_to(self.folder), self.folder.resolve().name)


def item_at(path: PurePath, collection: str) -> MeshItem:
    """The item for a mesh file, as far as its path tells.

    Args:
        path: inside the collection.
        collection: name of the folder; it enters the key.
    """
    parent = "" if path.parent == PurePath() else path.parent.name
    return MeshItem(
        key=make_key(*path.with_suffix("").parts[-2:], unique=f"{collection}/{path.as_posix()}"),
        name=path.stem,
        caption=None,
        category=parent,
        tags=(),
        source=collection,
        licence=None,
        author=None,
        locator=path.as_posix(),
        uid=path.as_posix(),
    )


def _read_sidecar(path: Path) -> Sidecar:
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Sidecar()
    except ValidationError as error:
        raise InputError(
            f"the description of a mesh is wrong: {explain(error, Sidecar)}",
            where=path,
            fix=f"a JSON object may hold {', '.join(Sidecar.model_fields)}",
        ) from error
