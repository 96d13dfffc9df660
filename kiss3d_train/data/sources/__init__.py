"""Where meshes come from: a folder, a Sweet Home 3D library, the toybox."""

from __future__ import annotations

import re
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_train.data.sources.item import MeshItem, MeshSource

__all__ = ["MeshItem", "MeshSource", "open_source"]

_TOYBOX = re.compile(r"toybox:(?P<count>\d+)(\?seed=(?P<seed>\d+))?")
_FORMS = "a folder of meshes, a .sh3f library, or toybox:N (toybox:N?seed=S)"


def open_source(spec: str) -> MeshSource:
    """Open a mesh source.

    Args:
        spec: a folder (searched with its subfolders for meshes and libraries), a `.sh3f` file, or
            `toybox:N` for N procedural objects (`toybox:N?seed=S` for another series).

    Raises:
        InputError: there is no such source.
    """
    if spec.startswith("toybox:"):
        return _open_toybox(spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        from kiss3d_train.data.sources.folder import FolderSource

        return FolderSource(path)
    if path.suffix.lower() == ".sh3f" and path.is_file():
        from kiss3d_train.data.sources.sweethome import SweetHomeSource

        return SweetHomeSource(path)
    if path.exists():
        raise InputError("not a source of meshes", where=spec, fix=f"give {_FORMS}")
    raise InputError("no such folder or file", where=spec, fix=f"give {_FORMS}")


def _open_toybox(spec: str) -> MeshSource:
    from kiss3d_train.data.sources.toybox import ToyboxSource

    match = _TOYBOX.fullmatch(spec)
    if match is None or int(match["count"]) == 0:
        raise InputError("not a toybox", where=spec, fix="write toybox:100 or toybox:100?seed=3")
    return ToyboxSource(int(match["count"]), int(match["seed"] or 0))
