"""Mesh files to `Mesh`: GLB, glTF, OBJ (with MTL), PLY and STL, read through trimesh."""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.color import to_srgb
from kiss3d_infer.scene.declared_size import DeclaredSize, declared_size
from kiss3d_infer.scene.mesh import UNPAINTED, Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals, weld

MESH_TYPES = ("glb", "gltf", "obj", "ply", "stl")
_LINEAR_COLORS = ("glb", "gltf")  # factors and vertex colours are linear there, textures sRGB
_MAX_COORDINATE = 1e15  # beyond, squared lengths overflow float32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeshLimits:
    """What a mesh may be at most, so that one bad file cannot take the machine down."""

    num_bytes: int = 512 * 2**20  # of the file; decoded arrays may take twice that
    num_vertices: int = 4_000_000
    num_faces: int = 4_000_000
    num_texels: int = 128 * 2**20  # of all textures together


DEFAULT_LIMITS = MeshLimits()


def load_mesh(
    source: Path | bytes, file_type: str | None = None, *, limits: MeshLimits = DEFAULT_LIMITS
) -> Mesh:
    """Read a mesh file; its scene graph is flattened into one mesh in the file's own units.

    Base colours, base colour textures, vertex colours, texture coordinates and normals are kept.
    Referenced files (MTL, textures, buffers) are only read from the file's own folder and below;
    with bytes, none are.

    Args:
        source: a file, or its content.
        file_type: one of `MESH_TYPES`; None = the path's suffix.
        limits: larger meshes are refused, if the header tells then before anything is allocated.

    Raises:
        InputError: no such file, another type, unreadable, larger than the limits, empty, without
            a face of positive area, or with coordinates that are not finite.
    """
    where = source if isinstance(source, Path) else None
    try:
        return _load(source, _checked_type(source, file_type), limits)
    except InputError as error:
        raise InputError(error.what, where=where, fix=error.fix) from error


def _checked_type(source: Path | bytes, file_type: str | None) -> str:
    if isinstance(source, Path) and not source.is_file():
        raise InputError("no such mesh file", fix="check the path")
    if file_type is None and isinstance(source, Path):
        file_type = source.suffix
    file_type = (file_type or "").lower().removeprefix(".")
    if file_type not in MESH_TYPES:
        raise InputError(
            f"cannot read a mesh of type {file_type!r}", fix=f"give one of {', '.join(MESH_TYPES)}"
        )
    return file_type


def _load(source: Path | bytes, file_type: str, limits: MeshLimits) -> Mesh:
    num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
    if num_bytes == 0:
        raise InputError("the mesh file is empty", fix="give the whole file")
    if num_bytes > limits.num_bytes:
        raise InputError(f"the file has {num_bytes} bytes, at most {limits.num_bytes} are read")
    _check_limits(declared_size(source, file_type), limits)
    scene = _read_scene(source, file_type)
    palette = _Palette(file_type, limits.num_texels)
    parts = [
        _converted(geometry, np.asarray(transform), palette)
        for geometry, transform in _instances(scene, limits)
    ]
    if not parts:
        raise InputError("the file holds no triangles", fix="export it as a triangle mesh")
    mesh = _cleaned(Mesh.concatenated(parts))
    return _welded(mesh) if file_type == "stl" else mesh


def _check_limits(size: DeclaredSize, limits: MeshLimits) -> None:
    fix = "simplify it first"
    if size.num_vertices > limits.num_vertices:
        raise InputError(
            f"the mesh has {size.num_vertices} vertices, at most {limits.num_vertices} are read",
            fix=fix,
        )
    if size.num_faces > limits.num_faces:
        raise InputError(
            f"the mesh has {size.num_faces} faces, at most {limits.num_faces} are read", fix=fix
        )
    if size.num_bytes > 2 * limits.num_bytes:
        raise InputError(f"the mesh decodes to {size.num_bytes} bytes, which is too much", fix=fix)


def _read_scene(source: Path | bytes, file_type: str) -> Any:
    import trimesh

    # trimesh's own resolver keeps to the file's folder; bytes get none, so they can refer to none.
    resolver = trimesh.resolvers.FilePathResolver(source) if isinstance(source, Path) else None
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return trimesh.load_scene(
            io.BytesIO(data), file_type=file_type, resolver=resolver, process=False
        )
    except (Exception, MemoryError) as error:  # trimesh raises whatever its parsers ran into
        logger.debug("trimesh could not read the mesh", exc_info=True)
        raise InputError(
            f"the {file_type.upper()} cannot be read ({type(error).__name__}: {error})",
            fix="export it again; buffers and textures must lie in the file's own folder",
        ) from error


