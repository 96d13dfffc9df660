"""What every mesh source hands over: a description of each mesh, and the mesh on request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kiss3d_infer.scene.mesh import Mesh


@dataclass(frozen=True)
class MeshItem:
    """One mesh of a source, described without reading its geometry."""

    key: str
    """Unique in its source, and among sources of other names; fit for a file name: letters, digits,
    "-" and "_", no dot."""
    name: str
    """What it shows, in the source's words."""
    caption: str | None
    """An exact description when the source has one, else None."""
    category: str
    tags: tuple[str, ...]
    source: str
    """Where it comes from: the library or collection."""
    licence: str | None
    author: str | None
    locator: str
    """How the source finds the mesh again: a path, a member of an archive, an index."""
    uid: str = ""
    """What the source itself calls the mesh: a path in a folder, Objaverse's uid, a URL."""
    sha256: str | None = None
    """Of the mesh file alone; None until `describe`, and for a mesh that is in no file."""
    front: float | None = None
    """Azimuth in degrees at which the mesh, as loaded, shows its front; None = not known, +Z."""


class MeshSource(Protocol):
    """A collection of meshes."""

    def items(self) -> Sequence[MeshItem]:
        """All items, in an order that is the same on every call; quick even for many."""
        ...

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with what only its content tells: an exact caption, the file's checksum.

        Raises:
            InputError: there is no such mesh, or what describes it is wrong.
        """
        ...

    def fingerprint(self, item: MeshItem) -> str:
        """Changes when the item's mesh or its description does; needs no parsing of the mesh."""
        ...

    def load(self, item: MeshItem) -> Mesh:
        """The item's mesh, y up, front facing +Z.

        Raises:
            InputError: it cannot be read, is empty or too large, or has values that are not finite.
        """
        ...


def make_key(*names: str, unique: str) -> str:
    """A key from readable names and a digest of `unique`, which tells equal names apart.

    The same arguments give the same key on every machine, whatever else the source holds. A tar's
    names end at 100 characters, of which the longest extension takes 19.
    """
    readable = "-".join(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in names)
    return f"{readable[:64]}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"
