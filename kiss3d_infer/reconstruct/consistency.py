"""Views that disagree: how far each is off the common surface, and how much to believe it.

A generated bundle's views show slightly different objects. The surface fitted to all of them is
their compromise; a view that is merely shifted against it can be moved back, and one that still
disagrees counts for less.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.reconstruct.target import Target, translated

_MAX_SHIFT = 0.04
"""Of a view's width: what lies farther off is no shift but another object."""
_ITERATIONS = 3
_SIZE = 128
"""Of the images that are registered: a tenth of a pixel there is as much as is worth moving."""
_RIDGE = 1e-3
"""Keeps the system solvable for a view without edges."""
_TYPICAL_ERROR, _LEAST_ERROR, _POWER, _LEAST_CONFIDENCE = 1.5, 0.02, 2.0, 0.25


class Registration:
    """How far each view lies off a surface that is still changing.

    Lucas and Kanade's registration (IJCAI 1981) of normals and coverage by one translation a view,
    less what all views have in common: that would only carry the object away.

    Args:
        target: the views where they were given.

    Attributes:
        shifts: [V, 2] found so far, as `Target.shifted` takes them; 0 at first.
    """

    def __init__(self, target: Target) -> None:
        self.shifts = torch.zeros(len(target.cameras), 2, device=target.alpha.device)
        self._given = _blurred(_small(target.geometry))
        self._rotations = target.cameras.rotations.to(self.shifts)

    def update(self, drawn: Tensor) -> None:
        """Improve the shifts.

        Args:
            drawn: [V, S, S, 4] normals times coverage, and coverage, of the surface, antialiased.
        """
        drawn, shifts = _blurred(_small(drawn)), self.shifts
        for _ in range(_ITERATIONS):
            shifts = shifts + _step(translated(self._given, shifts), drawn) / drawn.shape[1]
        shifts = _without_translation(shifts, self._rotations)
        self.shifts = shifts.clamp(-_MAX_SHIFT, _MAX_SHIFT)


def confidences(target: Target, drawn: Tensor) -> Tensor:
    """How much each view counts [V], at most 1, from how badly it agrees with the surface as drawn.

    Views up to one and a half times the median error count fully, worse ones by the squared ratio:
    one view that shows another object is outvoted, while views that are equally rough stay equal.

    Args:
        target: the views.
        drawn: [V, S, S, 4] normals times coverage, and coverage, of the surface.
    """
    squared = (target.normals - drawn[..., :3]).square().sum(-1) / 4
    squared = squared + (target.alpha - drawn[..., 3:]).square()[..., 0]
    errors = (squared.sum((1, 2)) / target.alpha.sum((1, 2, 3))).sqrt().cpu()
    errors = errors.clamp(min=_LEAST_ERROR)
    typical = errors.median() * _TYPICAL_ERROR
    return (typical / errors).clamp(max=1).pow(_POWER).clamp(min=_LEAST_CONFIDENCE)


def _without_translation(shifts: Tensor, rotations: Tensor) -> Tensor:
    """Shifts [V, 2] (right, down) less the part that a translation of the object explains."""
    axes = torch.stack([rotations[:, :, 0], -rotations[:, :, 1]], 1).flatten(0, 1)  # [2 V, 3]
    explained: Tensor = axes @ (torch.linalg.pinv(axes) @ shifts.reshape(-1, 1))
    return shifts - explained.reshape_as(shifts)


def _small(image: Tensor) -> Tensor:
    size = min(image.shape[1], _SIZE)
    by_channel = image.permute(0, 3, 1, 2)
    return functional.interpolate(by_channel, size=(size, size), mode="area").permute(0, 2, 3, 1)


def _step(moved: Tensor, drawn: Tensor) -> Tensor:
    """One Gauss-Newton step [V, 2] (right, down) that brings `moved` nearer to `drawn`."""
    right = (moved.roll(-1, 2) - moved.roll(1, 2)) / 2
    down = (moved.roll(-1, 1) - moved.roll(1, 1)) / 2
    slopes = torch.stack([right, down], -1).flatten(1, 3)  # [V, P, 2]
    missing = (moved - drawn).flatten(1)[..., None]  # moving right by d changes I by -d dI/dx
    system = slopes.transpose(1, 2) @ slopes
    system = system + _RIDGE * torch.eye(2, device=system.device)
    step: Tensor = torch.linalg.solve(system, slopes.transpose(1, 2) @ missing)[..., 0]
    return step


def _blurred(image: Tensor) -> Tensor:
    by_channel = image.permute(0, 3, 1, 2)
    return functional.avg_pool2d(
        by_channel, 5, stride=1, padding=2, count_include_pad=False
    ).permute(0, 2, 3, 1)
