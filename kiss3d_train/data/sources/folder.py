"""Meshes in a folder and its subfolders, with optional sidecar files that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from kiss3d_infer.config import Config, explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem, make_key
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


class FolderSource:
    """GLB, glTF, OBJ, PLY and STL files, and Sweet Home 3D libraries, under one folder.

    Without a sidecar the name is the file's name and the category its folder's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def items(self) -> Sequence[MeshItem]:
        """All items, ordered by path.

        Raises:
            InputError: the folder holds no mesh, or a sidecar or a library is wrong.
        """
        found: list[MeshItem] = []
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                found.append(self._found(path))
            elif path.suffix.lower() == LIBRARY_SUFFIX:
                name = path.relative_to(self.folder).as_posix()
                found += [
                    replace(item, locator=f"{name}#{item.locator}")
                    for item in _library(path).items()
                ]
        if not found:
            kinds = ", ".join((*SUFFIXES, LIBRARY_SUFFIX))
            raise InputError("no meshes in the folder", where=self.folder, fix=f"put {kinds} there")
        return found

    def describe(self, item: MeshItem) -> MeshItem:
        """The item itself: names and sidecars have told everything."""
        return item

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh."""
        library, _, number = item.locator.rpartition("#")
        if library.lower().endswith(LIBRARY_SUFFIX):
            return _library(self.folder / library).load(replace(item, locator=number))
        return load_mesh(self.folder / item.locator)

    def _found(self, path: Path) -> MeshItem:
        relative = path.relative_to(self.folder)
        sidecar = _read_sidecar(path.with_suffix(".json"))
        parent = "" if relative.parent == Path() else relative.parent.name
        return MeshItem(
            key=make_key(*relative.with_suffix("").parts[-2:], unique=relative.as_posix()),
            name=sidecar.name or path.stem,
            caption=sidecar.caption,
            category=sidecar.category or parent,
            tags=sidecar.tags,
            source=self.folder.resolve().name,
            licence=sidecar.licence,
            author=sidecar.author,
            locator=relative.as_posix(),
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
