"""Statistics and a contact sheet of a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing
from kiss3d_train.data.order import picked
from kiss3d_train.data.shards.index import SPLITS, ShardIndex, Split
from kiss3d_train.data.shards.reader import ShardReader, decode_sample
from kiss3d_train.data.storage import Place

NUM_PICTURES = 24
NUM_LISTED = 12


@dataclass(frozen=True)
class Inspection:
    """What a data set holds."""

    index: ShardIndex
    categories: Counter[str]
    licences: Counter[str]
    caption_words: float
    """Mean number of words per caption."""
    num_captions: int
    """Number of different captions."""
    contact_sheet: Path

    def __str__(self) -> str:
        """A short report."""
        return "\n".join(
            (
                str(self.index),
                *(f"grew from: {digest[:16]}" for digest in self.index.parents[-1:]),
                f"captions: {self.num_captions} different, {self.caption_words:.1f} words each",
                f"categories: {_listed(self.categories)}",
                f"licences: {_listed(self.licences)}",
                f"contact sheet: {self.contact_sheet}",
            )
        )


def inspect(place: Place, sheet: Path) -> Inspection:
    """Read every description, and draw some samples.

    Args:
        place: the data set.
        sheet: the contact sheet to write, a PNG.

    Raises:
        InputError: the data set is missing or damaged, or the sheet is no .png file or cannot be
            written.
    """
    from kiss3d_infer.scene.pictures import contact_sheet

    if sheet.suffix.lower() != ".png":
        raise InputError("a contact sheet is a .png file", where=sheet, fix="name it sheet.png")
    categories: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    reader = ShardReader(place)
    places = [(split, i) for split in SPLITS for i in range(reader.num_samples(split))]
    for split, i in places:
        meta = reader.describe(split, i)
        # Shards made elsewhere need only have captions.
        categories[str(meta.get("category") or "none")] += 1
        licences[str(meta.get("licence") or "unknown")] += 1
        captions[meta["caption"]] += 1
    shown = picked(places, NUM_PICTURES, "contact sheet")
    pictures = [_picture(reader, split, i) for split, i in shown]
    with writing(sheet) as aside:
        contact_sheet(pictures, columns=3, width=1536).save(aside)
    words = sum(len(caption.split()) * count for caption, count in captions.items())
    return Inspection(reader.index, categories, licences, words / len(places), len(captions), sheet)


def _listed(counts: Counter[str]) -> str:
    shown = [f"{name} {count}" for name, count in counts.most_common(NUM_LISTED)]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _picture(reader: ShardReader, split: Split, index: int) -> tuple[str, Image.Image]:
    """A sample's caption and bundle."""
    bundle, meta = decode_sample(reader.read(split, index), where=reader.key(split, index))
    return meta["caption"], bundle.to_pil()
