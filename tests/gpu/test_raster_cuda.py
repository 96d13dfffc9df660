"""The CUDA rasterizer against the reference."""

import math

import pytest
import torch
import trimesh
from torch import Tensor

from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.raster import Fragments, Rasterizer, rasterizer_for
from kiss3d_infer.scene.raster.reference import TorchRasterizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CAMERAS = Cameras(azimuths=(0, 90, 215), elevations=(5, -10, 40))
SIZE = 96


@pytest.fixture
def cuda() -> Rasterizer:
    pytest.importorskip("nvdiffrast")
    return rasterizer_for("cuda")


def torus(device: str) -> tuple[Tensor, Tensor]:
    mesh = trimesh.creation.torus(0.7, 0.25, major_sections=40, minor_sections=20)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32, device=device)
    return CAMERAS.clip(vertices), torch.tensor(mesh.faces, dtype=torch.int32, device=device)


def test_one_rasterizer_serves_every_call(cuda: Rasterizer) -> None:
    assert rasterizer_for("cuda:0") is cuda


def test_coverage_and_depth_match_the_reference(cuda: Rasterizer) -> None:
    found = cuda.rasterize(*torus("cuda"), (SIZE, SIZE))
    expected = TorchRasterizer().rasterize(*torus("cpu"), (SIZE, SIZE))
    face, depth = found.face.cpu(), found.depth.cpu()
    # nvdiffrast snaps vertices to 1/16 pixel: now and then a pixel shows the face beside its own.
    assert (face != expected.face).float().mean() < 0.01
    assert ((face > 0) != (expected.face > 0)).float().mean() < 2e-3
    both = (face > 0) & (expected.face > 0)
    torch.testing.assert_close(depth[both], expected.depth[both], atol=2e-3, rtol=0)


def test_values_and_gradients_match_the_reference_on_the_same_coverage(cuda: Rasterizer) -> None:
    clip, faces = (tensor.requires_grad_(tensor.is_floating_point()) for tensor in torus("cuda"))
    fragments = cuda.rasterize(clip, faces, (SIZE, SIZE))
    same = Fragments(
        fragments.face.cpu(),
        fragments.depth.cpu(),
        clip.detach().cpu().requires_grad_(),
        faces.cpu(),
    )
    attributes = torch.randn(clip.shape[1], 5, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0, 1, SIZE).reshape(1, 1, SIZE, 1) * torch.arange(1.0, 6)
    results = []
    for rasterizer, seen in ((cuda, fragments), (TorchRasterizer(), same)):
        source = attributes.to(seen.clip.device).detach().clone().requires_grad_()
        image = rasterizer.antialias(rasterizer.interpolate(source, seen), seen)
        (image * weight.to(image.device)).sum().backward()  # type: ignore[no-untyped-call]
        assert source.grad is not None and seen.clip.grad is not None
        results.append([image.detach().cpu(), source.grad.cpu(), seen.clip.grad.cpu()])
    for found, expected in zip(*results, strict=True):
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
        assert cosine > 0.995
        assert found.norm().item() == pytest.approx(expected.norm().item(), rel=0.01)


def test_silhouette_gradient_survives_pixel_sized_triangles(cuda: Rasterizer) -> None:
    sphere = trimesh.creation.icosphere(subdivisions=5)
    vertices = torch.tensor(sphere.vertices, dtype=torch.float32, device="cuda")
    faces = torch.tensor(sphere.faces, dtype=torch.int32, device="cuda")
    camera = Cameras(azimuths=(0,), elevations=(5,))
    size = 256
    scale = torch.ones((), requires_grad=True, device="cuda")
    fragments = cuda.rasterize(camera.clip(vertices * scale), faces, (size, size))
    cuda.antialias(fragments.alpha, fragments).sum().backward()  # type: ignore[no-untyped-call]

    def true_area(radius: float) -> float:
        outline = camera.focal * radius / math.sqrt(camera.distance**2 - radius**2)
        return math.pi * (outline * size / 2) ** 2

    assert scale.grad is not None
    truth = (true_area(1.001) - true_area(0.999)) / 0.002
    assert scale.grad.item() == pytest.approx(truth, rel=0.02)
