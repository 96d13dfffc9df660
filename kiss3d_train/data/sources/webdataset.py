"""GLB files in WebDataset tars: `key.glb`, and beside it `key.json`."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pydantic import ValidationError

from kiss3d_infer.config import explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import DEFAULT_LIMITS, load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.folder import Sidecar
from kiss3d_train.data.sources.item import MeshItem, make_key
from kiss3d_train.data.sources.tars import Place, Tars

_LOCATOR = re.compile(r"(?P<tar>.+)@(\d+)\+(\d+)(?:,(\d+)\+(\d+))?(?:#(?P<version>[0-9a-f]+))?")
"""Tar, offset and size of the mesh and of its description, and for a store a digest of these and of
what the listing said about the tar."""
_MAX_DESCRIPTION_BYTES = 16 << 20


class WebDatasetSource:
    """The GLBs of tars.

    A member is read by its offset, which its item's locator holds: only `items` goes through the
    tars. Members that are no plain files are passed over, and a member's name is never a path.

    Args:
        tars: on a disk or in a store.
    """

    def __init__(self, tars: Tars) -> None:
        self._tars = tars

    def items(self) -> Sequence[MeshItem]:
        """All items, ordered by tar and, in one, by place.

        A tar that is damaged is one item, to fail on load, behind those that stand before the
        damage.

        Raises:
            InputError: there is no tar, or no tar holds a GLB.
        """
        tars = self._tars.versions()
        if not tars:
            raise InputError("no tar there", where=self._tars.pattern, fix="check the pattern")
        items = [item for tar, version in tars.items() for item in self._indexed(tar, version)]
        if not any(item.uid for item in items):
            raise InputError(
                "no GLB can be read from the tars",
                where=self._tars.pattern,
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
        """Of the bytes of the mesh and of its description; in a store, of what was listed."""
        if version := _located(item)["version"]:
            return version
        return sha256_of(json.dumps([sha256_of(part) for part in self._read(item)]).encode())

    def load(self, item: MeshItem) -> Mesh:
        """Read the item's mesh; it can refer to no other file."""
        return load_mesh(self._read(item)[0], "glb")

    def _indexed(self, tar: str, version: str) -> Iterator[MeshItem]:
        meshes: dict[str, Place] = {}
        descriptions: dict[str, Place] = {}
        is_whole = self._tars.scan(tar, lambda file: _index(file, meshes, descriptions))
        for key, place in meshes.items():
            places = [place, *([descriptions[key]] if key in descriptions else [])]
            text = ",".join(f"{offset}+{size}" for offset, size in places)
            digest = f"#{sha256_of(f'{version} {text}'.encode())[:32]}" if version else ""
            yield self._item(tar, key, f"{tar}@{text}{digest}")
        if not is_whole:
            yield self._item(tar, "", tar)

    def _item(self, tar: str, key: str, locator: str) -> MeshItem:
        readable, source = PurePosixPath(key or tar).name, self._tars.source
        return MeshItem(
            key=make_key(source, readable, unique=f"{source}/{tar}/{key}"),
            name=readable,
            caption=None,
            category="",
            tags=(),
            source=source,
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
        match = _located(item)
        numbers = [int(number) for number in match.groups()[1:5] if number]
        places = list(zip(numbers[::2], numbers[1::2], strict=True))
        where = f"{self._tars.source}/{match['tar']}"
        limits = (DEFAULT_LIMITS.num_bytes, _MAX_DESCRIPTION_BYTES)
        for (_, size), limit in zip(places, limits, strict=False):
            if size > limit:
                what = f"a member has {size} bytes, at most {limit} are read"
                raise InputError(what, where=where)
        parts = self._tars.read(match["tar"], places)
        if [len(part) for part in parts] != [size for _, size in places]:
            raise InputError("the tar is cut off", where=where, fix="make or fetch it again")
        return parts if len(parts) == 2 else [*parts, b""]


def _located(item: MeshItem) -> re.Match[str]:
    match = _LOCATOR.fullmatch(item.locator)
    if match is None:
        fix = "make or fetch the tar again"
        raise InputError("the tar is damaged or compressed", where=item.locator, fix=fix)
    return match


def _index(file: BinaryIO, meshes: dict[str, Place], descriptions: dict[str, Place]) -> bool:
    """Note where members lie, by key; returns whether the tar could be read to its end.

    Of two members of the same name the later counts, as when a tar is unpacked.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                into = {"glb": meshes, "json": descriptions}.get(extension.lower())
                if into is not None and member.isreg() and not member.issparse():
                    key = f"{folder}/{stem}" if folder else stem
                    into[key] = member.offset_data, member.size
            # To tarfile, a header that makes no sense is the end.
            file.seek(tar.offset)
            return not file.read(tarfile.BLOCKSIZE).strip(b"\0")
    except tarfile.TarError:
        return False


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
