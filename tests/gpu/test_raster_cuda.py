"""The CUDA rasterizer against the CPU one."""

import pytest
import torch
import trimesh
from torch import Tensor

from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.raster import rasterizer_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CAMERAS = Cameras(azimuths=(0, 90, 215), elevations=(5, -10, 40))
SIZE = 96


def test_values_and_gradients_match_the_cpu() -> None:
    pytest.importorskip("nvdiffrast")
    mesh = trimesh.creation.torus(0.7, 0.25, major_sections=40, minor_sections=20)
    attributes = torch.randn(len(mesh.vertices), 5, generator=torch.Generator().manual_seed(0))
    # Zero-mean noise cancels in sums over the surface and would hide a wrong sign; ramps do not.
    weight = torch.linspace(0, 1, SIZE).reshape(1, 1, SIZE, 1) * torch.arange(1.0, 6)

    def run(device: str) -> list[Tensor]:
        rasterizer = rasterizer_for(device)
        vertices = torch.tensor(mesh.vertices, dtype=torch.float32, device=device)
        faces = torch.tensor(mesh.faces, dtype=torch.int32, device=device)
        clip = CAMERAS.clip(vertices).requires_grad_()
        source = attributes.to(device).requires_grad_()
        fragments = rasterizer.rasterize(clip, faces, (SIZE, SIZE))
        image = rasterizer.antialias(rasterizer.interpolate(source, fragments), fragments)
        (image * weight.to(device)).sum().backward()  # type: ignore[no-untyped-call]
        assert clip.grad is not None and source.grad is not None
        tensors = fragments.face, fragments.depth, image.detach(), source.grad, clip.grad
        return [tensor.cpu() for tensor in tensors]

    cpu, cuda = run("cpu"), run("cuda")
    assert (cpu[0] != cuda[0]).float().mean() < 1e-3  # pixel centres that lie on an edge
    for ours, theirs in zip(cpu[1:], cuda[1:], strict=True):
        scale = ours.abs().max()
        differs = (ours - theirs).abs() > 1e-3 * scale
        assert differs.float().mean() < 5e-3
        assert (
            torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999
        )
