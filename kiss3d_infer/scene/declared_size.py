"""How large a mesh file says it is, read from its header before anything is allocated.

A few hundred bytes can declare gigabytes of vertices; the numbers are checked against the bytes
that are really there.
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
_COMPRESSED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")
_MAX_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class DeclaredSize:
    """What a header announces; 0 where the format has no header to tell."""

    num_vertices: int = 0
    num_faces: int = 0
    num_bytes: int = 0  # of decoded arrays


def declared_size(source: Path | bytes, file_type: str) -> DeclaredSize:
    """Read what the file declares.

    Args:
        source: a file or its content.
        file_type: "glb", "gltf", "ply", "stl" or "obj" (which declares nothing).

    Raises:
        InputError: the header is malformed, or declares more than the file holds.
    """
    readers: dict[str, Callable[[Path | bytes], DeclaredSize]] = {
        "glb": _glb,
        "gltf": _gltf,
        "ply": _ply,
        "stl": _stl,
    }
    reader = readers.get(file_type)
    return DeclaredSize() if reader is None else reader(source)


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
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
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


def _ply(source: Path | bytes) -> DeclaredSize:
    head, end, _ = _read(source, _MAX_HEADER_BYTES).partition(b"end_header")
    if not head.startswith(b"ply") or not end:
        raise InputError("the file is no PLY", fix="give a whole .ply file")
    counts = {
        name.decode(): int(count)
        for name, count in re.findall(rb"^element\s+(\w+)\s+(\d+)", head, re.MULTILINE)
    }
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
