"""`Mesh` to USDZ, the package that Apple's viewers open, through Pixar's USD library."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiss3d_infer.files import writing
from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.parts import parts_by_material, picture

_EPOCH = 946_684_800
"""Modification time of the packed files (2000-01-01), so that the same mesh gives the same bytes;
a ZIP cannot tell times before 1980."""


def save_usdz(mesh: Mesh, path: Path, extras: Mapping[str, float | str]) -> None:
    """Write one ARKit-compliant package: metres, Y up, a binary layer and PNG textures.

    Materials are UsdPreviewSurface, metallic 0 and roughness 1. Vertex colours show where there is
    no texture: the surface model cannot multiply both.
    """
    from pxr import Sdf, UsdUtils

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layer = folder / "asset.usdc"
        _write_stage(mesh, layer, extras)
        for file in folder.iterdir():
            os.utime(file, (_EPOCH, _EPOCH))
        with writing(path) as aside:
            if not UsdUtils.CreateNewARKitUsdzPackage(Sdf.AssetPath(str(layer)), str(aside)):
                raise OSError(f"the USD library could not write {path}")


def _write_stage(mesh: Mesh, layer: Path, extras: Mapping[str, float | str]) -> None:
    from pxr import Usd, UsdGeom, UsdShade

    stage = Usd.Stage.CreateNew(str(layer))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    if extras:
        stage.GetRootLayer().customLayerData = dict(extras)
    asset = UsdGeom.Xform.Define(stage, "/Asset")
    Usd.ModelAPI(asset).SetKind("component")
    stage.SetDefaultPrim(asset.GetPrim())
    UsdGeom.Scope.Define(stage, "/Asset/Materials")
    for i, (material, part) in enumerate(parts_by_material(mesh)):
        geometry = _define_mesh(stage, f"/Asset/part_{i}", part)
        surface = _define_material(stage, f"/Asset/Materials/material_{i}", part, layer.parent)
        surface.GetPrim().SetDisplayName(material.name)
        UsdShade.MaterialBindingAPI.Apply(geometry.GetPrim()).Bind(surface)
    stage.GetRootLayer().Save()


def _define_mesh(stage: Any, path: str, part: Mesh) -> Any:
    from pxr import Sdf, UsdGeom, Vt

    geometry = UsdGeom.Mesh.Define(stage, path)
    geometry.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    geometry.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(part.vertices.numpy()))
    geometry.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(part.faces.flatten().numpy()))
    geometry.CreateFaceVertexCountsAttr(Vt.IntArray(len(part.faces), 3))
    geometry.CreateExtentAttr(
        Vt.Vec3fArray.FromNumpy(torch.stack(part.vertices.aminmax(dim=0)).numpy())
    )
    geometry.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(smooth_normals(part).numpy()))
    geometry.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    primvars = UsdGeom.PrimvarsAPI(geometry)
    if part.uv is not None:
        coordinates = primvars.CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex
        )
        coordinates.Set(Vt.Vec2fArray.FromNumpy(part.uv.numpy()))
    if part.vertex_colors is not None:
        linear = to_linear(part.vertex_colors) * _linear(part.materials[0])
        colors = primvars.CreatePrimvar(
            "displayColor", Sdf.ValueTypeNames.Color3fArray, UsdGeom.Tokens.vertex
        )
        colors.Set(Vt.Vec3fArray.FromNumpy(linear.numpy()))
    return geometry


def _define_material(stage: Any, path: str, part: Mesh, folder: Path) -> Any:
    from pxr import Gf, Sdf, UsdShade

    (material,) = part.materials
    surface = UsdShade.Material.Define(stage, path)
    shader = UsdShade.Shader.Define(stage, f"{path}/surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    shader.CreateInput("opacity", Sdf.ValueTypeNames.Float).Set(material.opacity)
    surface.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
    color = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    base = Gf.Vec3f(*_linear(material).tolist())
    if material.texture is not None and part.uv is not None:
        texture = _define_texture(stage, f"{path}/color", material.texture, folder, "sRGB")
        if material.base_color != (1.0, 1.0, 1.0):
            scale = texture.CreateInput("scale", Sdf.ValueTypeNames.Float4)
            scale.Set(Gf.Vec4f(*base, 1))
        color.ConnectToSource(texture.ConnectableAPI(), "rgb")
    elif part.vertex_colors is not None:
        reader = _define_reader(stage, f"{path}/vertex_color", "displayColor", "float3")
        color.ConnectToSource(reader.ConnectableAPI(), "result")
    else:
        color.Set(base)
    if material.normal_map is not None and part.uv is not None:
        texture = _define_texture(stage, f"{path}/normal", material.normal_map, folder, "raw")
        # [0, 1] to [-1, 1], as the surface model asks of 8-bit normal maps.
        texture.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
        texture.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        normal = shader.CreateInput("normal", Sdf.ValueTypeNames.Normal3f)
        normal.ConnectToSource(texture.ConnectableAPI(), "rgb")
    return surface


def _define_texture(stage: Any, path: str, pixels: Tensor, folder: Path, space: str) -> Any:
    from pxr import Sdf, UsdShade

    name = f"{'_'.join(path.split('/')[-2:])}.png"
    picture(pixels).save(folder / name, "PNG")
    reader = _define_reader(stage, f"{path}_place", "st", "float2")
    shader = UsdShade.Shader.Define(stage, path)
    shader.CreateIdAttr("UsdUVTexture")
    shader.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(f"./{name}")
    shader.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(space)
    for axis in ("wrapS", "wrapT"):
        shader.CreateInput(axis, Sdf.ValueTypeNames.Token).Set("repeat")
    place = shader.CreateInput("st", Sdf.ValueTypeNames.Float2)
    place.ConnectToSource(reader.ConnectableAPI(), "result")
    shader.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
    return shader


def _define_reader(stage: Any, path: str, primvar: str, kind: str) -> Any:
    from pxr import Sdf, UsdShade

    reader = UsdShade.Shader.Define(stage, path)
    reader.CreateIdAttr(f"UsdPrimvarReader_{kind}")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set(primvar)
    types = {"float2": Sdf.ValueTypeNames.Float2, "float3": Sdf.ValueTypeNames.Float3}
    reader.CreateOutput("result", types[kind])
    return reader


def _linear(material: Material) -> Tensor:
    return to_linear(torch.tensor(material.base_color))
