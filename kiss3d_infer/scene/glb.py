"""`Mesh` to the bytes of a GLB, binary glTF 2.0."""

from collections.abc import Mapping
from typing import Any

import torch

from kiss3d_infer.scene.color import to_bytes, to_linear
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.parts import parts_by_material, picture
from kiss3d_infer.scene.tangents import vertex_tangents


def to_glb(mesh: Mesh, extras: Mapping[str, float | str]) -> bytes:
    """One primitive per material; `extras` become those of the scene, which viewers show.

    Parts with a normal map also get the tangents it was made for: viewers without MikkTSpace
    derive others from the screen.
    """
    import trimesh

    scene = trimesh.Scene(metadata=dict(extras))
    for i, (material, part) in enumerate(parts_by_material(mesh)):
        geometry = trimesh.Trimesh(
            vertices=part.vertices.numpy(),
            faces=part.faces.numpy(),
            vertex_normals=smooth_normals(part).numpy(),
            process=False,
            visual=trimesh.visual.TextureVisuals(
                uv=None if part.uv is None else part.uv.numpy(),
                material=_pbr_material(material),
            ),
        )
        if part.vertex_colors is not None:
            linear = to_linear(part.vertex_colors)
            opaque = torch.cat([linear, torch.ones_like(linear[:, :1])], dim=1)
            geometry.visual.vertex_attributes["color"] = to_bytes(opaque)
        if material.normal_map is not None and part.uv is not None:
            geometry.vertex_attributes["_TANGENT"] = vertex_tangents(part).numpy()
        scene.add_geometry(geometry, geom_name=f"{i}_{material.name}")
    data: bytes = scene.export(
        file_type="glb", include_normals=True, tree_postprocessor=_name_tangents
    )
    return data


def _name_tangents(tree: dict[str, Any]) -> None:
    """Give the tangents their name: trimesh writes other attributes with an underscore only."""
    for geometry in tree["meshes"]:
        for primitive in geometry["primitives"]:
            attributes = primitive["attributes"]
            if "_TANGENT" in attributes:
                attributes["TANGENT"] = attributes.pop("_TANGENT")


def _pbr_material(material: Material) -> Any:
    import trimesh

    red, green, blue = to_linear(torch.tensor(material.base_color)).tolist()
    return trimesh.visual.material.PBRMaterial(
        name=material.name,
        baseColorFactor=[red, green, blue, material.opacity],
        baseColorTexture=None if material.texture is None else picture(material.texture),
        normalTexture=None if material.normal_map is None else picture(material.normal_map),
        metallicFactor=0.0,
        roughnessFactor=1.0,
        alphaMode="BLEND" if material.opacity < 1 else "OPAQUE",
    )
