"""Light from all around, given by an equirectangular picture."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.lighting import BRIGHTEST, Shown, directions_all_around, matt_and_glossy
from kiss3d_infer.scene.radiance import read_radiance
from kiss3d_infer.scene.surface import Textures

SUFFIXES = (".hdr", ".png", ".jpg", ".jpeg")
_LOBES = (math.pi, 2 * math.pi / 3, math.pi / 4)
"""The clamped cosine in spherical harmonics of degree 0, 1, 2 (Ramamoorthi and Hanrahan 2001)."""
_DEGREES = (0, 1, 1, 1, 2, 2, 2, 2, 2)
_HEIGHT = 32
_ROUGHNESSES = (0.1, 0.3, 0.5, 0.7, 1.0)
_DARKEST = 0.25
"""The least light that a matt white surface receives, as a share of the most."""


@dataclass(frozen=True)
class Environment:
    """A picture of what is all around, made ready for lighting.

    The picture's middle column shows what lies in front of the object (+Z), its right half what
    lies to the left of one who looks back from there (-X), row 0 the sky (+Y). It is exposed such
    that the brightest side of a matt white object sends `BRIGHTEST`; if the darkest would send less
    than a quarter of that, a grey light from everywhere is added.

    Attributes:
        harmonics: [9, 3] of the light, in the order of `spherical_harmonics`.
        reflections: the picture as ever rougher surfaces reflect it, [32, 64, 3] each.
        azimuth: degrees by which it is turned about +Y.
    """

    harmonics: Tensor
    reflections: Textures
    azimuth: float = 0.0
    sees_gloss: ClassVar[bool] = True

    @classmethod
    def of(cls, picture: Tensor) -> "Environment":
        """Prepare a picture [H, W, 3] of linear light."""
        small = _reduced(picture.float())
        harmonics = project(small)
        white = irradiance(harmonics, directions_all_around(2000)) / math.pi
        most, least = float(white.max()), float(white.mean(1).min())
        if not most > 0:
            raise InputError("the environment is black", fix="give a picture with light in it")
        grey = max(0.0, (_DARKEST * most - least) / (1 - _DARKEST))
        exposure = BRIGHTEST / (most + grey)
        levels = [(level + grey) * exposure for level in _prefiltered(small)]
        return cls(project((small + grey) * exposure), Textures.of(levels))

    def turned(self, azimuth: float) -> "Environment":
        """The same, turned about +Y by degrees."""
        return Environment(self.harmonics, self.reflections, self.azimuth + azimuth)

    def shade(self, shown: Shown) -> Tensor:
        """See `Light.shade`."""
        normals = self._unturned(shown.normals)
        received = irradiance(self.harmonics.to(normals), normals).clamp(min=0) / math.pi
        reflected = None
        if shown.gloss is not None:
            mirrored = self._unturned(shown.gloss.mirrored(shown.normals))
            light = self._reflection(mirrored, shown.gloss.roughness[:, 0])
            reflected = light * shown.gloss.reflected_from_around(shown.albedo, shown.normals)
        return matt_and_glossy(shown, received, reflected)

    def _unturned(self, directions: Tensor) -> Tensor:
        angle = math.radians(self.azimuth)
        x, y, z = directions.unbind(1)
        sin, cos = math.sin(angle), math.cos(angle)
        return torch.stack([x * cos - z * sin, y, x * sin + z * cos], dim=1)

    def _reflection(self, directions: Tensor, roughness: Tensor) -> Tensor:
        steps = directions.new_tensor(_ROUGHNESSES)
        upper = torch.bucketize(roughness.contiguous(), steps).clamp(1, len(steps) - 1)
        low, high = steps[upper - 1], steps[upper]
        share = ((roughness - low) / (high - low)).clamp(0, 1).unsqueeze(1)
        x, y, z = directions.unbind(1)
        u = 0.5 - torch.atan2(x, z) / (2 * math.pi)
        v = 0.5 + y.clamp(-1, 1).asin() / math.pi
        edge = 0.5 / _HEIGHT  # else the lookup would wrap from pole to pole
        uv = torch.stack([u, v.clamp(edge, 1 - edge)], dim=1)
        packed = self.reflections.to(directions.device)
        return torch.lerp(packed.sample(upper - 1, uv), packed.sample(upper, uv), share)


def read_environment(path: Path) -> Environment:
    """Read a map: Radiance .hdr, or .png or .jpg taken for sRGB.

    Raises:
        InputError: no such file, unreadable, black, or not twice as wide as it is high.
    """
    if path.suffix.lower() == ".hdr":
        picture = torch.from_numpy(read_radiance(path))
    else:
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"), np.float32) / 255
        except OSError as error:
            raise InputError(f"the environment cannot be read: {error}", where=path) from error
        picture = to_linear(torch.from_numpy(pixels))
    height, width, _ = picture.shape
    if width != 2 * height:
        raise InputError(
            f"a {width}x{height} picture is no equirectangular map",
            where=path,
            fix="give one that is twice as wide as it is high",
        )
    return Environment.of(picture)


def pixel_directions(height: int) -> tuple[Tensor, Tensor]:
    """Unit vectors [h, 2h, 3] to the pixels of a map, and the solid angle of each [h, 2h, 1]."""
    latitude = (0.5 - (torch.arange(height) + 0.5) / height) * math.pi
    angle = ((torch.arange(2 * height) + 0.5) / (2 * height) - 0.5) * 2 * math.pi
    latitude, angle = torch.meshgrid(latitude, angle, indexing="ij")
    horizontal = latitude.cos()
    parts = [-horizontal * angle.sin(), latitude.sin(), horizontal * angle.cos()]
    bounds = (0.5 - torch.arange(height + 1) / height) * math.pi
    area = (bounds[:-1].sin() - bounds[1:].sin()) * math.pi / height
    return torch.stack(parts, dim=-1), area[:, None, None].expand(-1, 2 * height, 1)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """The nine real spherical harmonics up to degree 2 at unit vectors [..., 3]: [..., 9]."""
    x, y, z = directions.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.282095),
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ],
        dim=-1,
    )


def project(picture: Tensor) -> Tensor:
    """Coefficients [9, 3] of a map [h, 2h, 3] of light."""
    directions, area = pixel_directions(len(picture))
    return torch.einsum("hwk,hwc->kc", spherical_harmonics(directions) * area, picture)


def irradiance(harmonics: Tensor, normals: Tensor) -> Tensor:
    """Irradiance [P, 3] at unit normals [P, 3], from the light's coefficients [9, 3]."""
    lobes = harmonics.new_tensor([_LOBES[degree] for degree in _DEGREES])
    return spherical_harmonics(normals) @ (harmonics * lobes[:, None])


def _reduced(picture: Tensor) -> Tensor:
    """Averages over areas, which keep a sun's power: [32, 64, 3]."""
    planes = picture.permute(2, 0, 1)[None]
    return interpolate(planes, size=(_HEIGHT, 2 * _HEIGHT), mode="area")[0].permute(1, 2, 0)


def _prefiltered(small: Tensor) -> list[Tensor]:
    """What surfaces of each roughness reflect when seen along their normal (Karis 2013)."""
    directions, area = (values.flatten(0, 1) for values in pixel_directions(len(small)))
    cosine = directions @ directions.T  # between the mirror direction and the light
    light = small.flatten(0, 1)
    levels = []
    for roughness in _ROUGHNESSES:
        squared = roughness**4
        n_h = ((1 + cosine) / 2).clamp(min=0)  # squared
        weights = cosine.clamp(min=0) / (n_h * (squared - 1) + 1).square() * area.T
        levels.append((weights @ light / weights.sum(1, keepdim=True)).reshape(small.shape))
    return levels
