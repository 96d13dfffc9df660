"""`Mesh` to files that other programs open: GLB, USDZ, OBJ with MTL and PNG, PLY, STL."""

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import check_writable, writing
from kiss3d_infer.scene.color import modulated, to_bytes
from kiss3d_infer.scene.glb import to_glb
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.obj import save_obj
from kiss3d_infer.scene.raster.texture import sample_texture

EXPORT_TYPES = ("glb", "usdz", "obj", "ply", "stl")


def save_mesh(
    mesh: Mesh,
    path: Path,
    *,
    height_m: float | None = None,
    extras: Mapping[str, float | str] | None = None,
) -> None:
    """Write a mesh; each file appears only when whole.

    - GLB: one file, smooth normals, textures embedded as PNG, metallic 0 and roughness 1 (glTF's
      default is metallic), front +Z as glTF has it.
    - USDZ: the same for Apple's viewers; needs the extra `usd`.
    - OBJ: with `<stem>.mtl`, `<stem>_<i>.png` and `<stem>_<i>_normal.png` beside it.
    - PLY: colours per vertex, sampled from the texture where there is one.
    - STL: the shape alone, binary.

    Args:
        mesh: where it stands in the world.
        path: its suffix chooses the type.
        height_m: how tall the object is: coordinates are then metres, with the lowest point at
            y = 0 and the bounding box centred in x and z. (Slicers read an STL's as millimetres.)
            None = as they are.
        extras: facts that travel with the mesh, such as how well it agrees with its bundle; GLB
            keeps them as extras of the scene, USDZ as custom layer data, the others not at all.

    Raises:
        InputError: another suffix, the folder cannot be written, the extra `usd` is not installed,
            or a height that is not positive or that the mesh cannot have.
    """
    file_type = checked_export_type(path)
    if height_m is not None:
        mesh = standing(mesh, height_m)
    facts = _writable(extras or {})
    if file_type == "obj":
        save_obj(mesh, path)
    elif file_type == "usdz":
        from kiss3d_infer.scene.usd import save_usdz

        save_usdz(mesh, path, facts)
    else:
        data = to_glb(mesh, facts) if file_type == "glb" else _to_single(mesh, file_type)
        with writing(path) as aside:
            aside.write_bytes(data)


def checked_export_type(path: Path) -> str:
    """The mesh type of a path that can be written; ask before long work, not after it.

    Raises:
        InputError: another suffix, the folder cannot be written, or the extra `usd` is missing.
    """
    file_type = path.suffix.lower().removeprefix(".")
    if file_type not in EXPORT_TYPES:
        raise InputError(
            f"cannot write a mesh of type {file_type!r}",
            where=path,
            fix=f"use one of {', '.join('.' + name for name in EXPORT_TYPES)}",
        )
    if file_type == "usdz" and find_spec("pxr") is None:
        raise InputError(
            "writing USDZ needs Pixar's USD library, which is not installed",
            where=path,
            fix="install the extra 'usd' (pip install -c constraints.txt -e '.[usd]'), "
            "or write a .glb",
        )
    check_writable(path)
    return file_type


def standing(mesh: Mesh, height_m: float) -> Mesh:
    """The mesh scaled uniformly to a height in metres, standing at y = 0 above the origin.

    Raises:
        InputError: the height is not a positive number, or the mesh is flat.
    """
    if not (math.isfinite(height_m) and height_m > 0):
        raise InputError(
            f"a height of {height_m:g} m is impossible", fix="give a positive number of metres"
        )
    low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
    extent = float(high[1] - low[1])
    if not extent > 0:
        raise InputError("the mesh is flat, so it cannot be given a height")
    foot = (low + high) / 2
    foot[1] = low[1]
    return replace(mesh, vertices=(mesh.vertices - foot) * (height_m / extent))


def _writable(extras: Mapping[str, float | str]) -> dict[str, float | str]:
    """Numbers that JSON does not know (infinite, none) as text."""
    return {
        name: value if isinstance(value, str) or math.isfinite(value) else str(value)
        for name, value in extras.items()
    }


def _to_single(mesh: Mesh, file_type: str) -> bytes:
    import trimesh

    colors = None
    if file_type == "ply":
        painted = _painted_vertices(mesh)
        colors = to_bytes(torch.cat([painted, torch.ones_like(painted[:, :1])], dim=1))
    whole = trimesh.Trimesh(
        vertices=mesh.vertices.numpy(),
        faces=mesh.faces.numpy(),
        vertex_normals=smooth_normals(mesh).numpy(),
        vertex_colors=colors,
        process=False,
    )
    data: bytes = whole.export(file_type=file_type)
    return data


def _painted_vertices(mesh: Mesh) -> Tensor:
    """The sRGB colour at every vertex, texture and material included: [N, 3]."""
    materials, index = mesh.face_materials
    colors = torch.ones_like(mesh.vertices)
    for i, material in enumerate(materials):
        used = torch.unique(mesh.faces[index == i].long())
        colors[used] = torch.tensor(material.base_color)
        if material.texture is not None and mesh.uv is not None:
            texels = sample_texture(material.texture, mesh.uv[used])
            colors[used] = modulated(colors[used], texels)
    return colors if mesh.vertex_colors is None else modulated(colors, mesh.vertex_colors)
