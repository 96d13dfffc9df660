"""What a curation can be told: the filters with their limits, and the named subsets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from kiss3d_infer.config import Config, Integer
from kiss3d_train.data.curation.filters import (
    Captions,
    Duplicates,
    FewFaces,
    Filter,
    Flat,
    Incomplete,
    Licences,
    Scene,
    SeveralObjects,
    Unpainted,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class FiltersSection(Config):
    """What is left out, in the order of the report."""

    unpainted: Unpainted = Unpainted()
    few_faces: FewFaces = FewFaces()
    flat: Flat = Flat()
    incomplete: Incomplete = Incomplete()
    scene: Scene = Scene()
    several_objects: SeveralObjects = SeveralObjects()
    captions: Captions = Captions()
    licences: Licences = Licences()
    duplicates: Duplicates = Duplicates()

    def named(self) -> dict[str, Filter]:
        """Every filter by its name."""
        return {name: getattr(self, name) for name in type(self).model_fields}


class Subset(Config):
    """A part of the accepted samples; what is not given does not restrict it."""

    tags: tuple[str, ...] = ()
    """Words or phrases of which the name, the category or a tag must say one."""
    keys: Path | None = None
    """Text file that lists keys or uids, one a line."""
    size: Annotated[Integer, Field(gt=0)] | None = None
    """Samples at most: those whose hash of seed and key is lowest. A sample that is added later
    takes at most one other's place."""
    seed: Integer = 0
    """Another seed, another choice."""


class CurationConfig(Config):
    """A curation."""

    filters: FiltersSection = FiltersSection()
    subsets: Mapping[Name, Subset] = {
        "base": Subset(),
        "50k": Subset(size=50_000),
        "doll": Subset(tags=("doll", "figurine", "cartoon character", "characters")),
    }
    """Named parts of what is accepted, after the paper: all of it, 50,000 of it, and dolls."""

    @field_validator("subsets", mode="after")
    @classmethod
    def _has_base(cls, subsets: Mapping[str, Subset]) -> Mapping[str, Subset]:
        return {"base": Subset()} | dict(subsets)
