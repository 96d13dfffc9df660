"""Fit a mesh to the views: render normals and coverage, compare, descend, remesh.

The losses are ISOMER's (Unique3D, arXiv 2405.20343, section 3.3) with silhouettes that pull from
both sides: missing coverage draws the surface outward as much as excess coverage pushes it in.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.reconstruct.consistency import Registration, confidences
from kiss3d_infer.reconstruct.optimizer import DescentSettings, MeshDescent
from kiss3d_infer.reconstruct.projection import Projector
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32
from kiss3d_infer.scene.raster import Rasterizer, rasterizer_for, vertex_normals

COARSE = DescentSettings(edge_lengths=(0.1, 0.02), decay=0.995)
FINE = DescentSettings(edge_lengths=(0.02, 0.015), decay=0.97, ramp=5.0, length_gain=0.2)

_EXPLICIT_CONFIDENCE = 0.1
"""View weight from which on a vertex takes the projected normal instead of its own (ISOMER's)."""
_FIRST_EXPLICIT_STEPS = 5
_NORMAL_WEIGHT = 0.25
"""Normals are compared as (n + 1) / 2, as they are stored."""


@dataclass(frozen=True)
class LossSettings:
    """What a mesh is pulled by."""

    expansion: float = 0.0
    """Weight of a constant push along the normals; it opens folds while the shape is rough."""
    is_two_sided: bool = True
    """Whether missing coverage counts, besides coverage that is too much (ISOMER: it does not)."""
    explicit_every: int = 0
    """Steps after which the views' normals are blended on the surface anew and drawn as the target,
    so that views that disagree do not pull in turns; 0 compares with the views themselves."""
    realign_every: int = 0
    """Steps after which the views are moved to where the surface is; 0 never moves them."""


COARSE_LOSS = LossSettings(expansion=0.02, realign_every=10)
FINE_LOSS = LossSettings()


@dataclass(frozen=True)
class Refined:
    """A refined mesh.

    Attributes:
        vertices: [N, 3] world units.
        faces: [F, 3] closed and outward.
        confidence: [V] how much each view should count from now on, see `consistency`; as before
            if the views were not realigned.
        shifts: [V, 2] by which the views had to be moved, as `Target.shifted` takes them.
        losses: one per step if they were asked for.
    """

    vertices: Float32
    faces: Int32
    shifts: Tensor
    confidence: Tensor
    losses: tuple[float, ...] = ()


def refine(
    vertices: Float32,
    faces: Int32,
    target: Target,
    descent_settings: DescentSettings,
    num_steps: int,
    loss: LossSettings = FINE_LOSS,
    *,
    on_step: Callable[[float], None] | None = None,
    records_losses: bool = False,
) -> Refined:
    """Move, split and merge a mesh's vertices until it looks like the target.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3] closed and outward.
        target: views on the device that shall rasterize; remeshing happens on the CPU.
        descent_settings: `COARSE` or `FINE`.
        num_steps: gradient steps.
        loss: what pulls.
        on_step: told the share of steps done; an exception raised in it ends the work.
        records_losses: whether to compute the loss at every step, for a plot.
    """
    descent = MeshDescent(vertices, faces, descent_settings)
    objective = _Objective(target, loss)
    losses: list[float] = []
    with _single_threaded_torch(target.alpha.device):
        for step in range(num_steps):
            objective.prepare(step, descent.vertices, descent.faces)
            descent.step(objective.gradient(descent.vertices, descent.faces))
            if records_losses:
                losses.append(objective.last_loss)
            if (step + 1) % descent_settings.steps_per_remesh == 0:
                descent.remesh()
            if on_step is not None:
                on_step((step + 1) / num_steps)
        confidence = objective.confidence(descent.vertices, descent.faces)
    return Refined(descent.vertices, descent.faces, objective.shifts, confidence, tuple(losses))


def render_geometry(
    rasterizer: Rasterizer, vertices: Tensor, faces: Tensor, normals: Tensor, target: Target
) -> Tensor:
    """World normals times coverage, and coverage, from the target's cameras: [V, S, S, 4]."""
    clip = target.cameras.clip(vertices)
    fragments = rasterizer.rasterize(clip, faces, (target.size, target.size))
    attributes = torch.cat([normals, torch.ones_like(normals[:, :1])], 1)
    return rasterizer.antialias(rasterizer.interpolate(attributes, fragments), fragments)


@torch.no_grad()
def render_shape(vertices: Float32, faces: Int32, target: Target) -> Tensor:
    """A mesh with its own smooth normals, as `render_geometry` draws it, without gradient."""
    positions, triangles = _tensors(vertices, faces, target.alpha.device)
    normals = vertex_normals(positions, triangles)
    return render_geometry(rasterizer_for(positions.device), positions, triangles, normals, target)


class _Objective:
    """The loss of a mesh against a target, and its gradient.

    L = mean over rendered pixels of |(n - n*) / 2|^2 + (a - a*)^2
      + mean over background of (a - a*)^2 + mean over the object of (a - a*)^2
    with n, a the rendered normal and coverage and n*, a* the target's; the means of the last two
    are apart, so that a small object in a large frame is not drowned. Each view counts by its
    confidence.
    """

    def __init__(self, target: Target, loss: LossSettings) -> None:
        self._loss = loss
        self._rasterizer = rasterizer_for(target.alpha.device)
        self._confidence = target.confidence.to(target.alpha)[:, None, None, None]
        self._given = target
        self._registration = Registration(target)
        self._aim_at(target)
        self._last: tuple[Tensor, Tensor] | None = None  # image and its gradient
        self._faces: tuple[Int32, Tensor] | None = None

    @property
    def last_loss(self) -> float:
        """The loss of the last gradient."""
        if self._last is None:
            return 0.0
        image, gradient = self._last
        return float((gradient * (image - self._wanted)).sum()) / 2

    @property
    def shifts(self) -> Tensor:
        """[V, 2] by which the views are moved, as `Target.shifted` takes them."""
        return self._registration.shifts

    def _aim_at(self, target: Target) -> None:
        self._target = target
        self._wanted = target.geometry
        inside = target.alpha > 0.5
        per_background = 1 / ((~inside).sum() + 1.0)
        per_foreground = self._loss.is_two_sided / (inside.sum() + 1.0)
        self._coverage_weight = torch.where(inside, per_foreground, per_background)

    def prepare(self, step: int, vertices: Float32, faces: Int32) -> None:
        """Move the views or blend their normals on the surface, where the step is due for it."""
        if _is_due(step, self._loss.realign_every):
            self._registration.update(render_shape(vertices, faces, self._target))
            moved = self._given.shifted(self.shifts)
            if moved is not self._target:
                self._aim_at(moved)
        every = self._loss.explicit_every
        if every and (step < _FIRST_EXPLICIT_STEPS or step % every == 0):
            self._wanted = torch.cat(
                [self._explicit_normals(vertices, faces), self._target.alpha], -1
            )

    def confidence(self, vertices: Float32, faces: Int32) -> Tensor:
        """How much each view should count, [V] on the CPU."""
        if not self._loss.realign_every:
            return self._given.confidence
        return confidences(self._target, render_shape(vertices, faces, self._target))

    @torch.no_grad()
    def _explicit_normals(self, vertices: Float32, faces: Int32) -> Tensor:
        """The views' normals, blended at each vertex and drawn: ISOMER's explicit target."""
        positions, triangles = _tensors(vertices, faces, self._wanted.device)
        own = vertex_normals(positions, triangles)
        views = functional.normalize(self._target.normals, dim=-1)
        projector = Projector(self._target, positions, triangles, views, power=1)
        blended, weight = projector.values_at(positions, own)
        trust = (weight / _EXPLICIT_CONFIDENCE).clamp(max=1)
        normals = functional.normalize(torch.lerp(own, blended, trust), dim=1)
        image = render_geometry(self._rasterizer, positions, triangles, normals, self._target)
        return image[..., :3]

    def gradient(self, vertices: Float32, faces: Int32) -> Float32:
        """The loss's gradient with respect to the vertices, [N, 3]."""
        positions = torch.from_numpy(vertices).to(self._wanted.device).requires_grad_()
        triangles = self._triangles(faces)
        normals = vertex_normals(positions, triangles)
        image = render_geometry(self._rasterizer, positions, triangles, normals, self._target)
        # The loss is a weighted square, so its image gradient is written down instead of traced.
        descent = torch.autograd.grad(image, positions, self._image_gradient(image.detach()))[0]
        # The push is the gradient of |v + n - v'|^2 / 6 N at v' = v, with the left side held.
        push = normals.detach() * (self._loss.expansion / (3 * len(vertices)))
        gradient: Float32 = (descent - push).cpu().numpy()
        return np.ascontiguousarray(gradient)

    def _triangles(self, faces: Int32) -> Tensor:
        """The faces on the device: one tensor as long as they do not change."""
        if self._faces is None or self._faces[0] is not faces:
            self._faces = faces, torch.from_numpy(faces).to(self._wanted.device)
        return self._faces[1]

    def _image_gradient(self, image: Tensor) -> Tensor:
        # In place and by channel: on the CPU whole-image temporaries took longer than drawing.
        gradient = image - self._wanted
        drawn = image[..., 3:] > 0.5
        weight = drawn * (2 * self._confidence / (4 * drawn.sum() + 1.0))
        gradient[..., :3] *= weight * _NORMAL_WEIGHT
        gradient[..., 3:] *= weight + 2 * self._confidence * self._coverage_weight
        self._last = image, gradient
        return gradient


def _tensors(vertices: Float32, faces: Int32, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


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
