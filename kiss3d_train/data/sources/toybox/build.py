"""What a toy is made with: seeded choices, painted solids and an exact caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_train.data.sources.toybox import paint as paints
from kiss3d_train.data.sources.toybox.paint import Paint
from kiss3d_train.data.sources.toybox.solids import Solid

T = TypeVar("T")

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Draw:
    """Seeded choices; the same seed makes the same choices on every machine."""

    def __init__(self, *seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self._random.integers(len(options)))]

    def chance(self, probability: float = 0.5) -> bool:
        """True with the given probability."""
        return bool(self._random.random() < probability)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return float(self._random.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(self._random.integers(low, high + 1))

    def color(self, *without: str, among: Sequence[str] = paints.VIVID) -> str:
        """A colour word that is not one of `without`."""
        return self.pick([word for word in among if word not in without])

    def accent(self, *without: str) -> str:
        """A colour word for a smaller part: any colour, neutrals included."""
        return self.color(*without, among=tuple(paints.COLORS))

    def wood(self) -> Paint:
        """A wood of some shade."""
        return paints.wooden(self.count(0, 2))


@dataclass
class Toy:
    """An object under construction: its class, its caption's words and its painted solids.

    The front faces +Z and the ground is y = 0.
    """

    name: str
    category: str
    look: str = ""
    """Adjectives before the name: size, colour, material."""
    details: list[str] = field(default_factory=list)
    """What follows "with", one noun phrase each."""
    parts: list[tuple[Solid, Paint]] = field(default_factory=list)

    def add(self, paint: Paint, *solids: Solid) -> None:
        """Add solids in one paint."""
        self.parts.extend((solid, paint) for solid in solids)

    def detail(self, phrase: str) -> None:
        """Add a noun phrase to the caption's "with" list."""
        self.details.append(phrase)

    @property
    def caption(self) -> str:
        """One clause: article, adjectives, name, and what it is made with."""
        return self._said(self.look, self.details)

    def worded(self, draw: Draw) -> str:
        """What someone might call it: the caption, or a shorter one that is as true.

        A model that has only read whole captions takes the lack of a word for another object.
        """
        look, details = self.look, self.details
        if draw.chance(0.4):
            shorter = _without_size(look)
            look = draw.pick((shorter, shorter, ""))
        if draw.chance(0.4):
            details = [phrase for phrase in details if draw.chance(0.4)]
        if self.category == "furniture" and draw.chance():
            details = [re.sub(r"feet$", "legs", phrase) for phrase in details]
        said = self._said(look, details)
        return said.partition(" ")[2] if draw.chance(0.15) else said  # without its article

    def _said(self, look: str, details: Sequence[str]) -> str:
        phrase = with_article(f"{look} {self.name}".strip())
        return f"{phrase} with {listed(details)}" if details else phrase

    def mesh(self) -> Mesh:
        """All parts as one mesh with a material per paint."""
        order = list(dict.fromkeys(paint for _, paint in self.parts))
        counts = [len(solid.vertices) for solid, _ in self.parts]
        offsets = np.cumsum([0, *counts[:-1]])
        solids = [solid for solid, _ in self.parts]
        faces = [s.faces + offset for s, offset in zip(solids, offsets, strict=True)]
        index = [np.full(len(solid.faces), order.index(paint)) for solid, paint in self.parts]
        uv = [solid.uv / paint.size for solid, paint in self.parts]
        return Mesh(
            vertices=torch.from_numpy(np.concatenate([s.vertices for s in solids])).float(),
            faces=torch.from_numpy(np.concatenate(faces)).int(),
            normals=torch.from_numpy(np.concatenate([s.normals for s in solids])).float(),
            uv=torch.from_numpy(np.concatenate(uv)).float(),
            vertex_colors=None,
            material_index=torch.from_numpy(np.concatenate(index)).int(),
            materials=tuple(_material(paint) for paint in order),
        )


def _without_size(look: str) -> str:
    """Adjectives from the first colour or material on; all, where there is neither."""
    found = re.search(rf"\b(?:{'|'.join(paints.WORDS)})\b.*", look)
    return found[0] if found else look


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listed(phrases: Sequence[str]) -> str:
    """Phrases joined as "a, b and c"."""
    *head, last = phrases
    return f"{', '.join(head)} and {last}" if head else last


def plural(number: int, noun: str) -> str:
    """A small count in words: "one door", "three doors"."""
    return f"{NUMBERS[number]} {noun}{'' if number == 1 else 's'}"


def _material(paint: Paint) -> Material:
    image = paints.texture(paint)
    if image is None:
        return Material(name=paint.word, base_color=paint.color, texture=None)
    return Material(
        name=paint.word, base_color=(1.0, 1.0, 1.0), texture=torch.from_numpy(image.copy())
    )
