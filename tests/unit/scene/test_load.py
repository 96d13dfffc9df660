"""Reading mesh files: what is kept, and what is refused."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.load import MeshLimits, load_mesh

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def glb(header: dict[str, Any], binary: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    if binary:
        body += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def gltf_header(count: float, **accessor: Any) -> dict[str, Any]:
    positions = {"componentType": 5126, "count": count, "type": "VEC3", **accessor}
    return {
        "asset": {"version": "2.0"},
        "accessors": [positions],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "buffers": [{"byteLength": 36}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }


def test_a_tiny_glb_that_declares_thirty_million_vertices_is_refused_unread() -> None:
    bomb = glb(gltf_header(30_000_000))
    assert len(bomb) < 600
    with pytest.raises(InputError, match="30000000 vertices"):
        load_mesh(bomb, "glb")


def test_a_glb_that_uses_a_small_mesh_ten_million_times_is_refused() -> None:
    header = gltf_header(3, bufferView=0)
    header["nodes"] = [{"mesh": 0}] * 1000
    data = glb(header, np.eye(3, dtype=np.float32).tobytes())
    with pytest.raises(InputError, match="3000 vertices"):
        load_mesh(data, "glb", limits=MeshLimits(num_vertices=2000))


def test_a_glb_that_declares_more_than_its_buffer_holds_is_refused() -> None:
    header = gltf_header(1000, bufferView=0)
    with pytest.raises(InputError, match="does not hold"):
        load_mesh(glb(header, np.eye(3, dtype=np.float32).tobytes()), "glb")


def test_a_compressed_glb_is_refused_by_name() -> None:
    header = gltf_header(3) | {"extensionsRequired": ["KHR_draco_mesh_compression"]}
    with pytest.raises(InputError, match="KHR_draco_mesh_compression"):
        load_mesh(glb(header), "glb")


@pytest.mark.parametrize(
    ("data", "file_type"),
    [
        (b"", "glb"),
        (b"not a mesh at all", "glb"),
        (glb(gltf_header(3))[:60], "glb"),
        (b"{}", "gltf"),
        (b"[1, 2", "gltf"),
        (b"ply\nformat ascii 1.0\nelement vertex 99999\nend_header\n", "ply"),
        (b"ply\n", "ply"),
        (b"ply\nformat ascii 1.0\nelement vertex " + b"9" * 5000 + b"\nend_header\n", "ply"),
        (glb(gltf_header(float("inf"))), "glb"),
        (b"\0" * 84 + b"1234", "stl"),
        (b"# nothing\n", "obj"),
        (b"v 0 0 0\nv 1 0 0\n", "obj"),
        ((TRIANGLE + "f 1 2 3\n").encode("utf-16"), "obj"),
        ((TRIANGLE + "f 1 2 9\n").encode(), "obj"),
        ((TRIANGLE + "f 1 2 2\n").encode(), "obj"),
        (b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "obj"),
        (b"v 0 0 0\nv inf 0 0\nv 0 1 0\nf 1 2 3\n", "obj"),
        (b"anything", "exe"),
    ],
)
def test_what_is_no_mesh_is_refused(data: bytes, file_type: str) -> None:
    with pytest.raises(InputError):
        load_mesh(data, file_type)


@pytest.mark.parametrize("scale", [1e39, 1e308, float("inf"), float("nan")])
def test_coordinates_that_only_a_node_makes_infinite_are_refused(scale: float) -> None:
    header = gltf_header(3, bufferView=0)
    header["nodes"][0]["scale"] = [scale, 1, 1]
    with pytest.raises(InputError, match="not finite"):
        load_mesh(glb(header, np.eye(3, dtype=np.float32).tobytes()), "glb")


def test_texture_coordinates_are_finite() -> None:
    obj = f"{TRIANGLE}vt nan 0\nvt 1e300 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    uv = load_mesh(obj.encode(), "obj").uv
    assert uv is not None and uv.isfinite().all()


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        load_mesh(tmp_path / "absent.obj")
    (tmp_path / "a.blend").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.blend.*give one of"):
        load_mesh(tmp_path / "a.blend")


def test_a_file_over_the_limits_is_refused() -> None:
    obj = (TRIANGLE + "f 1 2 3\n").encode()
    with pytest.raises(InputError, match="bytes"):
        load_mesh(obj, "obj", limits=MeshLimits(num_bytes=10))
    with pytest.raises(InputError, match="3 vertices"):
        load_mesh(obj, "obj", limits=MeshLimits(num_vertices=2))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (TRIANGLE * 4 + "f 1 2 3\n", "12 vertices"),
        (TRIANGLE + "vt 0 0\n" * 11 + "f 1 2 3\n", "11 vertices"),
        (TRIANGLE + "f 1 2 3\r\n" * 11, "11 faces"),
        (TRIANGLE + "f\t1 2 3" + "  1 2 3" * 3 + "\n", "10 faces"),
        (TRIANGLE + "f" + " 1 2 \\\n" * 6 + "3\n", "11 faces"),
        (TRIANGLE + "f" + " 1" * 70_000 + "\n", "faces"),
    ],
)
def test_an_obj_over_the_limits_is_refused_before_it_is_parsed(
    text: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(trimesh, "load_scene")
    with pytest.raises(InputError, match=what):
        load_mesh(text.encode(), "obj", limits=MeshLimits(num_vertices=10, num_faces=9))


def test_an_obj_keeps_its_materials_and_textures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "a.mtl").write_text(
        "newmtl painted\nKd 0.1 0.2 0.3\nmap_Kd red.png\nnewmtl glass\nKd 0.5 0.25 1\nd 0.4\n"
    )
    (tmp_path / "a.obj").write_text(
        f"mtllib a.mtl\n{TRIANGLE}v 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
        "usemtl painted\nf 1/1 2/2 3/3\nusemtl glass\nf 1/1 2/2 4/3\nf 1/1 1/1 4/3\n"
    )
    mesh = load_mesh(tmp_path / "a.obj")
    assert len(mesh.faces) == 2  # the face without area is gone
    painted, glass = sorted(mesh.materials, key=lambda material: material.name, reverse=True)
    assert painted.texture is not None and painted.texture.shape == (2, 4, 3)
    assert painted.texture[0, 0].tolist() == [1.0, 0.0, 0.0]
    assert painted.base_color == (1.0, 1.0, 1.0)  # the texture stands for the colour
    assert glass.base_color == pytest.approx((0.5, 0.25, 1.0), abs=0.01)
    assert glass.opacity == pytest.approx(0.4)
    assert mesh.material_index is not None and mesh.material_index.unique().tolist() == [0, 1]


def shared_texture(num_nodes: int, size: int, num_images: int = 1) -> bytes:
    """One triangle in many nodes and materials, which share a one-colour picture."""
    picture = io.BytesIO()
    Image.new("RGB", (size, size), (255, 0, 0)).save(picture, "PNG")
    positions = np.eye(3, dtype=np.float32).tobytes()
    binary = positions + np.eye(3, 2, dtype=np.float32).tobytes() + picture.getvalue()
    header = gltf_header(3, bufferView=0)
    header["accessors"].append({"componentType": 5126, "count": 3, "type": "VEC2", "bufferView": 1})
    header["bufferViews"] = [
        {"buffer": 0, "byteOffset": 0, "byteLength": 36},
        {"buffer": 0, "byteOffset": 36, "byteLength": 24},
        {"buffer": 0, "byteOffset": 60, "byteLength": len(binary) - 60},
    ]
    header["buffers"] = [{"byteLength": len(binary)}]
    header["images"] = [{"bufferView": 2, "mimeType": "image/png"}] * num_images
    header["textures"] = [{"source": i} for i in range(num_images)]
    header["materials"] = [
        {"name": name, "pbrMetallicRoughness": {"baseColorTexture": {"index": index}}}
        for index in range(num_images)
        for name in "ab"
    ]
    attributes = {"POSITION": 0, "TEXCOORD_0": 1}
    header["meshes"] = [
        {"primitives": [{"attributes": attributes, "material": i}]}
        for i in range(len(header["materials"]))
    ]
    header["nodes"] = [
        {"mesh": i % len(header["meshes"]), "translation": [i, 0, 0]} for i in range(num_nodes)
    ]
    header["scenes"] = [{"nodes": list(range(num_nodes))}]
    return glb(header, binary)


def test_a_texture_that_many_parts_share_is_decoded_once() -> None:
    mesh = load_mesh(shared_texture(50, 64), "glb", limits=MeshLimits(num_texels=64 * 64))
    assert len(mesh.faces) == 50
    a, b = sorted(mesh.materials, key=lambda material: material.name)
    assert (a.name, b.name) == ("a", "b")
    assert a.texture is not None and a.texture is b.texture
    assert mesh.material_index is not None and mesh.material_index.bincount().tolist() == [25, 25]


def test_textures_are_limited_all_together() -> None:
    three = shared_texture(6, 64, num_images=3)
    assert len(load_mesh(three, "glb").materials) == 6
    with pytest.raises(InputError, match="texels"):
        load_mesh(three, "glb", limits=MeshLimits(num_texels=2 * 64 * 64))


def test_obj_materials_that_name_one_picture_share_it(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "atlas.png")
    names = ("a", "b", "c")
    (tmp_path / "a.mtl").write_text("".join(f"newmtl {n}\nmap_Kd atlas.png\n" for n in names))
    faces = "".join(f"usemtl {n}\nf 1/1 2/2 3/3\n" for n in names)
    (tmp_path / "a.obj").write_text(f"mtllib a.mtl\n{TRIANGLE}vt 0 0\nvt 1 0\nvt 0 1\n{faces}")
    mesh = load_mesh(tmp_path / "a.obj", limits=MeshLimits(num_texels=8))
    assert len(mesh.materials) == 3
    assert len({id(material.texture) for material in mesh.materials}) == 1


def test_references_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    for reference in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        (inside / "a.mtl").write_text(f"newmtl m\nKd 1 0 0\nmap_Kd {reference}\n")
        (inside / "a.obj").write_text(f"mtllib a.mtl\n{TRIANGLE}vt 0 0\nusemtl m\nf 1/1 2/1 3/1\n")
        assert load_mesh(inside / "a.obj").materials[0].texture is None
    header = gltf_header(3, bufferView=0)
    header["buffers"][0]["uri"] = "../secret.bin"
    (tmp_path / "secret.bin").write_bytes(np.eye(3, dtype=np.float32).tobytes())
    (inside / "a.gltf").write_text(json.dumps(header))
    with pytest.raises(InputError, match="own folder"):
        load_mesh(inside / "a.gltf")


def test_a_scene_graph_is_flattened_with_its_transforms() -> None:
    scene = trimesh.Scene()
    box = trimesh.creation.box()
    scene.add_geometry(box, node_name="a", geom_name="box")
    away = trimesh.transformations.translation_matrix([10, 0, 0])
    away[1, 1] = -2.0  # mirrored and stretched
    scene.graph.update(frame_to="b", geometry="box", matrix=away)
    mesh = load_mesh(scene.export(file_type="glb"), "glb")
    assert mesh.vertices.amax(0).tolist() == [10.5, 1.0, 0.5]
    assert len(mesh.faces) == 24
    corners = mesh.vertices[mesh.faces.long()].double()
    volume = torch.einsum(
        "fi,fi->f", corners[:, 0], torch.linalg.cross(corners[:, 1], corners[:, 2])
    ).sum()
    assert volume.item() / 6 == pytest.approx(3.0)  # both parts face outward


def test_gltf_colours_are_linear_and_come_back_as_srgb() -> None:
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[55, 255, 0, 255])
    )
    (material,) = load_mesh(box.export(file_type="glb"), "glb").materials
    assert material.base_color == pytest.approx((0.5, 1.0, 0.0), abs=0.01)  # 55/255 linear


def test_an_stl_is_welded_so_that_it_can_be_smooth() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    mesh = load_mesh(sphere.export(file_type="stl"), "stl")
    assert len(mesh.vertices) == len(sphere.vertices)


def test_ply_vertex_and_face_colours_are_kept() -> None:
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.tile([10, 20, 30, 255], (8, 1)).astype(np.uint8)
    mesh = load_mesh(box.export(file_type="ply"), "ply")
    assert mesh.vertex_colors is not None
    torch.testing.assert_close(mesh.vertex_colors[0] * 255, torch.tensor([10.0, 20, 30]))
    by_face = trimesh.creation.box()
    by_face.visual.face_colors = np.arange(48).reshape(12, 4).astype(np.uint8)
    mesh = load_mesh(by_face.export(file_type="ply"), "ply")
    assert mesh.vertex_colors is not None and len(mesh.vertices) == 36
    torch.testing.assert_close(mesh.vertex_colors[3] * 255, torch.tensor([4.0, 5, 6]))
