"""Fit a mesh to the views: render normals and coverage, compare, descend, remesh.

The losses are ISOMER's (Unique3D, arXiv 2405.20343, section 3.3) with silhouettes that pull from
both sides: missing coverage draws the surface outward as much as excess coverage pushes it in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from kiss3d_infer.reconstruct.optimizer import DescentSettings, MeshDescent
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32
from kiss3d_infer.scene.raster import Rasterizer, rasterizer_for, vertex_normals

COARSE = DescentSettings(edge_lengths=(0.1, 0.02), decay=0.995)
COARSE_EXPANSION = 0.02
"""Weight of the push along the normals; it opens folds while the shape is still rough."""
FINE = DescentSettings(edge_lengths=(0.02, 0.015), decay=0.97, ramp=5.0, length_gain=0.2)

_STEPS_PER_REMESH = 2


def refine(
    vertices: Float32,
    faces: Int32,
    target: Target,
    settings: DescentSettings,
    num_steps: int,
    *,
    expansion: float = 0.0,
    on_step: Callable[[float], None] | None = None,
) -> tuple[Float32, Int32]:
    """Move, split and merge a mesh's vertices until it looks like the target.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3] closed and outward.
        target: views on the device that shall rasterize; remeshing happens on the CPU.
        settings: of the descent; `COARSE` or `FINE`.
        num_steps: gradient steps.
        expansion: weight of a constant push along the vertex normals.
        on_step: told the share of steps done; an exception raised in it ends the work.

    Returns:
        The refined vertices and faces.
    """
    descent = MeshDescent(vertices, faces, settings)
    objective = _Objective(target, expansion)
    with _single_threaded_torch(target.alpha.device):
        for step in range(num_steps):
            descent.step(objective.gradient(descent.vertices, descent.faces))
            if (step + 1) % _STEPS_PER_REMESH == 0:
                descent.remesh()
            if on_step is not None:
                on_step((step + 1) / num_steps)
    return descent.vertices, descent.faces


def render_geometry(
    rasterizer: Rasterizer, vertices: Tensor, faces: Tensor, normals: Tensor, target: Target
) -> Tensor:
    """World normals times coverage, and coverage, from the target's cameras: [V, S, S, 4]."""
    clip = target.cameras.clip(vertices)
    fragments = rasterizer.rasterize(clip, faces, (target.size, target.size))
    attributes = torch.cat([normals, torch.ones_like(normals[:, :1])], 1)
    return rasterizer.antialias(rasterizer.interpolate(attributes, fragments), fragments)


class _Objective:
    """The loss of a mesh against a target, and its gradient.

    L = mean over rendered pixels of |(n - n*) / 2|^2 + (a - a*)^2
      + mean over background of (a - a*)^2 + mean over the object of (a - a*)^2
    with n, a the rendered normal and coverage and n*, a* the target's; the means of the last two
    are apart, so that a small object in a large frame is not drowned.
    """

    def __init__(self, target: Target, expansion: float) -> None:
        self._target = target
        self._expansion = expansion
        self._rasterizer = rasterizer_for(target.alpha.device)
        self._wanted = torch.cat([target.normals, target.alpha], -1)
        inside = target.alpha > 0.5
        background, foreground = (~inside).sum() + 1.0, inside.sum() + 1.0
        self._coverage_weight = torch.where(inside, 1 / foreground, 1 / background)
        self._channel_weight = torch.tensor([0.25, 0.25, 0.25, 1.0], device=target.alpha.device)

    def gradient(self, vertices: Float32, faces: Int32) -> Float32:
        """The loss's gradient with respect to the vertices, [N, 3]."""
        device = self._wanted.device
        positions = torch.from_numpy(vertices).to(device).requires_grad_()
        triangles = torch.from_numpy(faces).to(device)
        normals = vertex_normals(positions, triangles)
        image = render_geometry(self._rasterizer, positions, triangles, normals, self._target)
        # The loss is a weighted square, so its image gradient is written down instead of traced.
        descent = torch.autograd.grad(image, positions, self._image_gradient(image.detach()))[0]
        # The push is the gradient of |v + n - v'|^2 / 6 N at v' = v, with the left side held.
        push = normals.detach() * (self._expansion / (3 * len(vertices)))
        gradient: Float32 = (descent - push).cpu().numpy()
        return np.ascontiguousarray(gradient)

    def _image_gradient(self, image: Tensor) -> Tensor:
        error = image - self._wanted
        drawn = image[..., 3:] > 0.5
        weight = drawn * (self._channel_weight / (4 * drawn.sum() + 1.0))
        weight[..., 3:] += self._coverage_weight
        return 2 * weight * error


@contextmanager
def _single_threaded_torch(device: torch.device) -> Iterator[None]:
    """Keep torch's own threads out of the way of the rasterizer's on the CPU.

    On images this small OpenMP gains nothing, and it stalls whenever another process takes a core.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
