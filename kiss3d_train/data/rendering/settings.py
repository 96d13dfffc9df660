"""What a render job can be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kiss3d_infer.bundle.layout import MAX_VIEWS, PUBLISHED, BundleLayout
from kiss3d_infer.config import Config, Integer, Number, load_config

ExtraName = Literal["normals", "depth", "masks", "random_views"]
FILES: dict[ExtraName, str] = {
    "normals": "normals.png",
    "depth": "depth.png",
    "masks": "masks.png",
    "random_views": "views.png",
}
"""What each extra is called after the sample's key."""


class LightSettings(Config):
    """What light the objects stand in."""

    kind: Literal["studio", "albedo", "random", "environment"] = "studio"
    """studio: the same soft light in every view. albedo: none, every surface shows its own colour.
    random: three lamps drawn for each object. environment: a map drawn for each object, and turned.
    The last two stand still in the world, and show metal and gloss where a mesh has them."""
    seed: Integer = Field(0, ge=0)
    """What is drawn for an object depends on this and on its key alone."""
    environments: Path | None = None
    """Folder of equirectangular maps, .hdr, .png or .jpg."""

    @model_validator(mode="after")
    def _has_environments(self) -> Self:
        if (self.kind == "environment") != (self.environments is not None):
            raise ValueError("'environments' names a folder if kind is environment, and only then")
        return self


class ExtraSettings(Config):
    """What else is written beside the bundle."""

    kinds: tuple[ExtraName, ...] = ()
    """normals: the normal row in 16 bits per channel. depth: along the viewing axis, 16 bits.
    masks: coverage. random_views: a second bundle of other cameras."""
    num_random_views: Integer = Field(4, ge=1, le=MAX_VIEWS)
    seed: Integer = Field(0, ge=0)
    """The random views of an object depend on this and on its key alone."""

    def described(self) -> dict[str, Any]:
        """All that the files depend on."""
        drawn = {"num_random_views": self.num_random_views, "seed": self.seed}
        has_views = "random_views" in self.kinds
        return {"kinds": sorted(self.kinds), **(drawn if has_views else {})}


class RenderLimits(Config):
    """What one mesh may take; one that takes more is quarantined."""

    seconds: Number = Field(300.0, gt=0)
    """From its being read to its sample being written."""
    memory_gib: Number = Field(8.0, gt=0)
    """Of main memory, by the process that renders it."""


class RenderSettings(Config):
    """A recipe of `kiss3d data render`."""

    tile: Integer = Field(512, ge=16)
    """Side of a tile in pixels, a multiple of 16."""
    layout: BundleLayout = PUBLISHED
    """Views and rows."""
    lighting: LightSettings = LightSettings()
    extras: ExtraSettings = ExtraSettings()
    front_estimator: str | None = None
    """A function of your own, as module:function, that takes a mesh of which nobody said where its
    front is, and returns the front's azimuth in degrees, or None if it cannot tell."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: all workers share the GPUs. The bytes then differ slightly from the CPU's."""
    workers: Integer | None = Field(None, ge=1)
    """Meshes rendered at a time, one CPU core each; null = all that Ray has."""
    limits: RenderLimits = RenderLimits()


STUDIO_LIGHT = LightSettings()
NO_EXTRAS = ExtraSettings()
DEFAULT_LIMITS = RenderLimits()
_OPTIONS = {
    "lighting": "lighting.kind",
    "environments": "lighting.environments",
    "extras": "extras.kinds",
    "timeout": "limits.seconds",
    "memory": "limits.memory_gib",
}
"""Options of the command that are called otherwise than the settings."""


def option_overrides(**options: int | float | str | Path | None) -> list[str]:
    """The command's options as overrides for `load_config`; None = not given.

    Raises:
        InputError: the layout's file is wrong.
    """
    overrides = []
    for name, value in options.items():
        if value is None:
            continue
        if name == "layout":
            given: object = load_config(BundleLayout, Path(str(value))).config.model_dump()
        elif name == "extras":
            given = [kind for kind in str(value).split(",") if kind]
        else:
            given = str(value) if isinstance(value, Path) else value
        overrides.append(f"{_OPTIONS.get(name, name)}={json.dumps(given)}")
    return overrides
