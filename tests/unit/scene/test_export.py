"""Written meshes come back as they were, and say what viewers need to know."""

import json
import struct
from pathlib import Path

import pytest
import torch
import trimesh

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import smooth_normals


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
    data = (tmp_path / "a.glb").read_bytes()
    (length,) = struct.unpack("<I", data[12:16])
    header = json.loads(data[20 : 20 + length])
    (primitive,) = header["meshes"][0]["primitives"]
    assert "NORMAL" in primitive["attributes"]
    surface = header["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0 and surface["roughnessFactor"] == 1
    for picture in header.get("images", []):
        assert picture["mimeType"] == "image/png" and "bufferView" in picture


def test_an_unknown_suffix_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="abc"):
        save_mesh(sphere(), tmp_path / "a.abc")
    assert list(tmp_path.iterdir()) == []
