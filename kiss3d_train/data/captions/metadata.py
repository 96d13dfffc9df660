"""Captions without a model: the source's words, the colours of the render, and the shape."""

from __future__ import annotations

import os

from kiss3d_train.data.captions.captioner import CaptionSource, Sample, read_bundle
from kiss3d_train.data.captions.colors import ANCHORS, measured_colors
from kiss3d_train.data.captions.names import attributes_of, joined, name_of, with_article
from kiss3d_train.data.captions.shape import measured_shape

RULES = "colours and shape 1"
"""Changes with what is measured or how it is said, so that older captions are made anew."""

_COLOR_WORDS = {name for name, _ in ANCHORS} | {"gray", "gold", "golden", "silver", "wooden"}


class MetadataCaptioner:
    """Says "a red and white armchair. office, seat, symmetric"."""

    source = CaptionSource("metadata", RULES)
    num_threads = os.cpu_count() or 1

    @property
    def params(self) -> dict[str, object]:
        """Its name and version."""
        return dict(self.source.to_json())

    @property
    def figures(self) -> dict[str, float]:
        """Nothing is spent here."""
        return {}

    def caption(self, sample: Sample) -> str:
        """The sample's caption.

        Raises:
            BadSampleError: the picture cannot be read.
        """
        bundle = read_bundle(sample)
        item = sample.item
        name = name_of(item)
        words = set(name.split())
        # A name that tells a colour knows better: "yellow duck" may well have an orange bill.
        colors = () if _COLOR_WORDS & words else measured_colors(bundle)
        shape = measured_shape(bundle)
        attributes = attributes_of(item)
        attributes += [word for word in (shape.attributes if shape else ()) if word not in words]
        adjectives = " and ".join(color for color, _ in colors)
        return joined(with_article(name, adjectives), attributes)

    def stop(self) -> None:
        """Nothing waits here."""
