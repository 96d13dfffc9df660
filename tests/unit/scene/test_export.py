"""Written meshes come back as they were, and say what viewers need to know."""

import importlib.util
import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.export import checked_export_type, save_mesh
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.tangents import vertex_tangents


def sphere(**parts: object) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=2)
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    return Mesh(vertices, torch.tensor(shape.faces, dtype=torch.int32), **parts)  # type: ignore[arg-type]


def textured() -> Mesh:
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(8, 16, 3, generator=generator)
    texture = (texture * 255).round() / 255
    uv = torch.rand(162, 2, generator=generator)
    return sphere(uv=uv, materials=(Material("skin", texture=texture),))


def with_normal_map() -> Mesh:
    mesh = textured()
    pixels = torch.rand(4, 8, 3, generator=torch.Generator().manual_seed(1))
    pixels = (pixels * 255).round() / 255
    return replace(mesh, materials=(replace(mesh.materials[0], normal_map=pixels),))


def glb_chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk of a GLB whose lengths add up."""
    data = path.read_bytes()
    magic, version, total, json_length, json_type = struct.unpack("<4sIIII", data[:20])
    assert (magic, version, total, json_type) == (b"glTF", 2, len(data), 0x4E4F534A)
    length, kind = struct.unpack("<II", data[20 + json_length : 28 + json_length])
    assert kind == 0x004E4942 and json_length % 4 == length % 4 == 0
    assert 28 + json_length + length == len(data)
    return json.loads(data[20 : 20 + json_length]), data[28 + json_length :]


def accessor(header: dict[str, Any], binary: bytes, index: int) -> np.ndarray[Any, Any]:
    """An accessor's values [N, components], checked to lie within its buffer view."""
    entry = header["accessors"][index]
    view = header["bufferViews"][entry["bufferView"]]
    kind = np.dtype({5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}[entry["componentType"]])
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[entry["type"]]
    start = view.get("byteOffset", 0) + entry.get("byteOffset", 0)
    count = entry["count"] * width
    assert start % 4 == 0 and "byteStride" not in view
    assert entry.get("byteOffset", 0) + count * kind.itemsize <= view["byteLength"]
    assert view.get("byteOffset", 0) + view["byteLength"] <= len(binary)
    return np.frombuffer(binary, kind, count, start).reshape(-1, width)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_a_textured_mesh_comes_back_whole(suffix: str, tmp_path: Path) -> None:
    mesh = textured()
    save_mesh(mesh, tmp_path / f"a{suffix}")
    back = load_mesh(tmp_path / f"a{suffix}")
    assert back.uv is not None and mesh.uv is not None and back.normals is not None
    # Corner by corner: OBJ readers may order vertices as they like.
    for ours, theirs in (
        (mesh.vertices, back.vertices),
        (mesh.uv, back.uv),
        (smooth_normals(mesh), back.normals),
    ):
        torch.testing.assert_close(
            theirs[back.faces.long()], ours[mesh.faces.long()], atol=2e-5, rtol=0
        )
    assert back.materials[0].texture is not None and mesh.materials[0].texture is not None
    torch.testing.assert_close(back.materials[0].texture, mesh.materials[0].texture)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_several_materials_come_back(suffix: str, tmp_path: Path) -> None:
    index = (torch.arange(320) >= 100).int()
    red, glass = Material("red", (1.0, 0.0, 0.0)), Material("glass", (0.2, 0.4, 0.6), opacity=0.5)
    save_mesh(sphere(material_index=index, materials=(red, glass)), tmp_path / f"a{suffix}")
    back = load_mesh(tmp_path / f"a{suffix}")
    assert back.material_index is not None
    counts = back.material_index.bincount().tolist()
    (num_red, red), (num_glass, glass) = sorted(zip(counts, back.materials, strict=True))
    assert (num_red, num_glass) == (100, 220)
    assert red.base_color == pytest.approx((1.0, 0.0, 0.0))
    assert glass.base_color == pytest.approx((0.2, 0.4, 0.6), abs=0.01)
    assert glass.opacity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_vertex_colours_come_back(suffix: str, tmp_path: Path) -> None:
    colors = torch.linspace(0.2, 1, 162 * 3).reshape(-1, 3)
    mesh = sphere(vertex_colors=colors)
    save_mesh(mesh, tmp_path / f"a{suffix}")
    back = load_mesh(tmp_path / f"a{suffix}")
    assert back.vertex_colors is not None
    ours, theirs = colors[mesh.faces.long()], back.vertex_colors[back.faces.long()]
    torch.testing.assert_close(theirs, ours, atol=0.01, rtol=0)


def test_a_ply_takes_its_colours_from_the_texture(tmp_path: Path) -> None:
    texture = torch.zeros(4, 4, 3)
    texture[..., 1] = 1.0
    mesh = sphere(uv=torch.rand(162, 2), materials=(Material("green", texture=texture),))
    save_mesh(mesh, tmp_path / "a.ply")
    back = load_mesh(tmp_path / "a.ply")
    assert back.vertex_colors is not None
    torch.testing.assert_close(back.vertex_colors, torch.tensor([[0.0, 1, 0]]).expand(162, 3))


def test_an_stl_keeps_the_shape(tmp_path: Path) -> None:
    save_mesh(textured(), tmp_path / "a.stl")
    assert load_mesh(tmp_path / "a.stl").faces.shape == (320, 3)


