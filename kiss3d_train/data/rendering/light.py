"""The light that an object stands in, drawn by its key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_train.data.rendering.settings import STUDIO_LIGHT, LightSettings

if TYPE_CHECKING:
    from kiss3d_infer.scene.environment import Environment
    from kiss3d_infer.scene.lighting import Light


@dataclass(frozen=True)
class Map:
    """An environment map: where it lies, and its checksum, by which maps are told apart."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Lights:
    """The lights of a job.

    Attributes:
        settings: as given.
        maps: the environment maps, ordered by name.
    """

    settings: LightSettings = STUDIO_LIGHT
    maps: tuple[Map, ...] = ()

    @classmethod
    def of(cls, settings: LightSettings) -> Lights:
        """Look for the environment maps.

        Raises:
            InputError: there are none. One that cannot be read is noticed when it is needed.
        """
        if settings.environments is None:
            return cls(settings)
        from kiss3d_infer.scene.environment import SUFFIXES

        folder = settings.environments.expanduser().resolve()
        found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(
                "no environment maps in the folder",
                where=folder,
                fix=f"put equirectangular {', '.join(SUFFIXES)} pictures there",
            )
        return cls(settings, tuple(Map(path, sha256_of(path)) for path in found))

    def described(self, key: str) -> dict[str, Any]:
        """All that an object's light depends on."""
        kind, seed = self.settings.kind, self.settings.seed
        if kind in ("studio", "albedo"):
            return {"kind": kind}
        if kind == "random":
            return {"kind": kind, "seed": seed}
        chosen, azimuth = self._drawn(key)
        drawn = {"environment": chosen.path.name, "azimuth": azimuth}
        return {"kind": kind, "sha256": chosen.sha256, **drawn}

    def light(self, key: str) -> Light:
        """An object's light.

        Raises:
            InputError: the environment map cannot be read.
        """
        from kiss3d_infer.scene.lighting import ALBEDO, STUDIO, random_lights

        match self.settings.kind:
            case "studio":
                return STUDIO
            case "albedo":
                return ALBEDO
            case "random":
                return random_lights(self.settings.seed, key)
            case "environment":
                chosen, azimuth = self._drawn(key)
                return _environment(chosen.path).turned(azimuth)

    def _drawn(self, key: str) -> tuple[Map, float]:
        from kiss3d_infer.scene.lighting import generator

        random = generator(self.settings.seed, key)
        azimuth = round(float(random.uniform(0, 360)), 3)
        return self.maps[int(random.integers(len(self.maps)))], azimuth


STUDIO_LIGHTS = Lights()


@lru_cache(maxsize=64)
def _environment(path: Path) -> Environment:
    from kiss3d_infer.scene.environment import read_environment

    return read_environment(path)
