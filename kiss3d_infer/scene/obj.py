"""`Mesh` to an OBJ with its MTL and PNG files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kiss3d_infer.files import writing
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.parts import picture


def save_obj(mesh: Mesh, path: Path) -> None:
    """Write `path`, and `<stem>.mtl`, `<stem>_<i>.png` and `<stem>_<i>_normal.png` beside it."""
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
                file.write(f"usemtl {_name(i)}\n")
            faces = (mesh.faces[index == i] + 1).numpy()
            repeated = np.repeat(faces, corner.count("%d"), axis=1)
            np.savetxt(file, repeated, f"f {corner} {corner} {corner}")


def _save_mtl(materials: tuple[Material, ...], path: Path) -> None:
    lines = [line for i, material in enumerate(materials) for line in _lines(i, material, path)]
    with writing(path) as aside:
        aside.write_text("\n".join(lines) + "\n")


def _lines(index: int, material: Material, path: Path) -> Iterator[str]:
    """What the MTL at `path` says of a material, whose pictures are written beside it."""
    red, green, blue = material.base_color
    yield f"newmtl {_name(index)}"
    yield f"Kd {red:.6f} {green:.6f} {blue:.6f}"
    yield "Ka 0 0 0"
    yield "Ks 0 0 0"
    yield f"d {material.opacity:.6f}"
    yield "illum 1"
    if material.texture is not None:
        name = f"{path.stem}_{index}.png"
        with writing(path.with_name(name)) as aside:
            picture(material.texture).save(aside, "PNG")
        yield f"map_Kd {name}"
    if material.normal_map is not None:
        name = f"{path.stem}_{index}_normal.png"
        with writing(path.with_name(name)) as aside:
            picture(material.normal_map).save(aside, "PNG")
        # MTL has no normal maps of its own. Web viewers know `norm` and prefer it to `map_Bump`;
        # Blender reads, and writes, normal maps as `map_Bump`.
        yield f"norm {name}"
        yield f"map_Bump -bm 1 {name}"


def _name(index: int) -> str:
    return f"material_{index}"
