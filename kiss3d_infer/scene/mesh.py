"""A triangle mesh with its surface colours, as plain tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError


@dataclass(frozen=True)
class Material:
    """The colour of a part of a surface; where there is a texture too, both are multiplied.

    Attributes:
        name: as in the file.
        base_color: sRGB in [0, 1].
        texture: [H, W, 3] sRGB float in [0, 1], row 0 at the top; None = plain.
        opacity: 1 = opaque. Kept for export; rendering treats every surface as opaque.
        normal_map: [H, W, 3] tangent-space normals as (n + 1) / 2, green toward +v (OpenGL, glTF),
            in the frames of `vertex_tangents`. Kept for export; rendering ignores it.
        metallic: 0 = paint, wood, plastic; 1 = bare metal. Export ignores it, like the next two.
        roughness: 0 = a mirror, 1 = matt.
        gloss_map: [H, W, 3] in [0, 1]: green multiplies the roughness, blue the metallic (glTF).
    """

    name: str
    base_color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    texture: Tensor | None = None
    opacity: float = 1.0
    normal_map: Tensor | None = None
    metallic: float = 0.0
    roughness: float = 1.0
    gloss_map: Tensor | None = None

    @property
    def is_matt(self) -> bool:
        """Whether it reflects nothing like a mirror."""
        return self.metallic == 0 and self.roughness == 1 and self.gloss_map is None


UNPAINTED = Material("unpainted", (0.8, 0.8, 0.8))
"""What a surface without any colour is drawn with."""
_PAINTED = Material("painted")  # by its vertex colours alone


@dataclass(frozen=True)
class Mesh:
    """Triangles in the right-handed, Y-up, front +Z world; every tensor lies in main memory.

    Attributes:
        vertices: [N, 3] float32.
        faces: [F, 3] int32, counter-clockwise seen from outside.
        normals: [N, 3] float32 unit, or None: then they follow from the faces.
        uv: [N, 2] float32, u right, v up, (0, 0) = bottom left of the texture.
        vertex_colors: [N, 3] sRGB in [0, 1], multiplied with the material.
        material_index: [F] int32 into `materials`; None = the first, or `UNPAINTED` if none.
        materials: the materials in use.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor | None = None
    uv: Tensor | None = None
    vertex_colors: Tensor | None = None
    material_index: Tensor | None = None
    materials: tuple[Material, ...] = ()

    @property
    def face_materials(self) -> tuple[tuple[Material, ...], Tensor]:
        """At least one material, and the index [F] int32 of each face's."""
        index = self.material_index
        if index is None:
            index = torch.zeros(len(self.faces), dtype=torch.int32)
        if self.materials:
            return self.materials, index
        return (_PAINTED if self.vertex_colors is not None else UNPAINTED,), index

    def normalized(self) -> "Mesh":
        """The mesh centred on its bounding box and scaled to a longest half-extent of 1.

        Raises:
            InputError: the mesh is empty or a single point.
        """
        if len(self.vertices) == 0:
            raise InputError("the mesh is empty", fix="give a mesh with at least one triangle")
        low, high = self.vertices.amin(0), self.vertices.amax(0)
        half_extent = ((high - low) / 2).max()
        if not half_extent > 0:
            raise InputError("the mesh has no extent: all its vertices coincide")
        return replace(self, vertices=(self.vertices - (low + high) / 2) / half_extent)

    @classmethod
    def concatenated(cls, meshes: Sequence["Mesh"]) -> "Mesh":
        """All meshes as one; what only some of them have is filled in for the others.

        Normals are computed where they lack, texture coordinates become 0, vertex colours white. A
        material object that several meshes share stays one.
        """
        if len(meshes) == 1:
            return meshes[0]
        from kiss3d_infer.scene.normals import smooth_normals

        has_normals = any(mesh.normals is not None for mesh in meshes)
        has_uv = any(mesh.uv is not None for mesh in meshes)
        has_colors = any(mesh.vertex_colors is not None for mesh in meshes)
        painted = [mesh.face_materials for mesh in meshes]
        materials = {id(material): material for own, _ in painted for material in own}
        places = {key: place for place, key in enumerate(materials)}
        faces, index = [], []
        num_vertices = 0
        for mesh, (own, own_index) in zip(meshes, painted, strict=True):
            faces.append(mesh.faces + num_vertices)
            own_places = torch.tensor([places[id(material)] for material in own])
            index.append(own_places[own_index.long()].int())
            num_vertices += len(mesh.vertices)
        return cls(
            vertices=torch.cat([mesh.vertices for mesh in meshes]),
            faces=torch.cat(faces),
            normals=torch.cat([smooth_normals(mesh) for mesh in meshes]) if has_normals else None,
            uv=_joined([(mesh.uv, (len(mesh.vertices), 2)) for mesh in meshes], 0.0)
            if has_uv
            else None,
            vertex_colors=_joined(
                [(mesh.vertex_colors, (len(mesh.vertices), 3)) for mesh in meshes], 1.0
            )
            if has_colors
            else None,
            material_index=torch.cat(index),
            materials=tuple(materials.values()),
        )


def _joined(parts: Sequence[tuple[Tensor | None, tuple[int, int]]], fill: float) -> Tensor:
    return torch.cat([torch.full(size, fill) if part is None else part for part, size in parts])
