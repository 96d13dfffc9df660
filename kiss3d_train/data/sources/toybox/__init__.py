"""A procedural source of everyday objects with exact captions: `toybox:N`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import zip_longest

from kiss3d_infer import __version__
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem
from kiss3d_train.data.sources.toybox import (
    buildings,
    craft,
    furniture,
    household,
    nature,
    tools,
    toys,
    vehicles,
)
from kiss3d_train.data.sources.toybox.build import Draw, Toy

Maker = Callable[[Draw], Toy]

_ROOMS = (furniture, vehicles, toys, buildings, household, craft, tools, nature)

MAKERS: tuple[Maker, ...] = tuple(
    maker
    for row in zip_longest(*(room.MAKERS for room in _ROOMS))
    for maker in row
    if maker is not None
)
"""All makers, rooms interleaved, so that any run of items is varied."""


_WORDING = 1
"""Sets the draws of an object's wording apart from those of the object."""


def make(index: int, seed: int = 0) -> Toy:
    """Item `index`: a pure function of (seed, index). Classes take turns."""
    return MAKERS[index % len(MAKERS)](Draw(seed, index))


class ToyboxSource:
    """`count` objects; item i does not depend on the count.

    Args:
        count: number of items.
        seed: another seed gives another, equally varied, series.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def items(self) -> Sequence[MeshItem]:
        """All items, not yet described: a caption takes building the object."""
        return [self._item(index) for index in range(self.count)]

    def describe(self, item: MeshItem) -> MeshItem:
        """The item with its class, category and a true caption, as long as it comes."""
        index = int(item.locator)
        toy = _make_once(index, self.seed)
        caption = toy.worded(Draw(self.seed, index, _WORDING))
        return replace(item, name=toy.name, caption=caption, category=toy.category)

    def fingerprint(self, item: MeshItem) -> str:
        """Seed and index tell everything within a version; another may draw other objects."""
        return f"{item.key} of kiss3d {__version__}"

    def load(self, item: MeshItem) -> Mesh:
        """Build the item's mesh."""
        return _make_once(int(item.locator), self.seed).mesh()

    def _item(self, index: int) -> MeshItem:
        return MeshItem(
            key=f"toybox-{self.seed}-{index:07d}",
            name="",
            caption=None,
            category="",
            tags=(),
            source="toybox",
            licence="CC0-1.0",
            author=None,
            locator=str(index),
            uid=f"{self.seed}/{index}",
        )


# An item is described and then loaded.
_make_once = lru_cache(maxsize=1)(make)
