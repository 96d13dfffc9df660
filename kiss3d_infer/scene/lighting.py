"""What light does to the colour of a surface. Light and colours are linear here."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Shown:
    """P points of a surface, each as one of V cameras sees it."""

    albedo: Tensor  # [P, 3] linear
    normals: Tensor  # [P, 3] unit, in the world, toward the viewer
    view: Tensor  # [P] int64: which camera
    rotations: Tensor  # [V, 3, 3] camera to world

    def of_view(self, values: Tensor) -> Tensor:
        """For each point its view's row of [V, ...]; one row for all if there is one view."""
        return values if len(values) == 1 else values[self.view]


class Light(Protocol):
    """What shines on a surface."""

    def shade(self, shown: Shown) -> Tensor:
        """Linear light [P, 3] that reaches the viewer; 1 is the white background's."""
        ...


@dataclass(frozen=True)
class Lighting:
    """An ambient light and two directional ones that stand still relative to each camera.

    Every view is lit alike, so no side of an object is darker for where it faces. Light is linear;
    directions point to the light in camera axes (x right, y up, z toward the viewer). A surface
    that faces the viewer receives 0.81, and none more than 0.93: a white object never dissolves in
    the white background.
    """

    ambient: float = 0.46
    key: float = 0.415
    key_direction: tuple[float, float, float] = (-0.5, 0.7, 0.6)
    fill: float = 0.165
    fill_direction: tuple[float, float, float] = (0.7, 0.1, 0.7)

    def shade(self, shown: Shown) -> Tensor:
        """See `Light.shade`."""
        received = torch.full_like(shown.normals[:, :1], self.ambient)
        for strength, direction in (
            (self.key, self.key_direction),
            (self.fill, self.fill_direction),
        ):
            if strength:
                toward = normalize(torch.tensor(direction), dim=0).to(shown.rotations)
                received = received + strength * cosine(shown, shown.rotations @ toward)
        return shown.albedo * received


STUDIO = Lighting()
ALBEDO = Lighting(ambient=1.0, key=0.0, fill=0.0)
"""No shading: every surface shows its own colour."""


def cosine(shown: Shown, directions: Tensor) -> Tensor:
    """Of the angle between each normal and its view's direction [V, 3], at least 0: [P, 1]."""
    product = shown.normals * shown.of_view(directions)
    return product.sum(1, keepdim=True).clamp(min=0)