@pytest.mark.parametrize("mesh", [textured(), sphere(vertex_colors=torch.rand(162, 3)), sphere()])
def test_a_glb_is_rough_not_metallic_with_normals(mesh: Mesh, tmp_path: Path) -> None:
    save_mesh(mesh, tmp_path / "a.glb")
    header, _ = glb_chunks(tmp_path / "a.glb")
    (primitive,) = header["meshes"][0]["primitives"]
    assert "NORMAL" in primitive["attributes"] and "TANGENT" not in primitive["attributes"]
    surface = header["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0 and surface["roughnessFactor"] == 1
    for picture in header.get("images", []):
        assert picture["mimeType"] == "image/png" and "bufferView" in picture


def test_a_glb_holds_together(tmp_path: Path) -> None:
    index = (torch.arange(320) >= 100).int()
    mesh = with_normal_map()
    mesh = replace(mesh, material_index=index, materials=(*mesh.materials, Material("plain")))
    save_mesh(mesh, tmp_path / "a.glb")
    header, binary = glb_chunks(tmp_path / "a.glb")
    num_faces = 0
    for geometry in header["meshes"]:
        (primitive,) = geometry["primitives"]
        corners = accessor(header, binary, primitive["indices"])
        attributes = {
            name: accessor(header, binary, place) for name, place in primitive["attributes"].items()
        }
        (num_vertices,) = {len(values) for values in attributes.values()}
        assert corners.max() == num_vertices - 1 and corners.min() == 0
        place = attributes["POSITION"]
        bounds = header["accessors"][primitive["attributes"]["POSITION"]]
        np.testing.assert_array_equal(place.min(0), np.float32(bounds["min"]))
        np.testing.assert_array_equal(place.max(0), np.float32(bounds["max"]))
        np.testing.assert_allclose(np.linalg.norm(attributes["NORMAL"], axis=1), 1, atol=1e-5)
        assert primitive["material"] < len(header["materials"])
        num_faces += len(corners) // 3
    assert num_faces == 320
    whole = trimesh.load_scene(tmp_path / "a.glb").to_geometry()
    np.testing.assert_allclose(whole.bounds, np.stack(mesh.vertices.aminmax(dim=0)), atol=1e-6)


def test_a_glb_carries_its_normal_map_and_tangents(tmp_path: Path) -> None:
    mesh = with_normal_map()
    save_mesh(mesh, tmp_path / "a.glb")
    header, binary = glb_chunks(tmp_path / "a.glb")
    (primitive,) = header["meshes"][0]["primitives"]
    material = header["materials"][primitive["material"]]
    image = header["images"][header["textures"][material["normalTexture"]["index"]]["source"]]
    view = header["bufferViews"][image["bufferView"]]
    png = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(png)))) / 255
    torch.testing.assert_close(pixels, mesh.materials[0].normal_map)
    tangents = accessor(header, binary, primitive["attributes"]["TANGENT"])
    np.testing.assert_allclose(tangents, vertex_tangents(mesh), atol=1e-6)
    assert set(np.unique(tangents[:, 3])) <= {-1.0, 1.0}
    assert load_mesh(tmp_path / "a.glb").materials[0].texture is not None


def test_an_mtl_names_the_normal_map_for_every_reader(tmp_path: Path) -> None:
    mesh = with_normal_map()
    save_mesh(mesh, tmp_path / "a.obj")
    lines = (tmp_path / "a.mtl").read_text().splitlines()
    assert "norm a_0_normal.png" in lines and "map_Bump -bm 1 a_0_normal.png" in lines
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "a_0_normal.png"))) / 255
    torch.testing.assert_close(pixels, mesh.materials[0].normal_map)
    texture = load_mesh(tmp_path / "a.obj").materials[0].texture
    assert texture is not None
    torch.testing.assert_close(texture, mesh.materials[0].texture)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_an_object_of_a_given_height_stands_on_the_ground(suffix: str, tmp_path: Path) -> None:
    mesh = textured()
    mesh = replace(mesh, vertices=mesh.vertices * torch.tensor([1.0, 2, 0.5]) + 3)
    save_mesh(mesh, tmp_path / f"a{suffix}", height_m=0.8)
    low, high = load_mesh(tmp_path / f"a{suffix}").vertices.aminmax(dim=0)
    torch.testing.assert_close(low, torch.tensor([-0.2, 0, -0.1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(high, torch.tensor([0.2, 0.8, 0.1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("height", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_height_is_refused(height: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="positive"):
        save_mesh(sphere(), tmp_path / "a.glb", height_m=height)
    assert list(tmp_path.iterdir()) == []


def test_a_flat_mesh_cannot_be_given_a_height(tmp_path: Path) -> None:
    ground = Mesh(sphere().vertices * torch.tensor([1.0, 0, 1]), sphere().faces)
    with pytest.raises(InputError, match="flat"):
        save_mesh(ground, tmp_path / "a.glb", height_m=1)


def test_a_glb_carries_facts_about_itself(tmp_path: Path) -> None:
    facts = {"silhouette_iou": 0.98, "normal_error/0": 4.5, "made_by": "kiss3d"}
    save_mesh(sphere(), tmp_path / "a.glb", extras=facts | {"psnr": float("inf")})
    header, _ = glb_chunks(tmp_path / "a.glb")
    assert header["scenes"][header["scene"]]["extras"] == facts | {"psnr": "inf"}
    read = trimesh.load_scene(tmp_path / "a.glb").metadata
    assert read["silhouette_iou"] == 0.98


def test_an_unknown_suffix_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="abc"):
        save_mesh(sphere(), tmp_path / "a.abc")
    assert list(tmp_path.iterdir()) == []


def test_usdz_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "kiss3d_infer.scene.export.find_spec",
        lambda name: None if name == "pxr" else found(name),
    )
    with pytest.raises(InputError, match="'usd'"):
        checked_export_type(tmp_path / "a.usdz")
