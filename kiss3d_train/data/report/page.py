"""Writes the page about a data set."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiss3d_infer.bundle.image import opened_image
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import check_writable, writing
from kiss3d_train.data.order import picked
from kiss3d_train.data.report.charts import Getter, Histogram, counted, histogram
from kiss3d_train.data.report.entries import DataSet, Entry, open_data_set
from kiss3d_train.data.storage import Place, absolute, name_of

_NUM_ACCEPTED = 36
_NUM_PER_FILTER = 12
_PICTURE_WIDTH = 400
_QUALITY = 70
_CREDITS = ("author", "licence")


@dataclass(frozen=True)
class Page:
    """What was written."""

    path: Path
    num_samples: int
    num_rejected: int
    num_pictures: int
    num_bytes: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.num_samples} samples, {self.num_rejected} rejected, "
            f"{self.num_pictures} pictures: {self.path} ({self.num_bytes / 1e6:.1f} MB)"
        )


@dataclass(frozen=True)
class Card:
    """A picture with its words."""

    source: str
    title: str
    credit: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """Cards under a heading, of how many there are in all."""

    title: str
    total: int
    cards: tuple[Card, ...]


def write_page(folder: Place, out: Path) -> Page:
    """Write one HTML file that needs nothing else: no script, no request, pictures inside.

    Args:
        folder: rendered samples, curated or not, or shards.
        out: an .html file.

    Raises:
        InputError: `out` is no .html file or cannot be written; the folder is empty or damaged.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            "a data set is shown by an .html or a .png file", where=out, fix="name it page.html"
        )
    check_writable(out)
    data = open_data_set(folder)
    sheets = _sheets(data)
    html = _template().render(
        data=data,
        name=name_of(absolute(folder)),
        num_rejected=sum(entry.is_rejected for entry in data.entries),
        num_undecided=sum(entry.decision is None for entry in data.entries),
        filters={} if data.curation is None else data.curation.rejected_by(),
        subsets={} if data.curation is None else data.curation.subset_sizes(),
        quarantine=data.quarantine.most_common(10),
        histograms=_histograms(data.entries),
        tables={
            "Category": counted(data.entries, lambda entry: _said(entry, "category")),
            "Licence": counted(data.entries, lambda entry: _said(entry, "licence")),
            "Source": counted(data.entries, lambda entry: _said(entry, "source")),
        },
        sheets=sheets,
    )
    with writing(out) as aside:
        aside.write_text(html, encoding="utf-8")
    return Page(
        path=out,
        num_samples=len(data.entries),
        num_rejected=sum(entry.is_rejected for entry in data.entries),
        num_pictures=sum(len(sheet.cards) for sheet in sheets),
        num_bytes=out.stat().st_size,
    )


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Captions and names come from anywhere: they are escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _said(entry: Entry, field: str) -> str:
    return str(entry.meta.get(field) or "none")


def _figure(name: str) -> Getter:
    return lambda entry: float(entry.meta["statistics"][name])


def _coverage(entry: Entry) -> float:
    views = entry.meta["statistics"]["coverage"]
    return float(sum(views) / len(views))


def _thickness(entry: Entry) -> float:
    extents = entry.meta["statistics"]["extents"]
    return float(min(extents) / max(extents))


def _caption_words(entry: Entry) -> float:
    return float(len(str(entry.meta.get("caption", "")).split()))


def _histograms(entries: Sequence[Entry]) -> list[Histogram]:
    captions = histogram("Words per caption", entries, _caption_words)
    measured = [entry for entry in entries if "statistics" in entry.meta]
    if not measured:  # shards made elsewhere need only have captions
        return [captions]
    return [
        captions,
        histogram("Faces (log)", measured, _figure("num_faces"), is_log=True),
        histogram("Connected parts (log)", measured, _figure("num_parts"), is_log=True),
        histogram("Separate objects (log)", measured, _figure("num_objects"), is_log=True),
        histogram("Shortest extent / longest", measured, _thickness),
        histogram("Open share of the worst side", measured, _figure("open_sides")),
        histogram("Share of edges with one face", measured, _figure("boundary_edges")),
        histogram("Share of the tile covered", measured, _coverage),
        histogram("Distinct colours", measured, _figure("num_colors")),
    ]


def _sheets(data: DataSet) -> list[Sheet]:
    accepted = [entry for entry in data.entries if not entry.is_rejected]
    title = "Samples" if data.curation is None else "Accepted"
    sheets = [_sheet(title, accepted, _NUM_ACCEPTED)]
    for name in {} if data.curation is None else data.curation.rejected_by():
        rejected = [
            entry for entry in data.entries if entry.decision and name in entry.decision.reasons
        ]
        if rejected:
            sheets.append(_sheet(f"Rejected: {name}", rejected, _NUM_PER_FILTER))
    return sheets


def _sheet(title: str, entries: Sequence[Entry], limit: int) -> Sheet:
    shown = picked(entries, limit, f"page {title}")
    return Sheet(title, len(entries), tuple(map(_card, shown)))


def _card(entry: Entry) -> Card:
    reasons = () if entry.decision is None else tuple(entry.decision.reasons.items())
    lines = tuple(f"{name}: {finding.reason}" for name, finding in reasons)
    caption = str(entry.meta.get("caption", ""))
    credit = ", ".join(str(entry.meta[name]) for name in _CREDITS if entry.meta.get(name))
    return Card(_embedded(entry.picture()), entry.key, credit, (caption, *lines))


def _embedded(data: bytes) -> str:
    """A bundle as a small picture inside a URL."""
    with opened_image(data) as picture:
        height = max(1, round(picture.height * _PICTURE_WIDTH / picture.width))
        small = picture.convert("RGB").resize((_PICTURE_WIDTH, height))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
