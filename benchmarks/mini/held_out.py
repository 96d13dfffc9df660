"""Toybox objects of series that no model was trained on, with their exact bundles."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources.toybox import MAKERS, make
from kiss3d_train.data.sources.toybox.paint import COLORS

PROMPTS_SEED, CLASSIFIER_SEED, CHECK_SEED = 9001, 9002, 9003
"""Series of the toybox (`toybox:N?seed=S`): prompts, and the classifier's training and check."""
NUM_CLASSES = len(MAKERS)
_COLOR = re.compile("|".join(sorted(COLORS, key=len, reverse=True)))


@dataclass(frozen=True)
class HeldOut:
    """One object of a series."""

    index: int
    series: int

    @cached_property
    def caption(self) -> str:
        """What a model is asked to draw."""
        return make(self.index, self.series).caption

    @property
    def maker(self) -> int:
        """Its class: which of the toybox's makers has made it."""
        return self.index % NUM_CLASSES

    @cached_property
    def color(self) -> str | None:
        """The only colour word before its name, if there is just one."""
        words = _COLOR.findall(make(self.index, self.series).look)
        return words[0] if len(words) == 1 else None

    def bundle(self, tile: int) -> Bundle:
        """Its exact bundle in the published layout."""
        mesh = make(self.index, self.series).mesh()
        return render_bundle(framed(mesh, PUBLISHED.cameras), tile=tile)


def held_out(count: int, series: int = PROMPTS_SEED) -> Iterator[HeldOut]:
    """The first objects of a series; classes take turns."""
    return (HeldOut(index, series) for index in range(count))
