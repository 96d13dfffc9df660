"""What a mesh becomes to be drawn: the packed textures against the rasterizer's own lookup."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.raster.texture import sample_texture
from kiss3d_infer.scene.surface import Surface, Textures


def test_packed_pictures_are_looked_up_like_single_ones() -> None:
    random = torch.Generator().manual_seed(0)
    sizes = ((1, 1), (4, 7), (16, 3), (1, 9))
    pictures = [torch.rand(*size, 3, generator=random) for size in sizes]
    uv = torch.rand(2000, 2, generator=random) * 6 - 3
    uv = torch.cat([uv, torch.tensor([[0.0, 0], [1, 1], [-1e-9, 1 - 1e-7], [0.5, -2]])])
    packed = Textures.of(pictures)
    for index, picture in enumerate(pictures):
        found = packed.sample(torch.full((len(uv),), index), uv)
        torch.testing.assert_close(found, sample_texture(picture, uv), atol=2e-5, rtol=0)


def test_points_of_different_pictures_are_looked_up_together() -> None:
    pictures = [torch.full((2, 2, 3), 0.25), torch.full((3, 1, 3), 0.75)]
    found = Textures.of(pictures).sample(torch.tensor([1, 0, 1]), torch.rand(3, 2))
    assert found[:, 0].tolist() == [0.75, 0.25, 0.75]


def test_a_point_without_a_place_on_the_picture_harms_no_other() -> None:
    uv = torch.tensor([[torch.nan, 0.5], [torch.inf, -torch.inf], [0.5, 0.5]])
    packed = Textures.of([torch.full((4, 5, 3), 0.25)])
    assert packed.sample(torch.zeros(3, dtype=torch.int64), uv)[2].tolist() == [0.25] * 3


def _glb(folder: Path, **pbr: object) -> Path:
    box = trimesh.creation.box()
    material = trimesh.visual.material.PBRMaterial(**pbr)
    uv = np.zeros((len(box.vertices), 2))
    box.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    box.export(folder / "box.glb")
    return folder / "box.glb"


def test_metallic_and_roughness_of_a_gltf_are_read_and_packed(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), (0, 51, 204))  # roughness 0.2, metallic 0.8
    factors = {"metallicFactor": 0.5, "roughnessFactor": 0.5}
    mesh = load_mesh(_glb(tmp_path, metallicRoughnessTexture=picture, **factors))
    surface = Surface.of(mesh, True, 64, "cpu")
    assert surface.gloss is not None
    values = surface.gloss.at(torch.zeros(1, dtype=torch.int64), torch.full((1, 2), 0.3))
    torch.testing.assert_close(values[0, 1:], torch.tensor([0.1, 0.4]))


def test_a_gltf_that_is_all_matt_has_no_gloss(tmp_path: Path) -> None:
    mesh = load_mesh(_glb(tmp_path, metallicFactor=0.0, roughnessFactor=1.0))
    assert Surface.of(mesh, True, 64, "cpu").gloss is None
