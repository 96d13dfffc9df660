"""`Mesh` to files that other programs open: GLB, OBJ with MTL and PNG, PLY, STL."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writable_folder, writing
from kiss3d_infer.scene.color import modulated, to_bytes, to_linear
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.raster.texture import sample_texture

EXPORT_TYPES = ("glb", "obj", "ply", "stl")


def save_mesh(mesh: Mesh, path: Path) -> None:
    """Write a mesh; each file appears only when whole.

    - GLB: one file, smooth normals, textures embedded as PNG, metallic 0 and roughness 1 (glTF's
      default is metallic), front +Z as glTF has it.
    - OBJ: with `<stem>.mtl` and `<stem>_<i>.png` beside it.
    - PLY: colours per vertex, sampled from the texture where there is one.
    - STL: the shape alone, binary.

    Raises:
        InputError: another suffix, or the folder cannot be written.
    """
    file_type = checked_export_type(path)
    if file_type == "obj":
        _save_obj(mesh, path)
        return
    data = _to_glb(mesh) if file_type == "glb" else _to_single(mesh, file_type)
    with writing(path) as aside:
        aside.write_bytes(data)


def checked_export_type(path: Path) -> str:
    """The mesh type of a path that can be written; ask before long work, not after it.

    Raises:
        InputError: another suffix, or the folder cannot be written.
    """
    file_type = path.suffix.lower().removeprefix(".")
    if file_type not in EXPORT_TYPES:
        raise InputError(
            f"cannot write a mesh of type {file_type!r}",
            where=path,
            fix=f"use one of {', '.join('.' + name for name in EXPORT_TYPES)}",
        )
    writable_folder(path.parent)
    return file_type


def _to_glb(mesh: Mesh) -> bytes:
    import trimesh

    scene = trimesh.Scene()
    normals = smooth_normals(mesh)
    materials, index = mesh.face_materials
    for i, material in enumerate(materials):
        faces = mesh.faces[index == i].long()
        if len(faces) == 0:
            continue
        used, local = torch.unique(faces, return_inverse=True)
        part = trimesh.Trimesh(
            vertices=mesh.vertices[used].numpy(),
            faces=local.numpy(),
            vertex_normals=normals[used].numpy(),
            process=False,
            visual=trimesh.visual.TextureVisuals(
                uv=None if mesh.uv is None else mesh.uv[used].numpy(),
                material=_pbr_material(material),
            ),
        )
        if mesh.vertex_colors is not None:
            linear = to_linear(mesh.vertex_colors[used])
            part.visual.vertex_attributes["color"] = _rgba8(linear)
        scene.add_geometry(part, geom_name=f"{i}_{material.name}")
    data: bytes = scene.export(file_type="glb", include_normals=True)
    return data


def _pbr_material(material: Material) -> Any:
    import trimesh

    red, green, blue = to_linear(torch.tensor(material.base_color)).tolist()
    return trimesh.visual.material.PBRMaterial(
        name=material.name,
        baseColorFactor=[red, green, blue, material.opacity],
        baseColorTexture=None if material.texture is None else _picture(material.texture),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        alphaMode="BLEND" if material.opacity < 1 else "OPAQUE",
    )


def _to_single(mesh: Mesh, file_type: str) -> bytes:
    import trimesh

    colors = _painted_vertices(mesh) if file_type == "ply" else None
    whole = trimesh.Trimesh(
        vertices=mesh.vertices.numpy(),
        faces=mesh.faces.numpy(),
        vertex_normals=smooth_normals(mesh).numpy(),
        vertex_colors=None if colors is None else _rgba8(colors),
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


def _save_obj(mesh: Mesh, path: Path) -> None:
    if mesh.materials:  # without: readers drop vertex colours when there is a material
        _save_mtl(mesh.materials, path.with_suffix(".mtl"))
    vertices = mesh.vertices
    if mesh.vertex_colors is not None:
        vertices = torch.cat([vertices, mesh.vertex_colors], dim=1)
    _, index = mesh.face_materials
    with writing(path) as aside, aside.open("w") as file:
        np.savetxt(file, vertices.numpy(), "v" + " %.7g" * vertices.shape[1])
        np.savetxt(file, smooth_normals(mesh).numpy(), "vn %.5f %.5f %.5f")
        corner = "%d//%d"
        if mesh.uv is not None:
            np.savetxt(file, mesh.uv.numpy(), "vt %.7g %.7g")
            corner = "%d/%d/%d"
        if mesh.materials:
            file.write(f"mtllib {path.stem}.mtl\n")
        for i in range(max(1, len(mesh.materials))):
            if mesh.materials:
                file.write(f"usemtl {_mtl_name(i)}\n")
            faces = (mesh.faces[index == i] + 1).numpy()
            repeated = np.repeat(faces, corner.count("%d"), axis=1)
            np.savetxt(file, repeated, f"f {corner} {corner} {corner}")


def _save_mtl(materials: tuple[Material, ...], path: Path) -> None:
    lines = []
    for i, material in enumerate(materials):
        red, green, blue = material.base_color
        lines += [
            f"newmtl {_mtl_name(i)}",
            f"Kd {red:.6f} {green:.6f} {blue:.6f}",
            "Ka 0 0 0",
            "Ks 0 0 0",
            f"d {material.opacity:.6f}",
            "illum 1",
        ]
        if material.texture is not None:
            name = f"{path.stem}_{i}.png"
            lines.append(f"map_Kd {name}")
            with writing(path.with_name(name)) as aside:
                _picture(material.texture).save(aside, "PNG")
    with writing(path) as aside:
        aside.write_text("\n".join(lines) + "\n")


def _mtl_name(index: int) -> str:
    return f"material_{index}"


def _picture(texture: Tensor) -> Image.Image:
    return Image.fromarray(to_bytes(texture))


def _rgba8(colors: Tensor) -> Any:
    return to_bytes(torch.cat([colors, torch.ones_like(colors[:, :1])], dim=1))
