"""How large a mesh is, found out before anything is allocated.

A few hundred bytes can declare gigabytes of vertices: the numbers in a header are checked against
the bytes that are really there. An OBJ has no header, so its lines are counted.
"""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiss3d_infer.errors import InputError

_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_OBJ_VERTICES = (b"v", b"vt", b"vn")
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")
_MAX_HEADER_BYTES = 1 << 16
_MAX_LINE_BYTES = 1 << 16  # of a face in an OBJ whose corners are counted one by one


@dataclass(frozen=True)
class DeclaredSize:
    """What a file announces; 0 where it does not tell."""

    num_vertices: int = 0
    num_faces: int = 0
    num_bytes: int = 0  # of decoded arrays


def declared_size(source: Path | bytes, file_type: str) -> DeclaredSize:
    """Read what the file declares.

    Args:
        source: a file or its content.
        file_type: "glb", "gltf", "obj", "ply" or "stl".

    Raises:
        InputError: the header is malformed, or declares more than the file holds.
    """
    readers: dict[str, Callable[[Path | bytes], DeclaredSize]] = {
        "glb": _glb,
        "gltf": _gltf,
        "obj": _obj,
        "ply": _ply,
        "stl": _stl,
    }
    return readers[file_type](source)


def _glb(source: Path | bytes) -> DeclaredSize:
    head = _read(source, 20)
    if len(head) < 20 or head[:4] != b"glTF":
        raise InputError("the file is no binary glTF", fix="give a whole .glb file")
    length, kind = struct.unpack("<I4s", head[12:20])
    if kind != b"JSON" or 20 + length > _length(source):
        raise InputError("the binary glTF is truncated", fix="give the whole file")
    return _from_gltf(_read(source, 20 + length)[20:])


def _gltf(source: Path | bytes) -> DeclaredSize:
    return _from_gltf(_read(source, _length(source)))


def _from_gltf(text: bytes) -> DeclaredSize:
    try:
        header = json.loads(text)
        required = [name for name in header.get("extensionsRequired", []) if name in _COMPRESSED]
        if required:
            raise InputError(
                f"the glTF is compressed with {required[0]}, which is not read here",
                fix="export it without mesh compression",
            )
        sizes = [_mesh_size(mesh, header["accessors"]) for mesh in header.get("meshes", [])]
        used = [sizes[node["mesh"]] for node in header.get("nodes", []) if "mesh" in node]
        num_bytes = sum(
            _accessor_bytes(accessor, header) for accessor in header.get("accessors", [])
        )
        return DeclaredSize(
            max(sum(n for n, _ in sizes), sum(n for n, _ in used)),
            max(sum(f for _, f in sizes), sum(f for _, f in used)),
            num_bytes,
        )
    except (
        ArithmeticError,  # a count of 1e999
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError("the glTF's JSON is malformed", fix="export the file again") from error


def _mesh_size(mesh: dict[str, Any], accessors: list[dict[str, Any]]) -> tuple[int, int]:
    num_vertices = num_faces = 0
    for primitive in mesh["primitives"]:
        positions = accessors[primitive["attributes"]["POSITION"]]
        corners = accessors[primitive["indices"]] if "indices" in primitive else positions
        num_vertices += int(positions["count"])
        num_faces += int(corners["count"]) // 3
    return num_vertices, num_faces


def _accessor_bytes(accessor: dict[str, Any], header: dict[str, Any]) -> int:
    count = int(accessor["count"])
    size = _COMPONENT_BYTES[accessor["componentType"]] * _COMPONENTS[accessor["type"]]
    if count < 0:
        raise ValueError("a negative count")
    if "bufferView" in accessor:
        view = header["bufferViews"][accessor["bufferView"]]
        stride = int(view.get("byteStride", size))
        needed = int(accessor.get("byteOffset", 0)) + max(0, count - 1) * stride + size
        room = header["buffers"][view["buffer"]]["byteLength"]
        if count and (needed > view["byteLength"] or view["byteLength"] > room):
            raise InputError(
                f"the glTF declares {count} items that its buffer does not hold",
                fix="give the whole file",
            )
    return count * size


def _obj(source: Path | bytes) -> DeclaredSize:
    text = b"\n" + _read(source, _length(source))
    if b"\0" in text:  # nor UTF-16, whose lines would not be found here
        raise InputError("the OBJ is no plain text", fix="save it as UTF-8")
    text = text.replace(b"\r\n", b"\n").replace(b"\\\n", b"")
    num_vertices = max(text.count(b"\n%b " % key) for key in _OBJ_VERTICES)
    faces = re.finditer(rb"^f.*", text, re.MULTILINE)
    return DeclaredSize(num_vertices, sum(_num_triangles(face[0]) for face in faces))


def _num_triangles(face: bytes) -> int:
    """Triangles in a face line of an OBJ; of a very long one at most so many."""
    if len(face) > _MAX_LINE_BYTES:
        return len(face) // 2
    return max(0, len(face.split()) - 3)


def _ply(source: Path | bytes) -> DeclaredSize:
    head, end, _ = _read(source, _MAX_HEADER_BYTES).partition(b"end_header")
    if not head.startswith(b"ply") or not end:
        raise InputError("the file is no PLY", fix="give a whole .ply file")
    declared = re.findall(rb"^element\s+(\w+)\s+(\d+)", head, re.MULTILINE)
    try:
        counts = {name.decode(): int(count) for name, count in declared}
    except ValueError as error:  # Python reads no integer of thousands of digits
        raise InputError("the PLY declares a count that is no number") from error
    if sum(counts.values()) > _length(source):  # every element takes at least one byte
        raise InputError(
            f"the PLY declares {sum(counts.values())} elements in {_length(source)} bytes",
            fix="give the whole file",
        )
    return DeclaredSize(counts.get("vertex", 0), counts.get("face", 0))


def _stl(source: Path | bytes) -> DeclaredSize:
    head = _read(source, 84)
    if len(head) == 84:
        (num_faces,) = struct.unpack("<I", head[80:])
        if 84 + 50 * num_faces == _length(source):
            return DeclaredSize(3 * num_faces, num_faces)
    if not head.lstrip().startswith(b"solid"):
        raise InputError("the STL is truncated or no STL", fix="give the whole file")
    return DeclaredSize()


def _read(source: Path | bytes, size: int) -> bytes:
    if isinstance(source, bytes):
        return source[:size]
    with source.open("rb") as file:
        return file.read(size)


def _length(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size
