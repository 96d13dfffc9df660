"""The packed textures against the rasterizer's own lookup."""

import torch

from kiss3d_infer.scene.raster.texture import sample_texture
from kiss3d_infer.scene.surface import Textures


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
