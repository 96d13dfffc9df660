"""Sweet Home 3D furniture libraries (.sh3f): a zip of OBJ models and a catalogue.

The catalogue is a Java properties file; model #N is described by keys such as `name#N`,
`category#N`, `tags#N`, `model#N`, `creator#N`, `width#N`, `modelRotation#N`. Sweet Home 3D turns a
model by its rotation, scales it to its width, height and depth in centimetres, and shows it y up
with its front towards +z, which is the frame used here.
"""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import torch

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem, make_key

CATALOGUE = "PluginFurnitureCatalog.properties"
MAX_CATALOGUE_BYTES = 16 << 20
MAX_MODEL_BYTES = 256 << 20
"""A model's files together, unpacked."""
_UNREADABLE = (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What a damaged, encrypted or foreign zip makes `zipfile` raise."""


class SweetHomeSource:
    """The models of one library.

    Args:
        path: the .sh3f file.
        name: enters the keys; the file's name when not given. Two versions of a library may have
            the same id.

    Raises:
        InputError: the file is not a library, or its catalogue cannot be read.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self._name = name or path.name

    def items(self) -> Sequence[MeshItem]:
        """All models, in the catalogue's order."""
        return [self._describe(number) for number in self._numbers()]

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with its file's checksum: the catalogue has told everything else."""
        member = self._model(item.locator)
        beside = self._folders.get(member.parent, [])
        found = [entry for entry in beside if PurePosixPath(entry.filename) == member]
        if not found or found[-1].file_size > MAX_MODEL_BYTES:
            return item  # as loading it will say
        return replace(item, sha256=sha256_of(self._archive.read(found[-1])))

    def fingerprint(self, item: MeshItem) -> str:
        """Of the model's catalogue entries and of the checksums of its files."""
        number = item.locator
        entries = self._catalogue.items()
        said = [(key, value) for key, value in entries if key.partition("#")[2] in ("", number)]
        beside = self._folders.get(self._model(number).parent, [])
        files = [(file.filename, file.file_size, file.CRC) for file in beside]
        return sha256_of(json.dumps([said, files]).encode())

    def load(self, item: MeshItem) -> Mesh:
        """Read a model, turned and scaled as the catalogue says."""
        number = item.locator
        with tempfile.TemporaryDirectory(prefix="kiss3d-sh3f-") as folder:
            mesh = load_mesh(self._unpacked(self._model(number), Path(folder)))
        return self._scaled(self._turned(mesh, number), number)

    @cached_property
    def _catalogue(self) -> dict[str, str]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entry = archive.getinfo(CATALOGUE)
                if entry.file_size > MAX_CATALOGUE_BYTES:
                    raise InputError("the catalogue is too large", where=self.path)
                text = archive.read(entry).decode("latin-1")
        except _UNREADABLE as error:
            raise InputError(
                f"not a Sweet Home 3D furniture library: {error}",
                where=self.path,
                fix=f"a .sh3f file is a zip that holds {CATALOGUE}",
            ) from error
        return parse_properties(text)

    def _numbers(self) -> list[str]:
        numbers = [key.partition("#")[2] for key in self._catalogue if key.startswith("model#")]
        # By value, without trusting that they are numbers.
        return sorted(numbers, key=lambda number: (len(number), number))

    def _property(self, name: str, number: str) -> str:
        return self._catalogue.get(f"{name}#{number}", "").strip()

    def _describe(self, number: str) -> MeshItem:
        identity = self._property("id", number) or self._property("model", number)
        licence = self._property("license", number) or self._catalogue.get("license", "")
        tags = (tag.strip() for tag in self._property("tags", number).split(","))
        return MeshItem(
            key=make_key(identity, unique=f"{self._name}/{identity}/{number}"),
            name=self._property("name", number),
            caption=None,
            category=self._property("category", number),
            tags=tuple(tag for tag in tags if tag),
            source=self._catalogue.get("name", self.path.stem),
            licence=licence.split("  ")[0].strip() or None,
            author=self._property("creator", number) or None,
            locator=number,
            uid=identity,
        )

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        """Kept open: reading the directory of a library takes longer than a usual model."""
        return zipfile.ZipFile(self.path)

    @cached_property
    def _folders(self) -> dict[PurePosixPath, list[zipfile.ZipInfo]]:
        """The library's files by folder."""
        folders: dict[PurePosixPath, list[zipfile.ZipInfo]] = {}
        for entry in self._archive.infolist():
            if not entry.is_dir():
                folders.setdefault(PurePosixPath(entry.filename).parent, []).append(entry)
        return folders

    def _model(self, number: str) -> PurePosixPath:
        return PurePosixPath(self._property("model", number).lstrip("/"))

    def _unpacked(self, member: PurePosixPath, folder: Path) -> Path:
        """Copy the model's own folder, and nothing else, into `folder`; return the model there."""
        beside = self._folders.get(member.parent, [])
        if sum(entry.file_size for entry in beside) > MAX_MODEL_BYTES:
            raise InputError("the model's files are too large", where=f"{self.path}:{member}")
        for entry in beside:
            # Only the last part of a member's name is used, so that none can leave `folder`.
            name = PurePosixPath(entry.filename.replace("\\", "/")).name
            (folder / name).write_bytes(self._archive.read(entry))
        if not (folder / member.name).is_file():
            raise InputError("the library has no such model", where=f"{self.path}:{member}")
        return folder / member.name

    def _turned(self, mesh: Mesh, number: str) -> Mesh:
        values = [float(value) for value in self._property("modelRotation", number).split()]
        if not values:
            return mesh
        if len(values) != 9:
            raise InputError("modelRotation must have 9 numbers", where=f"{self.path}#{number}")
        rotation = torch.tensor(values).reshape(3, 3)
        normals = None if mesh.normals is None else mesh.normals @ rotation.T
        return replace(mesh, vertices=mesh.vertices @ rotation.T, normals=normals)

    def _scaled(self, mesh: Mesh, number: str) -> Mesh:
        sizes = [self._property(side, number) for side in ("width", "height", "depth")]
        if not all(sizes):
            return mesh
        target = torch.tensor([float(size) for size in sizes])
        extent = mesh.vertices.amax(0) - mesh.vertices.amin(0)
        flat = extent <= 1e-6
        if flat.all():
            return mesh
        factors = target / extent
        factors[flat] = factors[~flat].mean()
        normals = mesh.normals
        if normals is not None:
            normals = torch.nn.functional.normalize(normals / factors, dim=-1)
        return replace(mesh, vertices=mesh.vertices * factors, normals=normals)


def parse_properties(text: str) -> dict[str, str]:
    """Parse a Java properties file (java.util.Properties.load), already decoded from Latin-1."""
    pairs = (_split_pair(line) for line in _logical_lines(text))
    return {_unescaped(key): _unescaped(value) for key, value in pairs}


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and blanks; a line that ends in a lone backslash goes on."""
    carried = ""
    for line in text.splitlines():
        line = line.lstrip(" \t\f")
        if not carried and (not line or line[0] in "#!"):
            continue
        carried += line
        if (len(carried) - len(carried.rstrip("\\"))) % 2:
            carried = carried[:-1]
            continue
        yield carried
        carried = ""
    if carried:
        yield carried


def _split_pair(line: str) -> tuple[str, str]:
    match = re.match(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)", line, re.DOTALL)
    key, value = match.groups() if match else (line, "")
    return key, value


_ESCAPES: Mapping[str, str] = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def _unescaped(text: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        code, letter = match.groups()
        return chr(int(code, 16)) if code else _ESCAPES.get(letter, letter)

    units = re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", replaced, text)
    # Java writes characters beyond 16 bits as two escapes, which only together are one character.
    return units.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
