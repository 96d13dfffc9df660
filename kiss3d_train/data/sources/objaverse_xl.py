"""Objects of Objaverse-XL, through the `objaverse` package: `objaverse-xl:FILE`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.folder import SUFFIXES
from kiss3d_train.data.sources.item import MeshItem, make_key
from kiss3d_train.data.sources.objaverse_v1 import (
    annotated,
    cache_folder,
    object_file,
    package,
    read_lines,
)

REQUIRED = ("fileIdentifier", "sha256")
_SITES = {
    "github.com": "github",
    "sketchfab.com": "sketchfab",
    "www.thingiverse.com": "thingiverse",
    "3d-api.si.edu": "smithsonian",
}
_COLLECTION = "objaverse-xl/"


class ObjaverseXLSource:
    """The objects of an annotation table, or those that a list names.

    Args:
        listed: a parquet or CSV file with the columns of the package's annotations
            (`fileIdentifier` and `sha256`; `source`, `license` and `metadata` if known), or a
            text file of file identifiers or checksums, one a line, which are looked up there.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, listed: Path) -> None:
        self.listed = listed
        package()

    def items(self) -> Sequence[MeshItem]:
        """All items, in the table's or the list's order.

        Raises:
            InputError: the file cannot be read, is empty, or lacks a column; or the annotations
                cannot be downloaded.
        """
        if self.listed.suffix.lower() in (".parquet", ".csv"):
            return [_item(row) for row in _rows(_table(self.listed))]
        return _looked_up(read_lines(self.listed))

    def describe(self, item: MeshItem) -> MeshItem:
        """The item; one from Sketchfab with its annotation in Objaverse 1.0."""
        return annotated(item, _last(item.uid)) if _site(item) == "sketchfab" else item

    def fingerprint(self, item: MeshItem) -> str:
        """Of the item's row, which holds the checksum of its file."""
        return sha256_of(json.dumps(asdict(item)).encode())

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh, whose file must be the one that was annotated."""
        path = _file(item)
        if sha256_of(path) != item.sha256:
            raise InputError("the file is not the one that was annotated", where=item.uid)
        return load_mesh(path)


def _package() -> Any:
    package()
    import objaverse.xl

    return objaverse.xl


def _table(path: Path) -> Any:
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        raise InputError(f"cannot read the table: {error}", where=path) from error
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        fix = f"it needs {' and '.join(REQUIRED)}, as objaverse.xl.get_annotations() has them"
        raise InputError(f"the table has no {' and no '.join(missing)}", where=path, fix=fix)
    if table.empty:
        raise InputError("the table is empty", where=path, fix="list an object")
    return table


def _rows(table: Any) -> list[dict[str, Any]]:
    """The rows as dictionaries, without what is missing, each object once."""
    rows = table.drop_duplicates("fileIdentifier").to_dict("records")
    return [{name: value for name, value in row.items() if value == value} for row in rows]


def _looked_up(names: Sequence[str]) -> list[MeshItem]:
    names = list(dict.fromkeys(names))
    try:
        table = _package().get_annotations(download_dir=str(cache_folder()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"Objaverse-XL's annotations cannot be downloaded: {error}",
            where=cache_folder(),
            fix="check the network, or give a parquet or CSV of annotations",
        ) from error
    wanted = table["fileIdentifier"].isin(names) | table["sha256"].isin(names)
    rows = _rows(table[wanted])
    found = {row[column]: row for column in reversed(REQUIRED) for row in rows}
    return [_item(found.get(name, {"fileIdentifier": name})) for name in names]


def _item(row: Mapping[str, Any]) -> MeshItem:
    uid = str(row["fileIdentifier"])
    metadata = _metadata(row.get("metadata"))
    name = metadata.get("title") or metadata.get("filename") or _last(uid)
    site = row.get("source") or _SITES.get(urlsplit(uid).netloc, "unknown")
    return MeshItem(
        key=make_key("objaverse-xl", PurePosixPath(_last(uid)).stem, unique=f"objaverse-xl/{uid}"),
        name=PurePosixPath(str(name)).stem,
        caption=None,
        category="",
        tags=(),
        source=f"{_COLLECTION}{site}",
        licence=row.get("license") or None,
        author=metadata.get("author") or None,
        locator=uid,
        uid=uid,
        sha256=row.get("sha256"),
    )


def _metadata(text: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _last(uid: str) -> str:
    return urlsplit(uid).path.rstrip("/").rpartition("/")[2]


def _site(item: MeshItem) -> str:
    return item.source.removeprefix(_COLLECTION)


def _file(item: MeshItem) -> Path:
    """The item's file, downloaded if need be.

    Raises:
        InputError: there is none, it is of another kind, or it cannot be downloaded.
    """
    site = _site(item)
    if item.sha256 is None:
        raise InputError("Objaverse-XL has no such object", where=item.uid, fix="check the list")
    if site == "sketchfab":
        return object_file(_last(item.uid))
    if site == "github":
        return _in_repository(item)
    if site not in _SITES.values():
        known = ", ".join(_SITES.values())
        raise InputError(f"objects of {site} are not known", where=item.uid, fix=f"{known} are")
    found = _downloaded(item).get(item.uid)
    if found is None or not Path(found).is_file():
        raise InputError("the object cannot be downloaded any more", where=item.uid)
    return Path(found)


def _in_repository(item: MeshItem) -> Path:
    """A file of a GitHub repository, which is cloned whole: a mesh may refer to its neighbours."""
    from filelock import FileLock

    parts = urlsplit(item.uid).path.split("/")  # "", organisation, repository, blob, commit, path
    path = PurePosixPath(*parts[5:])
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"meshes of type {path.suffix!r} are not read", where=item.uid)
    if len(parts) < 6 or ".." in parts:
        raise InputError("no address of a file in a repository", where=item.uid)
    repositories = cache_folder() / "github" / "repos" / parts[1]
    file = repositories / parts[2] / path
    if not file.is_file():
        repositories.mkdir(parents=True, exist_ok=True)
        # Two workers would write the same repository into each other's.
        with FileLock(f"{repositories / parts[2]}.lock"):
            if not file.is_file():
                _downloaded(item)
    if not file.resolve().is_relative_to(repositories.resolve()) or not file.is_file():
        raise InputError("its repository does not hold the object any more", where=item.uid)
    return file


def _downloaded(item: MeshItem) -> dict[str, str]:
    """What the package says that it has downloaded for one item: paths by identifier."""
    import pandas as pd

    row = {"fileIdentifier": item.uid, "sha256": item.sha256, "source": _site(item)}
    try:
        with redirect_stderr(io.StringIO()):  # its progress bars
            found: dict[str, str] = _package().download_objects(
                pd.DataFrame([row]),
                download_dir=str(cache_folder()),
                processes=1,
                save_repo_format="files",
            )
    except Exception as error:  # those of requests, git and the worker process
        raise InputError(
            f"the object cannot be downloaded: {error}", where=item.uid, fix="check the network"
        ) from error
    return found