def _instances(scene: Any, limits: MeshLimits) -> Iterator[tuple[Any, Any]]:
    """Every triangle mesh of the scene with its world transform, once per use."""
    import trimesh

    # In the file's order: the order of the graph's nodes differs from run to run.
    order = {name: i for i, name in enumerate(scene.geometry)}
    nodes = sorted(scene.graph.nodes_geometry, key=lambda node: (order[scene.graph[node][1]], node))
    placed = [
        (scene.geometry[name], transform)
        for transform, name in (scene.graph[node] for node in nodes)
    ]
    meshes = [
        (geometry, transform)
        for geometry, transform in placed
        if isinstance(geometry, trimesh.Trimesh) and len(geometry.faces)
    ]
    total = DeclaredSize(
        sum(len(geometry.vertices) for geometry, _ in meshes),
        sum(len(geometry.faces) for geometry, _ in meshes),
    )
    _check_limits(total, limits)
    yield from meshes


def _converted(geometry: Any, transform: Any, palette: "_Palette") -> Mesh:
    vertices, faces = np.asarray(geometry.vertices, np.float64), np.asarray(geometry.faces)
    with np.errstate(over="ignore", invalid="ignore"):
        vertices = vertices @ transform[:3, :3].T + transform[:3, 3]
    if not (np.abs(vertices) <= _MAX_COORDINATE).all():  # NaN fails this, too
        raise InputError("the mesh has coordinates that are not finite", fix="repair the mesh")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(
            "the mesh has faces with vertices that do not exist", fix="repair the mesh"
        )
    if np.linalg.det(transform[:3, :3]) < 0:  # a mirrored part: keep its outside outside
        faces = faces[:, ::-1]
    mesh = Mesh(
        vertices=_tensor(vertices),
        faces=torch.from_numpy(np.array(faces, np.int32)),
        normals=_normals(geometry, transform),
    )
    return _painted(mesh, geometry, palette)


def _normals(geometry: Any, transform: Any) -> Tensor | None:
    """The normals that stand in the file, if they are usable: trimesh would compute its own."""
    if "vertex_normals" not in geometry._cache:
        return None
    linear = transform[:3, :3]
    cofactors = np.linalg.det(linear) * np.linalg.pinv(linear).T
    normals = np.asarray(geometry._cache["vertex_normals"], np.float64) @ cofactors.T
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    if normals.shape != geometry.vertices.shape or not (length > 1e-12).all():
        return None
    return _tensor(normals / length)


def _painted(mesh: Mesh, geometry: Any, palette: "_Palette") -> Mesh:
    import trimesh

    visual, file_type = geometry.visual, palette.file_type
    if isinstance(visual, trimesh.visual.TextureVisuals):
        colors = visual.vertex_attributes.get("color")
        return replace(
            mesh,
            uv=_uv(visual.uv, len(mesh.vertices)),
            vertex_colors=None if colors is None else _vertex_colors(colors, file_type),
            materials=(palette.material(visual.material),),
        )
    if visual.kind == "vertex":
        return replace(mesh, vertex_colors=_vertex_colors(visual.vertex_colors, file_type))
    if visual.kind == "face":  # one colour per face: give each its own corners
        corners = mesh.faces.flatten().long()
        return Mesh(
            vertices=mesh.vertices[corners],
            faces=torch.arange(len(corners), dtype=torch.int32).reshape(-1, 3),
            normals=smooth_normals(mesh)[corners],
            vertex_colors=_vertex_colors(visual.face_colors, file_type).repeat_interleave(3, dim=0),
        )
    return mesh


