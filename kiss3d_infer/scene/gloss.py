"""What a glossy or metallic surface reflects, as glTF 2.0 describes it (appendix B)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

_DIELECTRIC = 0.04
_LEAST_ROUGHNESS = 0.15
"""Lamps have a size: a smoother surface would show each as a point."""


@dataclass(frozen=True)
class Gloss:
    """P points of a surface that is not matt, as the camera sees them."""

    metallic: Tensor  # [P, 1] in [0, 1]
    roughness: Tensor  # [P, 1] in [0, 1]
    to_viewer: Tensor  # [P, 3] unit, in the world

    def highlight(self, albedo: Tensor, normals: Tensor, to_light: Tensor) -> Tensor:
        """pi times the specular BRDF (GGX, Smith, Schlick) for one direction to a light.

        Args:
            albedo: [P, 3].
            normals: [P, 3] unit.
            to_light: [3] unit.

        Returns:
            [P, 3], to be multiplied with the light at normal incidence and the cosine.
        """
        squared = self.roughness.clamp(min=_LEAST_ROUGHNESS) ** 4
        half = normalize(self.to_viewer + to_light, dim=1)
        n_h, n_v, n_l, v_h = (
            (a * b).sum(1, keepdim=True).clamp(1e-4, 1)
            for a, b in (
                (normals, half),
                (normals, self.to_viewer),
                (normals, to_light),
                (self.to_viewer, half),
            )
        )
        distribution = squared / (math.pi * (n_h.square() * (squared - 1) + 1).square())
        light, view = (c + (squared + (1 - squared) * c.square()).sqrt() for c in (n_l, n_v))
        base = self._reflectance(albedo)
        fresnel = base + (1 - base) * (1 - v_h) ** 5
        return math.pi * distribution * fresnel / (light * view)

    def reflected_from_around(self, albedo: Tensor, normals: Tensor) -> Tensor:
        """The share [P, 3] that is reflected of light alike all around the mirror direction.

        Karis 2014, "Physically Based Shading on Mobile": a fit to the split-sum integral.
        """
        facing = (normals * self.to_viewer).sum(1, keepdim=True).clamp(min=0)
        x, y, z, w = (
            self.roughness * slope + start
            for slope, start in ((-1, 1), (-0.0275, 0.0425), (-0.572, 1.04), (0.022, -0.04))
        )
        edge = torch.minimum(x.square(), torch.exp2(-9.28 * facing)) * x + y
        return self._reflectance(albedo) * (-1.04 * edge + z) + (1.04 * edge + w)

    def mirrored(self, normals: Tensor) -> Tensor:
        """The unit directions [P, 3] that a mirror there would show."""
        along = (normals * self.to_viewer).sum(1, keepdim=True)
        return 2 * along * normals - self.to_viewer

    def _reflectance(self, albedo: Tensor) -> Tensor:
        """The share of light reflected at normal incidence: [P, 3]."""
        return torch.lerp(torch.full_like(albedo, _DIELECTRIC), albedo, self.metallic)
