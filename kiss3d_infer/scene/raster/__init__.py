"""Rasterization with gradients: one small interface, three implementations that agree.

- `cpu`: compiled kernels, the default wherever there is no CUDA device;
- `cuda`: nvdiffrast, an optional extra;
- `reference`: plain torch, slow, the one the tests compare the others to.

Row 0 of every image is the top of the view; pixel (row i, column j) has its centre at
(x, y) = (j + 0.5, i + 0.5). Triangles are seen from both sides. A triangle with a corner behind the
camera (w <= 1e-8) is dropped whole: scenes here are objects in front of the camera.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragments:
    """What a rasterizer saw through each pixel of V views of one mesh.

    Interpolation and antialiasing send gradients to `clip`; `face` and `depth` carry none.
    """

    face: Tensor  # [V, H, W] int32: 0 = background, else index of the face + 1
    depth: (
        Tensor  # [V, H, W] float32: clip z/w of the nearest surface; background = 1, the far plane
    )
    clip: Tensor  # [V, N, 4] float32: the vertices in clip space, y up
    faces: Tensor  # [F, 3] int32
    kept: Any = field(default=None, repr=False)  # what the rasterizer keeps for its own later calls

    @property
    def alpha(self) -> Tensor:
        """1 where a surface was hit, else 0: [V, H, W, 1] float32, without gradient."""
        return (self.face > 0).to(self.clip.dtype).unsqueeze(-1)


class Rasterizer(Protocol):
    """The operations that rendering and mesh optimization are made of."""

    def rasterize(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Fragments:
        """Find the nearest face at every pixel centre.

        Args:
            clip: [V, N, 4] vertices in OpenGL clip space (y up, visible z in [-w, w]).
            faces: [F, 3] int32.
            resolution: (height, width) in pixels.
        """
        ...

    def interpolate(self, attributes: Tensor, fragments: Fragments) -> Tensor:
        """Perspective-correct interpolation of vertex attributes [N, C] -> [V, H, W, C], 0 outside.

        Gradients reach the attributes and `fragments.clip`.
        """
        ...

    def antialias(self, image: Tensor, fragments: Fragments) -> Tensor:
        """Blend pixel pairs across the silhouette edges between them: [V, H, W, C] -> same shape.

        The blend weight depends on where the edge crosses, which is what makes silhouettes
        differentiable: gradients reach the image and `fragments.clip` (Laine et al. 2020, "Modular
        Primitives for High-Performance Differentiable Rendering", section 3). Unlike there, the
        edge is looked for across up to `edges.MAX_WALK` triangles instead of only in the one under
        the pixel: otherwise pixel-sized triangles lose most of the gradient.
        """
        ...

    def sample_texture(self, texture: Tensor, uv: Tensor) -> Tensor:
        """Bilinear lookup with repeat wrapping: see `texture.sample_texture`."""
        ...


def rasterizer_for(device: torch.device | str) -> Rasterizer:
    """The rasterizer for tensors on `device`; InputError for CUDA without nvdiffrast."""
    return _rasterizer(torch.device(device).type)


@cache  # a CUDA rasterizer keeps its contexts, which are slow to make and hold memory
def _rasterizer(kind: str) -> Rasterizer:
    if kind == "cuda":
        from kiss3d_infer.scene.raster.cuda import CudaRasterizer

        return CudaRasterizer()
    if kind == "cpu":
        from kiss3d_infer.scene.raster.cpu import CpuRasterizer

        return CpuRasterizer()
    from kiss3d_infer.scene.raster.reference import TorchRasterizer

    return TorchRasterizer()


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Area-weighted unit vertex normals with gradients to the vertices.

    Args:
        vertices: [N, 3] float32.
        faces: [F, 3] int32, counter-clockwise seen from outside.

    Returns:
        [N, 3]; 0 for a vertex without faces of positive area.
    """
    if vertices.device.type == "cpu" and vertices.dtype == torch.float32:
        from kiss3d_infer.scene.raster.cpu import summed_face_normals
    else:
        from kiss3d_infer.scene.raster.reference import summed_face_normals
    summed = summed_face_normals(vertices, faces)
    # Much faster than normalize(). The clamp keeps the gradient of a zero vector finite: at it the
    # root's own would not be.
    return summed / summed.square().sum(-1, keepdim=True).clamp(min=1e-30).sqrt()


def warm_up() -> None:
    """Compile the CPU kernels into numba's cache, with progress (some 10 s, once per machine)."""
    from kiss3d_infer.progress import track

    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0, 1, 0, 1]]], requires_grad=True)
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    rasterizer = rasterizer_for("cpu")
    fragments = rasterizer.rasterize(clip, faces, (4, 4))
    positions = clip[0, :, :3].detach().requires_grad_()
    steps: list[Callable[[], Tensor]] = [
        lambda: rasterizer.interpolate(positions, fragments),
        lambda: rasterizer.antialias(torch.ones(1, 4, 4, 1, requires_grad=True), fragments),
        lambda: vertex_normals(positions, faces),
    ]
    for step in track(steps, "compiling the CPU rasterizer"):
        step().sum().backward()  # type: ignore[no-untyped-call]
