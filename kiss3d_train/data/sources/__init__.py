"""Where meshes come from: folders and object stores, Objaverse, WebDatasets, the toybox."""

from __future__ import annotations

import re
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_train.data.sources.item import MeshItem, MeshSource

__all__ = ["MeshItem", "MeshSource", "absolute_spec", "named_folder", "open_source"]

_TOYBOX = re.compile(r"toybox:(?P<count>\d+)(\?seed=(?P<seed>\d+))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_OF_FILES = ("objaverse:", "objaverse-xl:", "wds:")
_FORMS = (
    "a folder of meshes, a .sh3f library, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
    "objaverse:UIDS.txt, objaverse-xl:FILE, wds:FOLDER, or toybox:N (toybox:N?seed=S)"
)


def open_source(spec: str) -> MeshSource:
    """Open a mesh source.

    Args:
        spec: one of
            a folder (searched with its subfolders for meshes and libraries) or a `.sh3f` file;
            `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder` or `memory://name`;
            `objaverse:F`, where F lists uids of Objaverse 1.0, one a line;
            `objaverse-xl:F`, where F is a parquet or CSV of annotations, or lists identifiers;
            `wds:P`, where P is a folder of tars, a tar, or a pattern, or a URL of these;
            `toybox:N` for N procedural objects (`toybox:N?seed=S` for another series).

    Raises:
        InputError: there is no such source, or a package that it takes is not installed.
    """
    if spec.startswith("toybox:"):
        return _open_toybox(spec)
    kind, colon, rest = spec.partition(":")
    if kind + colon in _OF_FILES:
        return _open_files(kind, rest)
    path = Path(spec).expanduser()
    if _is_url(spec):
        return _open_url(spec)
    return _open_path(path)


def absolute_spec(spec: str) -> str:
    """The spec as processes that run in folders of their own understand it."""
    kind, colon, rest = spec.partition(":")
    if kind + colon in _OF_FILES and not _is_url(rest):
        return f"{kind}:{Path(rest).expanduser().absolute()}"
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.exists() else spec


def named_folder(spec: str) -> Path | None:
    """The folder or library whose mere name enters the keys, if it is one of this machine."""
    if spec.startswith("wds:") and not _is_url(spec.removeprefix("wds:")):
        from kiss3d_train.data.sources.tars import base_folder

        return base_folder(spec.removeprefix("wds:"))
    path = Path(spec)
    return path if path.exists() else None


def _open_path(path: Path) -> MeshSource:
    if path.is_dir():
        from kiss3d_train.data.sources.folder import FolderSource

        return FolderSource(path)
    if path.suffix.lower() == ".sh3f" and path.is_file():
        from kiss3d_train.data.sources.sweethome import SweetHomeSource

        return SweetHomeSource(path)
    what = "not a source of meshes" if path.exists() else "no such folder or file"
    raise InputError(what, where=path, fix=f"give {_FORMS}")


def _open_url(spec: str) -> MeshSource:
    from kiss3d_train.data.sources.remote import RemoteSource
    from kiss3d_train.data.storage import SCHEMES

    if spec.partition("://")[0] not in SCHEMES:
        raise InputError("meshes cannot be read from there", where=spec, fix=f"give {_FORMS}")
    return RemoteSource(spec)


def _open_files(kind: str, rest: str) -> MeshSource:
    if not rest:
        raise InputError("the file is not named", where=f"{kind}:", fix=f"give {_FORMS}")
    if kind == "wds":
        return _open_tars(rest)
    if _is_url(rest):
        raise InputError("only files on a disk are read", where=f"{kind}:{rest}", fix="copy them")
    rest = str(Path(rest).expanduser())
    if kind == "objaverse":
        from kiss3d_train.data.sources.objaverse_v1 import ObjaverseSource

        return ObjaverseSource(Path(rest))
    from kiss3d_train.data.sources.objaverse_xl import ObjaverseXLSource

    return ObjaverseXLSource(Path(rest))


def _open_tars(pattern: str) -> MeshSource:
    from kiss3d_train.data.sources.remote import require_known
    from kiss3d_train.data.sources.tars import LocalTars, RemoteTars
    from kiss3d_train.data.sources.webdataset import WebDatasetSource

    if not _is_url(pattern):
        return WebDatasetSource(LocalTars(str(Path(pattern).expanduser())))
    require_known(pattern)
    return WebDatasetSource(RemoteTars(pattern))


def _is_url(text: str) -> bool:
    return _SCHEME.match(text) is not None and not Path(text).expanduser().exists()


def _open_toybox(spec: str) -> MeshSource:
    from kiss3d_train.data.sources.toybox import ToyboxSource

    match = _TOYBOX.fullmatch(spec)
    if match is None or int(match["count"]) == 0:
        raise InputError("not a toybox", where=spec, fix="write toybox:100 or toybox:100?seed=3")
    return ToyboxSource(int(match["count"]), int(match["seed"] or 0))
