"""GLB files in WebDataset tars: `key.glb`, and beside it `key.json`."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from kiss3d_infer.config import explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import DEFAULT_LIMITS, load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.folder import Sidecar
from kiss3d_train.data.sources.item import MeshItem, make_key

_LOCATOR = re.compile(r"(?P<tar>.+)@(\d+)\+(\d+)(?:,(\d+)\+(\d+))?")
"""Tar, then offset and size of the mesh and of its description."""
_MAX_DESCRIPTION_BYTES = 16 << 20
_MAGIC = re.compile(r"[*?\[{]")
Place = tuple[int, int]
"""Offset and size of a member's content."""


class WebDatasetSource:
    """The GLBs of the tars in a folder, or of those that a pattern such as `a/{00..31}.tar` names.

    A member is read by its offset, which its item's locator holds: only `items` goes through the
    tars. Members that are no plain files are passed over, and a member's name is never a path.

    Args:
        pattern: a folder, a tar, or a pattern with `*`, `?`, `[...]` or `{...}`.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = str(Path(pattern).absolute())
        self.folder = base_folder(pattern)

    def items(self) -> Sequence[MeshItem]:
        """All items, ordered by tar and, in one, by place.

        A tar that is damaged is one item, to fail on load, behind those that stand before the
        damage.

        Raises:
            InputError: there is no tar, or no tar holds a GLB.
        """
        tars = self._tars()
        items = [item for tar in tars for item in self._indexed(tar)]
        if not any(item.uid for item in items):
            raise InputError(
                "no GLB can be read from the tars",
                where=self.pattern,
                fix="give uncompressed tars that hold KEY.glb and KEY.json",
            )
        return items

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with what the JSON beside it says, other fields ignored, and its checksum.

        Raises:
            InputError: it cannot be read, or a known field is wrong.
        """
        mesh, description = self._read(item)
        return replace(item, **_said(description, item), sha256=sha256_of(mesh))

    def fingerprint(self, item: MeshItem) -> str:
        """Of the bytes of the mesh and of its description."""
        return sha256_of(json.dumps([sha256_of(part) for part in self._read(item)]).encode())

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh; it can refer to no other file."""
        return load_mesh(self._read(item)[0], "glb")

    def _tars(self) -> list[Path]:
        path = Path(self.pattern)
        if path.is_dir():
            tars = sorted(path.rglob("*.tar"))
        elif path.is_file():
            tars = [path]
        else:
            tars = sorted(set(_matching(self.pattern)))
        if not tars:
            raise InputError("no tar there", where=self.pattern, fix="check the pattern")
        return tars

    def _indexed(self, path: Path) -> Iterator[MeshItem]:
        name = path.relative_to(self.folder).as_posix()
        meshes: dict[str, Place] = {}
        descriptions: dict[str, Place] = {}
        is_whole = _index(path, meshes, descriptions)
        for key, place in meshes.items():
            places = [place, *([descriptions[key]] if key in descriptions else [])]
            text = ",".join(f"{offset}+{size}" for offset, size in places)
            yield self._item(name, key, f"{name}@{text}")
        if not is_whole:
            yield self._item(name, "", name)

    def _item(self, tar: str, key: str, locator: str) -> MeshItem:
        readable = PurePosixPath(key or tar).name
        return MeshItem(
            key=make_key(self.folder.name, readable, unique=f"{self.folder.name}/{tar}/{key}"),
            name=readable,
            caption=None,
            category="",
            tags=(),
            source=self.folder.name,
            licence=None,
            author=None,
            locator=locator,
            uid=key,
        )

    def _read(self, item: MeshItem) -> list[bytes]:
        """The item's mesh and its description, which may be empty.

        Raises:
            InputError: the tar is damaged, or a member is too large.
        """
        match = _LOCATOR.fullmatch(item.locator)
        if match is None:
            fix = "make or fetch the tar again"
            raise InputError("the tar is damaged or compressed", where=item.locator, fix=fix)
        numbers = [int(number) for number in match.groups()[1:] if number]
        places = list(zip(numbers[::2], numbers[1::2], strict=True))
        parts = _read_places(self.folder / match["tar"], places)
        return parts if len(parts) == 2 else [*parts, b""]


def base_folder(pattern: str) -> Path:
    """The folder whose name stands for a source: the pattern's last part without wildcards."""
    path = Path(pattern).absolute()
    if path.is_dir():
        return path
    return next(parent for parent in path.parents if not _MAGIC.search(str(parent)))


def _matching(pattern: str) -> Iterator[Path]:
    from braceexpand import braceexpand

    try:
        parts = list(braceexpand(pattern))
    except ValueError as error:
        raise InputError("the braces do not match", where=pattern, fix="write {00..31}") from error
    for part in parts:
        path = Path(part)
        yield from Path(path.anchor).glob(path.relative_to(path.anchor).as_posix())


def _index(path: Path, meshes: dict[str, Place], descriptions: dict[str, Place]) -> bool:
    """Note where members lie, by key; returns whether the tar could be read to its end.

    Of two members of the same name the later counts, as when a tar is unpacked.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                into = {"glb": meshes, "json": descriptions}.get(extension.lower())
                if into is not None and member.isreg() and not member.issparse():
                    key = f"{folder}/{stem}" if folder else stem
                    into[key] = member.offset_data, member.size
            # To tarfile, a header that makes no sense is the end.
            return not _read_at(path, (tar.offset, tarfile.BLOCKSIZE)).strip(b"\0")
    except (tarfile.TarError, OSError):
        return False


def _read_places(path: Path, places: Sequence[Place]) -> list[bytes]:
    limits = (DEFAULT_LIMITS.num_bytes, _MAX_DESCRIPTION_BYTES)
    for (_, size), limit in zip(places, limits, strict=False):
        if size > limit:
            raise InputError(f"a member has {size} bytes, at most {limit} are read", where=path)
    try:
        parts = [_read_at(path, place) for place in places]
    except OSError as error:
        raise InputError(f"the tar cannot be read: {error.strerror}", where=path) from error
    if [len(part) for part in parts] != [size for _, size in places]:
        raise InputError("the tar is cut off", where=path, fix="make or fetch it again")
    return parts


def _read_at(path: Path, place: Place) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), place[1], place[0])


def _said(description: bytes, item: MeshItem) -> dict[str, Any]:
    """What a JSON that others wrote says in the fields that a sidecar has."""
    try:
        fields = json.loads(description or b"{}")
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
        fields.setdefault("licence", fields.get("license"))
        known = {name: fields[name] for name in Sidecar.model_fields if name in fields}
        return Sidecar.model_validate(known).said()
    except ValueError as error:  # pydantic's, too
        what = explain(error, Sidecar) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"the description of a mesh is wrong: {what}", where=item.locator
        ) from error