class _Palette:
    """The materials of one file: each made once, each picture decoded once, for all parts in it.

    Args:
        file_type: of the mesh file.
        max_texels: of all pictures together.
    """

    def __init__(self, file_type: str, max_texels: int) -> None:
        self.file_type = file_type
        self._texels_left = max_texels
        self._materials: dict[int, Material] = {}
        self._textures: dict[object, Tensor] = {}

    def material(self, material: Any) -> Material:
        """A trimesh material as ours; an OBJ's diffuse colour gives way to its texture."""
        if id(material) not in self._materials:  # the scene keeps it alive, so the id stays its own
            self._materials[id(material)] = self._converted(material)
        return self._materials[id(material)]

    def _converted(self, material: Any) -> Material:
        if self.file_type in _LINEAR_COLORS:
            image, factor = material.baseColorTexture, material.baseColorFactor
            is_blended = material.alphaMode == "BLEND"
        else:
            image, factor, is_blended = getattr(material, "image", None), material.main_color, True
        texture = None if image is None else self._texture(image)
        rgba = np.ones(4) if factor is None else np.asarray(factor, np.float64) / 255
        red, green, blue = rgba[:3]
        if self.file_type in _LINEAR_COLORS:
            red, green, blue = to_srgb(torch.from_numpy(rgba[:3])).tolist()
        elif texture is not None:
            red = green = blue = 1.0
        opacity = float(rgba[3])
        if dissolve := getattr(material, "kwargs", {}).get("d"):
            opacity = float(dissolve[0])
        name = str(getattr(material, "name", None) or UNPAINTED.name)
        color = (float(red), float(green), float(blue))
        painted = Material(name, color, texture, opacity if is_blended else 1.0)
        return self._glossy(painted, material) if self.file_type in _LINEAR_COLORS else painted

    def _glossy(self, painted: Material, material: Any) -> Material:
        """With glTF's metallic and roughness, which are 1 where the file does not say."""
        image = material.metallicRoughnessTexture
        metallic, roughness = (
            1.0 if factor is None else float(factor)
            for factor in (material.metallicFactor, material.roughnessFactor)
        )
        gloss_map = None if image is None else self._texture(image)
        return replace(painted, metallic=metallic, roughness=roughness, gloss_map=gloss_map)

    def _texture(self, image: Any) -> Tensor:
        # For an OBJ, trimesh opens a picture anew for every material that names it.
        file = image.info.get("file_path") if self.file_type == "obj" else None
        key = file or id(image)
        if key not in self._textures:
            self._texels_left -= image.width * image.height
            if self._texels_left < 0:
                raise InputError("the textures have too many texels", fix="scale them down")
            self._textures[key] = _decoded(image)
        return self._textures[key]


def _decoded(image: Any) -> Tensor:
    """A PIL image as [H, W, 3] sRGB floats in [0, 1]."""
    try:
        pixels = np.array(image.convert("RGB"), np.float32)
    except Exception as error:  # Pillow, too
        raise InputError(
            f"a texture cannot be read ({error})", fix="save it again as PNG or JPEG"
        ) from error
    return torch.from_numpy(pixels).div_(255)


def _uv(uv: Any, num_vertices: int) -> Tensor | None:
    if uv is None or len(uv) != num_vertices:
        return None
    return _tensor(uv[:, :2]).nan_to_num(0, 0, 0)


def _vertex_colors(colors: Any, file_type: str) -> Tensor:
    """[N, 3 or 4] integers or floats as sRGB floats [N, 3]."""
    colors = np.asarray(colors)
    scale = np.iinfo(colors.dtype).max if np.issubdtype(colors.dtype, np.integer) else 1
    values = _tensor(colors[:, :3].astype(np.float64) / scale).nan_to_num(0).clamp(0, 1)
    return to_srgb(values) if file_type in _LINEAR_COLORS else values


def _cleaned(mesh: Mesh) -> Mesh:
    """Without faces that have no area, and without the vertices that no face uses."""
    a, b, c = mesh.vertices[mesh.faces.long()].double().unbind(1)
    has_area = torch.linalg.cross(b - a, c - a).norm(dim=-1) > 0
    if not has_area.any():
        raise InputError("no face of the mesh has any area", fix="give a mesh with a surface")
    faces = mesh.faces[has_area].long()
    used = torch.zeros(len(mesh.vertices), dtype=torch.bool)
    used[faces] = True
    kept = _selected(mesh, used)
    materials, index = mesh.face_materials
    return replace(
        kept,
        faces=(used.cumsum(0) - 1)[faces].int(),
        material_index=index[has_area] if len(materials) > 1 else None,
    )


def _selected(mesh: Mesh, which: Tensor) -> Mesh:
    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[which]

    return replace(
        mesh,
        vertices=mesh.vertices[which],
        normals=pick(mesh.normals),
        uv=pick(mesh.uv),
        vertex_colors=pick(mesh.vertex_colors),
    )


def _welded(mesh: Mesh) -> Mesh:
    """Coinciding vertices as one: an STL stores every face by itself."""
    vertices, index = weld(mesh.vertices)
    return Mesh(vertices=vertices, faces=index[mesh.faces.long()].int())


def _tensor(array: Any) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))
