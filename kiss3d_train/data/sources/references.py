"""Which files a mesh file refers to, found without parsing the mesh."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.load import DEFAULT_LIMITS

_GLTF = re.compile(rb'"uri"\s*:\s*"(?!data:)([^"]+)"')
_PATTERNS = {
    ".obj": re.compile(rb"^[ \t]*mtllib[ \t]+(.+)$", re.MULTILINE),
    ".mtl": re.compile(rb"^[ \t]*map_kd[ \t]+(.+)$", re.MULTILINE | re.IGNORECASE),
    ".ply": re.compile(rb"^comment TextureFile[ \t]+(.+)$", re.MULTILINE),
    ".gltf": _GLTF,
    ".glb": _GLTF,
}
"""What `load_mesh` follows; a name goes to the end of its line, and may hold spaces."""


def checksums(mesh: Path) -> tuple[str, list[tuple[str, str]]]:
    """SHA-256 of a mesh file; name and SHA-256 of each file it refers to, textures included.

    The checksum of a file that is missing, or that `load_mesh` would not follow, is empty.
    """
    if mesh.stat().st_size > DEFAULT_LIMITS.num_bytes:
        return sha256_of(mesh), []  # `load_mesh` reads none of it either
    from trimesh.resolvers import FilePathResolver

    data = mesh.read_bytes()
    followed = follow(mesh.suffix, data, FilePathResolver(str(mesh)).get)
    return sha256_of(data), [
        (name, "" if found is None else sha256_of(found)) for name, found in followed
    ]


def follow(
    suffix: str, data: bytes, get: Callable[[str], bytes]
) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of each file that a mesh refers to, and of those that these refer to.

    Args:
        suffix: of the mesh file.
        data: its content.
        get: reads a file by the name that stands in another; where it raises an OSError or a
            ValueError, the content is None.
    """
    todo, seen = _names(suffix, data), set[str]()
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        try:
            found = get(name)
        except (OSError, ValueError):
            yield name, None
            continue
        yield name, found
        todo += _names(PurePath(name).suffix, found)


def _names(suffix: str, data: bytes) -> list[str]:
    pattern = _PATTERNS.get(suffix.lower())
    found = pattern.findall(data) if pattern else []
    return [name.decode(errors="replace").strip() for name in found]
