"""Meshes in a folder and its subfolders, with optional sidecar files that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from kiss3d_infer.config import Config, explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem, MeshSource, make_key
from kiss3d_train.data.sources.sweethome import SweetHomeSource

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")


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
            InputError: the folder holds no mesh, or a sidecar is wrong.
        """
        if not self._items:
            kinds = ", ".join((*SUFFIXES, ".sh3f"))
            raise InputError("no meshes in the folder", where=self.folder, fix=f"put {kinds} there")
        return [item for item, _ in self._items.values()]

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh."""
        _, library = self._items[item.key]
        return library.load(item) if library else load_mesh(self.folder / item.locator)

    @cached_property
    def _items(self) -> dict[str, tuple[MeshItem, MeshSource | None]]:
        found: dict[str, tuple[MeshItem, MeshSource | None]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                item = self._describe(path)
                found[item.key] = item, None
            elif path.suffix.lower() == ".sh3f":
                library = SweetHomeSource(path)
                found.update((item.key, (item, library)) for item in library.items())
        return found

    def _describe(self, path: Path) -> MeshItem:
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
