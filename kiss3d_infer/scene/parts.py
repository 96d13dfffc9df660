"""A mesh split by material, the way most file formats hold one."""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from kiss3d_infer.scene.color import to_bytes
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals


def parts_by_material(mesh: Mesh) -> Iterator[tuple[Material, Mesh]]:
    """Each material in use with its faces and their vertices, normals included."""
    normals = smooth_normals(mesh)
    materials, index = mesh.face_materials
    for i, material in enumerate(materials):
        faces = mesh.faces[index == i].long()
        if len(faces) == 0:
            continue
        used, local = torch.unique(faces, return_inverse=True)
        yield (
            material,
            Mesh(
                vertices=mesh.vertices[used],
                faces=local.int(),
                normals=normals[used],
                uv=None if mesh.uv is None else mesh.uv[used],
                vertex_colors=None if mesh.vertex_colors is None else mesh.vertex_colors[used],
                materials=(material,),
            ),
        )


def picture(texture: Tensor) -> Image.Image:
    """A texture or normal map [H, W, 3] as an 8-bit image."""
    return Image.fromarray(to_bytes(texture))
