"""USDZ packages hold what was written, the way Apple's viewers want it."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals

pytest.importorskip("pxr", reason="USDZ needs the extra 'usd'")
from pxr import Usd, UsdGeom, UsdShade, UsdValidation


def ball(**parts: object) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=2)
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    return Mesh(vertices, torch.tensor(shape.faces, dtype=torch.int32), **parts)  # type: ignore[arg-type]


def pixels(seed: int) -> torch.Tensor:
    values = torch.rand(8, 16, 3, generator=torch.Generator().manual_seed(seed))
    return (values * 255).round() / 255


@pytest.fixture
def mesh() -> Mesh:
    uv = torch.rand(162, 2, generator=torch.Generator().manual_seed(2))
    return ball(uv=uv, materials=(Material("skin", texture=pixels(0), normal_map=pixels(1)),))


def surface_of(prim: Usd.Prim) -> UsdShade.Shader:
    material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
    return UsdShade.Shader(material.ComputeSurfaceSource()[0])


def source_of(shader: UsdShade.Shader, name: str) -> UsdShade.Shader:
    return UsdShade.Shader(shader.GetInput(name).GetConnectedSources()[0][0].source)


def test_the_shape_comes_back_in_metres_with_y_up(mesh: Mesh, tmp_path: Path) -> None:
    save_mesh(mesh, tmp_path / "a.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetDefaultPrim().IsValid()
    (prim,) = (prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
    shape = UsdGeom.Mesh(prim)
    np.testing.assert_array_equal(shape.GetPointsAttr().Get(), mesh.vertices)
    np.testing.assert_array_equal(shape.GetFaceVertexIndicesAttr().Get(), mesh.faces.flatten())
    assert set(shape.GetFaceVertexCountsAttr().Get()) == {3}
    assert shape.GetSubdivisionSchemeAttr().Get() == "none"
    np.testing.assert_array_equal(shape.GetNormalsAttr().Get(), smooth_normals(mesh))
    place = UsdGeom.PrimvarsAPI(prim).GetPrimvar("st")
    assert place.GetInterpolation() == "vertex" and mesh.uv is not None
    np.testing.assert_array_equal(place.Get(), mesh.uv)


def test_textures_are_read_as_colours_and_as_normals(mesh: Mesh, tmp_path: Path) -> None:
    save_mesh(mesh, tmp_path / "a.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    (prim,) = (prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
    surface = surface_of(prim)
    assert surface.GetInput("metallic").Get() == 0 and surface.GetInput("roughness").Get() == 1
    package = zipfile.ZipFile(tmp_path / "a.usdz")
    for name, space, wanted in (
        ("diffuseColor", "sRGB", mesh.materials[0].texture),
        ("normal", "raw", mesh.materials[0].normal_map),
    ):
        texture = source_of(surface, name)
        assert texture.GetInput("sourceColorSpace").Get() == space
        assert source_of(texture, "st").GetInput("varname").Get() == "st"
        data = package.read(texture.GetInput("file").Get().path.removeprefix("./"))
        stored = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))) / 255
        torch.testing.assert_close(stored, wanted)
    normal = source_of(surface, "normal")
    assert tuple(normal.GetInput("scale").Get()) == (2, 2, 2, 1)
    assert tuple(normal.GetInput("bias").Get()) == (-1, -1, -1, 0)


def test_the_package_is_stored_aligned_and_passes_pixars_checks(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "a.usdz"
    save_mesh(mesh, path)
    data = path.read_bytes()
    entries = zipfile.ZipFile(path).infolist()
    assert entries[0].filename.endswith(".usdc") and len(entries) == 3
    for entry in entries:
        assert entry.compress_type == zipfile.ZIP_STORED
        names, extra = (
            int.from_bytes(data[entry.header_offset + k :][:2], "little") for k in (26, 28)
        )
        assert (entry.header_offset + 30 + names + extra) % 64 == 0
    registry = UsdValidation.ValidationRegistry()
    checks = UsdValidation.ValidationContext(registry.GetOrLoadAllValidators())
    problems = checks.Validate(Usd.Stage.Open(str(path)))
    assert [problem.GetMessage() for problem in problems] == []


def test_the_same_mesh_gives_the_same_bytes(mesh: Mesh, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_mesh(mesh, tmp_path / f"{name}.usdz")
    assert (tmp_path / "a.usdz").read_bytes() == (tmp_path / "b.usdz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.usdz", "b.usdz"]


def test_colours_without_a_texture_are_linear(tmp_path: Path) -> None:
    index = (torch.arange(320) >= 100).int()
    glass = Material("glass", (0.2, 0.4, 0.6), opacity=0.5)
    colors = torch.rand(162, 3, generator=torch.Generator().manual_seed(0))
    plain = ball(material_index=index, materials=(glass, Material("red", (1.0, 0.0, 0.0))))
    save_mesh(plain, tmp_path / "plain.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "plain.usdz"))
    first, second = (surface_of(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
    wanted = to_linear(torch.tensor(glass.base_color))
    assert tuple(first.GetInput("diffuseColor").Get()) == pytest.approx(wanted.tolist())
    assert first.GetInput("opacity").Get() == 0.5 and second.GetInput("opacity").Get() == 1

    save_mesh(ball(vertex_colors=colors), tmp_path / "painted.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "painted.usdz"))
    (prim,) = (prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
    reader = source_of(surface_of(prim), "diffuseColor")
    stored = UsdGeom.PrimvarsAPI(prim).GetPrimvar(reader.GetInput("varname").Get()).Get()
    np.testing.assert_allclose(stored, to_linear(colors), atol=1e-6)


def test_height_and_facts_are_kept(mesh: Mesh, tmp_path: Path) -> None:
    tall = replace(mesh, vertices=mesh.vertices * 5 + 1)
    save_mesh(tall, tmp_path / "a.usdz", height_m=1.5, extras={"normal_error/0": 4.5})
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    assert stage.GetRootLayer().customLayerData == {"normal_error/0": 4.5}
    bounds = UsdGeom.BBoxCache(Usd.TimeCode.Default(), ["default"])
    reach = bounds.ComputeWorldBound(stage.GetDefaultPrim()).ComputeAlignedRange()
    assert tuple(reach.GetMin()) == pytest.approx((-0.75, 0, -0.75), abs=1e-6)
    assert tuple(reach.GetMax()) == pytest.approx((0.75, 1.5, 0.75), abs=1e-6)
