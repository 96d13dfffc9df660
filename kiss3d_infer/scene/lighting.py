"""What light does to the colour of a surface. Light and colours are linear here."""

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kiss3d_infer.scene.camera import all_around
from kiss3d_infer.scene.gloss import Gloss

BRIGHTEST = 0.93
"""The most light that a surface sends: a white object never dissolves in the white background."""
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Shown:
    """P points of a surface, each as one of V cameras sees it."""

    albedo: Tensor  # [P, 3] linear
    normals: Tensor  # [P, 3] unit, in the world, toward the viewer
    view: Tensor  # [P] int64: which camera
    rotations: Tensor  # [V, 3, 3] camera to world
    gloss: Gloss | None = None  # None = matt all over


class Light(Protocol):
    """What shines on a surface."""

    @property
    def sees_gloss(self) -> bool:
        """Whether it shows that a surface is metallic or glossy."""
        ...

    def shade(self, shown: Shown) -> Tensor:
        """Linear light [P, 3] that reaches the viewer; 1 is the white background's."""
        ...


@dataclass(frozen=True)
class Lighting:
    """An ambient light and two directional ones that stand still relative to each camera.

    Every view is lit alike, so no side of an object is darker for where it faces. Light is linear;
    directions point to the light in camera axes (x right, y up, z toward the viewer). A surface
    that faces the viewer receives 0.81, and none more than 0.93: a white object never dissolves in
    the white background. Every surface is taken for matt.
    """

    ambient: float = 0.46
    key: float = 0.415
    key_direction: Triple = (-0.5, 0.7, 0.6)
    fill: float = 0.165
    fill_direction: Triple = (0.7, 0.1, 0.7)
    sees_gloss: ClassVar[bool] = False

    def shade(self, shown: Shown) -> Tensor:
        """See `Light.shade`."""
        received = torch.full_like(shown.normals[:, :1], self.ambient)
        for strength, direction in (
            (self.key, self.key_direction),
            (self.fill, self.fill_direction),
        ):
            if strength:
                toward = normalize(torch.tensor(direction), dim=0).to(shown.rotations)
                received = received + strength * _cosine(shown, shown.rotations @ toward)
        return shown.albedo * received


STUDIO = Lighting()
ALBEDO = Lighting(ambient=1.0, key=0.0, fill=0.0)
"""No shading: every surface shows its own colour."""


@dataclass(frozen=True)
class WorldLights:
    """An ambient light and directional ones that stand still in the world.

    Attributes:
        ambient: RGB.
        lights: RGB at normal incidence, and the unit direction to the light in the world.
    """

    ambient: Triple
    lights: tuple[tuple[Triple, Triple], ...]
    sees_gloss: ClassVar[bool] = True

    def shade(self, shown: Shown) -> Tensor:
        """See `Light.shade`."""
        reflected = None if shown.gloss is None else self._reflected(shown, shown.gloss)
        return matt_and_glossy(shown, self.received(shown.normals), reflected)

    def received(self, normals: Tensor) -> Tensor:
        """Light on a matt white surface with normals [P, 3]: [P, 3]."""
        light = normals.new_tensor(self.ambient).expand_as(normals)
        for lamp in self.lights:
            light = light + _from_lamp(lamp, normals)
        return light

    def _reflected(self, shown: Shown, gloss: Gloss) -> Tensor:
        ambient = shown.normals.new_tensor(self.ambient)
        reflected = ambient * gloss.reflected_from_around(shown.albedo, shown.normals)
        for lamp in self.lights:
            toward = shown.normals.new_tensor(lamp[1])
            lobe = gloss.highlight(shown.albedo, shown.normals, toward)
            reflected = reflected + lobe * _from_lamp(lamp, shown.normals)
        return reflected


def random_lights(seed: int, key: str) -> WorldLights:
    """Three-point lighting drawn for an object: a pure function of the arguments.

    The key light stands before the object, up and to one side, the fill light on the other, the rim
    light behind; each is a little warm or cold. The brightest side of a white object sends
    `BRIGHTEST`, the darkest at least a quarter of it.
    """
    random = generator(seed, key)
    side = random.choice((-1.0, 1.0))
    lights = [
        _drawn(random, 1.0, side * random.uniform(15, 75), random.uniform(15, 65)),
        _drawn(random, random.uniform(0.2, 0.6), -side * random.uniform(30, 100), 10.0),
        _drawn(random, random.uniform(0.2, 0.8), 180 + random.uniform(-50, 50), 30.0),
    ]
    unscaled = WorldLights(_tint(random, random.uniform(0.7, 1.4)), tuple(lights))
    received = unscaled.received(directions_all_around(2000))
    exposure = BRIGHTEST / float(received.max())
    return WorldLights(
        _scaled(unscaled.ambient, exposure),
        tuple((_scaled(color, exposure), toward) for color, toward in unscaled.lights),
    )


def generator(seed: int, key: str) -> np.random.Generator:
    """Random numbers of an object that depend on nothing else."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}/{key}".encode()).digest()))


def directions_all_around(count: int) -> Tensor:
    """Unit vectors [count, 3], even over the sphere."""
    azimuths, elevations = (torch.deg2rad(torch.tensor(a)) for a in all_around(count))
    horizontal = elevations.cos()
    parts = [horizontal * azimuths.sin(), elevations.sin(), horizontal * azimuths.cos()]
    return torch.stack(parts, dim=1)


def matt_and_glossy(shown: Shown, received: Tensor, reflected: Tensor | None) -> Tensor:
    """What a surface sends of the light [P, 3] that it receives and of what it reflects.

    Metal has no colour but that of what it reflects. Cut off at `BRIGHTEST`.
    """
    if shown.gloss is None or reflected is None:
        return shown.albedo * received
    matt = shown.albedo * (1 - shown.gloss.metallic) * received
    return (matt + reflected).clamp(max=BRIGHTEST)


def _from_lamp(lamp: tuple[Triple, Triple], normals: Tensor) -> Tensor:
    color, direction = (normals.new_tensor(values) for values in lamp)
    return (normals * direction).sum(1, keepdim=True).clamp(min=0) * color


def _drawn(
    random: np.random.Generator, strength: float, azimuth: float, elevation: float
) -> tuple[Triple, Triple]:
    a, e = math.radians(azimuth), math.radians(elevation)
    direction = (math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a))
    return _tint(random, strength), direction


def _tint(random: np.random.Generator, strength: float) -> Triple:
    """Light that is a little warm or cold."""
    warmth = random.uniform(-0.1, 0.1)
    return strength * (1 + warmth), strength, strength * (1 - warmth)


def _scaled(color: Triple, factor: float) -> Triple:
    red, green, blue = (float(value * factor) for value in color)
    return red, green, blue


def _cosine(shown: Shown, directions: Tensor) -> Tensor:
    """Of the angle between each normal and its view's direction [V, 3], at least 0: [P, 1]."""
    if len(directions) == 1:  # far faster than the sum of products on the CPU
        return (shown.normals @ directions[0]).unsqueeze(1).clamp(min=0)
    product = shown.normals * directions[shown.view]
    return product.sum(1, keepdim=True).clamp(min=0)
