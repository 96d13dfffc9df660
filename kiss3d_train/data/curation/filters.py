"""The filters of a curation: each a section of the configuration that can say no to a sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from kiss3d_infer.config import Config, Integer, Number
from kiss3d_train.data.curation.sample import Sample, says, words_of

Count = Annotated[Integer, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Phrase = Annotated[str, Field(pattern=r"[^\W_]")]
Figure = float | int | str


@dataclass(frozen=True)
class Finding:
    """Why a filter rejects a sample.

    Attributes:
        reason: a clause for people.
        figures: what was measured, by the names that the figures have in the description.
    """

    reason: str
    figures: dict[str, Figure] = field(default_factory=dict)


class Filter(Config):
    """One reason for which samples are left out."""

    enabled: bool = True
    """Whether the filter is applied."""


class SampleFilter(Filter):
    """A filter that judges each sample by itself."""

    @abstractmethod
    def finding(self, sample: Sample) -> Finding | None:
        """Why the sample is rejected; None = it passes."""


class Unpainted(SampleFilter):
    """Objects without colours: no texture, no material, no vertex colours."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        figures = sample.statistics
        if figures.has_texture or figures.has_material or figures.has_vertex_colors:
            return None
        return Finding("no texture, material or vertex colours")


class FewFaces(SampleFilter):
    """Objects too coarse to learn a shape from."""

    min_faces: Count = 50
    """Triangles at least."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        num = sample.statistics.num_faces
        if num >= self.min_faces:
            return None
        return Finding(f"{num} faces, fewer than {self.min_faces}", {"num_faces": num})


class Flat(SampleFilter):
    """Objects that are almost a sheet, which two of four views see as a line."""

    min_thickness: Share = 0.02
    """Shortest extent over the longest."""
    min_coverage: Share = 0.004
    """Share of the tile that each view must show."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        thickness, coverage = sample.statistics.thickness, min(sample.statistics.coverage)
        figures: dict[str, Figure] = {"thickness": round(thickness, 4), "coverage": coverage}
        if thickness < self.min_thickness:
            return Finding(f"{thickness:.3f} thick, less than {self.min_thickness}", figures)
        if coverage < self.min_coverage:
            reason = f"a view covers {coverage:.2%} of its tile, less than {self.min_coverage:.2%}"
            return Finding(reason, figures)
        return None


class Incomplete(SampleFilter):
    """Scans that were not taken from all around: a relief, a facade, a bust without a back."""

    max_open_sides: Share = 0.85
    """Share of a view's silhouette before which no face is turned to the viewer. Surfaces that a
    file gives from both sides are never found open."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        share, edges = sample.statistics.open_sides, sample.statistics.boundary_edges
        if share <= self.max_open_sides or edges == 0:
            return None
        return Finding(
            f"{share:.0%} of a side is open, more than {self.max_open_sides:.0%}",
            {"open_sides": share, "boundary_edges": edges},
        )


class Scene(SampleFilter):
    """Landscapes, rooms and sites: many things over the ground, or a few on a wide one."""

    max_things: Count = 16
    """Things that stand near the ground and do not touch each other, the ground itself aside."""
    max_elongation: Annotated[Number, Field(gt=0)] = 12.0
    """Longest horizontal extent over the height, where there are three things or more."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        num, elongation = sample.statistics.num_things, sample.statistics.elongation
        figures: dict[str, Figure] = {"num_things": num, "elongation": round(elongation, 2)}
        if num > self.max_things:
            return Finding(f"{num} things stand on it, more than {self.max_things}", figures)
        if num > 2 and elongation > self.max_elongation:
            reason = f"{num} things on a ground {elongation:.0f} times as wide as they are high"
            return Finding(reason, figures)
        return None


_HALF = 0.51


class SeveralObjects(SampleFilter):
    """Collections: things that do not touch each other."""

    max_objects: Annotated[Integer, Field(ge=1)] = 1
    """Groups of touching parts that are allowed whatever their sizes."""
    min_main_object: Share = 0.8
    """Share of the surface that the largest group must have where there are more."""
    allow_pairs: bool = True
    """Whether two of equal surface pass, such as shoes."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        num, main = sample.statistics.num_objects, sample.statistics.main_object
        if num <= self.max_objects or main >= self.min_main_object:
            return None
        if self.allow_pairs and num == 2 and main <= _HALF:
            return None
        return Finding(
            f"{num} separate objects, the largest has {main:.0%} of the surface",
            {"num_objects": num, "main_object": main},
        )


class Captions(SampleFilter):
    """Words that must not describe a sample."""

    deny: tuple[Phrase, ...] = ()
    """Words or phrases in the name, caption, category or a tag; whole words, in any case."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        texts = (sample.name, sample.caption, sample.category, *sample.tags)
        return _denied(texts, self.deny, "described")


class Licences(SampleFilter):
    """Licences under which samples may not, or only under which they may be used."""

    deny: tuple[Phrase, ...] = ("all rights reserved", "editorial")
    """Words or phrases of a licence's name; whole words, in any case. "nc" meets CC-BY-NC."""
    allow: tuple[Phrase, ...] = ()
    """If given, only these: whole names, but for case, punctuation and version numbers, so that
    CC-BY meets "CC BY 4.0" and not CC-BY-NC. A sample without a licence is then rejected."""

    def finding(self, sample: Sample) -> Finding | None:
        """See the class."""
        if self.allow and not sample.licence:
            return Finding("no licence is known")
        licence = sample.licence or ""
        if self.allow and _unversioned(licence) not in map(_unversioned, self.allow):
            return Finding(f"licensed '{licence}', which is not allowed", {"licence": licence})
        return _denied((licence,), self.deny, "licensed")


def _denied(texts: Iterable[str], phrases: Iterable[str], verb: str) -> Finding | None:
    for text in texts:
        for phrase in phrases:
            if says(text, phrase):
                return Finding(f"{verb} '{text}', which says '{phrase}'", {"denied": phrase})
    return None


def _unversioned(licence: str) -> tuple[str, ...]:
    return tuple(word for word in words_of(licence) if not word.isdigit())


class Duplicates(Filter):
    """Samples that look like an accepted one and have a mesh like it; the first by key stays.

    Only what the other filters accept is compared.
    """

    max_bits: Annotated[Integer, Field(ge=0, le=64)] = 8
    """Bits of the hash over all views, 64 per view, in which two may differ."""
    max_extent: Share = 0.01
    """By which each extent may differ; the longest is 1."""
    max_color: Share = 0.05
    """By which the mean colours may differ, in each channel."""
    max_faces: Annotated[Number, Field(ge=1)] = 1.02
    """Ratio of the numbers of faces."""
