"""Toybox objects of series that no model was trained on, with their exact bundles."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice

from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources.toybox import MAKERS, make
from kiss3d_train.data.sources.toybox.build import with_article
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
    few_words: bool = False
    """Whether a model is asked for its name, in the only colour before it, and nothing else."""

    @cached_property
    def caption(self) -> str:
        """What a model is asked to draw."""
        toy = make(self.index, self.series)
        if not self.few_words:
            return toy.caption
        return with_article(f"{self.color or ''} {toy.name}".strip())

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


def held_out(
    number: int,
    series: int = PROMPTS_SEED,
    makers: Container[int] = range(NUM_CLASSES),
    *,
    few_words: bool = False,
) -> Iterator[HeldOut]:
    """The first objects of a series by some makers or all; classes take turns."""
    things = (HeldOut(index, series, few_words) for index in count())
    return islice((thing for thing in things if thing.maker in makers), number)


def makers_of(names: Sequence[str]) -> list[int]:
    """The makers of these classes, e.g. `toy dog`.

    Raises:
        InputError: there is no such class.
    """
    known = [make(maker, PROMPTS_SEED).name for maker in range(NUM_CLASSES)]
    for name in names:
        if name not in known:
            raise InputError(f"the toybox has no {name}", fix=f"choose of {', '.join(known)}")
    return [known.index(name) for name in names]
