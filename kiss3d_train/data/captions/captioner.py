"""What a captioner is given, what it answers, and how it says that it cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kiss3d_infer.errors import InputError
from kiss3d_train.data.descriptions import picture_of, read_description
from kiss3d_train.data.sources.item import MeshItem

if TYPE_CHECKING:
    from kiss3d_infer.bundle.image import Bundle


@dataclass(frozen=True)
class CaptionSource:
    """Who wrote a caption; stored beside it.

    Attributes:
        captioner: "metadata", "api", "local", or "source" where the mesh came with an exact one,
            and "names" for the one that rendering makes of name, category and tags.
        model: of a vision model, else the version of the rules.
        prompt: version of what the model is asked; empty without a model.
    """

    captioner: str
    model: str = ""
    prompt: str = ""

    def to_json(self) -> dict[str, str]:
        """As stored under `caption_source`."""
        return asdict(self)

    @classmethod
    def of_item(cls, item: MeshItem) -> CaptionSource:
        """Who wrote the caption that rendering stores."""
        return cls("source" if item.caption else "names")


EXACT = CaptionSource("source").to_json()
"""Of captions that came with their meshes."""


@dataclass(frozen=True)
class Sample:
    """A rendered sample by its description; `read_bundle` gives its picture."""

    description: Path
    meta: dict[str, Any]

    @classmethod
    def read(cls, description: Path) -> Sample:
        """Read `<key>.json`.

        Raises:
            InputError: it is none.
        """
        return cls(description, read_description(description))

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.description.stem

    @property
    def item(self) -> MeshItem:
        """What the source said of the mesh, without a caption."""
        return MeshItem(
            key=self.key,
            name=str(self.meta.get("name") or ""),
            caption=None,
            category=str(self.meta.get("category") or ""),
            tags=tuple(str(tag) for tag in self.meta.get("tags") or ()),
            source=str(self.meta.get("source") or ""),
            licence=None,
            author=None,
            locator="",
        )


def read_bundle(sample: Sample) -> Bundle:
    """A sample's picture.

    Raises:
        BadSampleError: it is missing or damaged.
    """
    from kiss3d_infer.bundle.image import load_bundle

    try:
        return load_bundle(picture_of(sample.description))
    except InputError as error:
        raise BadSampleError(error.what) from error


class Captioner(Protocol):
    """Writes captions, several at a time if `num_threads` says so."""

    @property
    def source(self) -> CaptionSource:
        """Goes beside every caption; samples that have one of the same source are done."""
        ...

    @property
    def num_threads(self) -> int:
        """How many samples to caption at a time."""
        ...

    @property
    def params(self) -> dict[str, object]:
        """Its name and settings, to be recorded; never a key."""
        ...

    @property
    def figures(self) -> dict[str, float]:
        """What the work has taken so far, by name, e.g. tokens."""
        ...

    def caption(self, sample: Sample) -> str:
        """The sample's caption.

        Raises:
            BadSampleError: it cannot be captioned; the reason goes into the quarantine.
            NoAnswerError: it could not be captioned now, through no fault of its own.
            StopCaptioningError: the job should end here.
            InputError: the picture cannot be read, or the settings are wrong (`where` then names
                none of the sample's files).
        """
        ...

    def stop(self) -> None:
        """Begin nothing more; what waits in another thread gives up."""
        ...


class BadSampleError(Exception):
    """This sample gets no caption, and would get none the next time."""


class NoAnswerError(Exception):
    """This sample gets no caption now; a later run tries again."""


class StopCaptioningError(Exception):
    """No further sample can be captioned in this run."""
