"""The clause that describes an object, from what its source says about it.

The paper's captions read "<prefix sentence> <object clause>. <attribute, attribute, ...>"; only the
clause and the attributes are stored here, the prefix belongs to the prompt (`flux/prompt.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kiss3d_train.data.sources.item import MeshItem

_NO_ARTICLE = re.compile(
    r"(keys|scissors|trousers|shoes|slippers|sneakers|headphones|sunglasses|"
    r"glasses|stairs|tulips|orchids|logs|rails|lights|tools|hanging clothes)$"
)
_UNCOUNTED = {"bamboo", "soap", "sugar", "milk", "tape", "bread", "rattan"}


def caption_of(item: MeshItem) -> str:
    """The item's own caption, or one made from its name, category and tags.

    A name such as "Armchair" of the category "Office" with the tag "Seat" gives
    "an armchair. office, seat".
    """
    if item.caption:
        return item.caption.strip()
    return joined(with_article(name_of(item)), attributes_of(item))


def name_of(item: MeshItem) -> str:
    """What the item is called, in plain words."""
    return clean_name(item.name) or "object"


def attributes_of(item: MeshItem) -> list[str]:
    """What its category and tags add to its name."""
    words = set(name_of(item).split())
    attributes: list[str] = []
    for label in (item.category, *item.tags):
        attribute = clean_name(label)
        # A code such as "SCPTS" or the library's own name says nothing about the object.
        is_code = label.isupper() and len(label) > 2
        is_origin = bool(label) and label.lower() in item.source.lower()
        repeats = attribute in words or attribute in attributes
        if attribute and not (is_code or is_origin or repeats or attribute == "miscellaneous"):
            attributes.append(attribute)
    return attributes


def joined(clause: str, attributes: Sequence[str]) -> str:
    """The one form of a stored caption: "clause. attribute, attribute"."""
    return f"{clause}. {', '.join(attributes)}" if attributes else clause


def clean_name(text: str) -> str:
    """A file's or catalogue's name as plain words: "oakChair_02" becomes "oak chair"."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text)
    text = re.sub(r"[_\-.]+", " ", text)
    text = re.sub(r"\s+\(?#?\d{1,4}\)?$|(?<=[a-z])\d{1,4}$", "", text.strip())
    words = [word if _is_acronym(word) else word.lower() for word in text.split()]
    return " ".join(words)


def with_article(name: str, adjectives: str = "") -> str:
    """The name after its adjectives and "a" or "an", where it takes one."""
    phrase = f"{adjectives} {name}".strip()
    if _NO_ARTICLE.search(name) or name in _UNCOUNTED:
        return phrase
    # Spelled-out initials such as "MP3" and "SUV" begin with the sound of their first letter.
    initials = phrase[:2].isupper()
    vowel = phrase[0] in "AEFHILMNORSX" if initials else phrase[0].lower() in "aeiou"
    return f"{'an' if vowel else 'a'} {phrase}"


def _is_acronym(word: str) -> bool:
    return len(word) > 1 and sum(letter.isupper() for letter in word) > 1
