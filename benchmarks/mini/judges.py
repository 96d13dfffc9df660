"""What tells the classes of bundles: trained on exact renders, once, and kept."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from benchmarks.mini import classifier
from benchmarks.mini.colors import color_match
from benchmarks.mini.held_out import CLASSIFIER_SEED, HeldOut
from benchmarks.mini.nearest import descriptors, nearest_class
from kiss3d_infer import __version__
from kiss3d_infer.bundle import Bundle, validate
from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate import view_agreement
from kiss3d_infer.files import writing
from kiss3d_infer.flux.packed import read_tensors

Row = dict[str, Any]

_TOP = 3
_NETWORK = "network."
_PER_CLASS, _CHECKED_PER_CLASS = 16, 5
"""Exact bundles of each class that the judges learn from, and that they are checked on."""


@dataclass(frozen=True)
class Judges:
    """What knows the classes of exact bundles."""

    network: classifier.Classifier
    known: Tensor  # [M, D] descriptors
    classes: Tensor  # [M] of the known

    @classmethod
    def trained(cls, views: Tensor, classes: Tensor, **options: int) -> "Judges":
        """On views [N, V, 6, T, T] and classes [N]; for the options see `classifier.train`."""
        network = classifier.train(views, classes, **options)
        return cls(network, descriptors(views), classes)

    def accuracy(self, views: Tensor, classes: Tensor) -> dict[str, float]:
        """Shares of exact bundles whose class each judge tells."""
        first = classifier.ranking(self.network, views)[:, 0]
        nearest = nearest_class(views, self.known, self.classes)
        found = {"class_network": first == classes, "class_nearest": nearest == classes}
        return {name: float(hits.float().mean()) for name, hits in found.items()}

    def judged(self, bundle: Bundle, thing: HeldOut) -> Row:
        """Is it what the caption says, and do its views agree?"""
        views = classifier.views_of(bundle)[None]
        ranks = classifier.ranking(self.network, views)[0].tolist()
        nearest = int(nearest_class(views, self.known, self.classes))
        row: Row = {
            "class_network": ranks[0] == thing.maker,
            f"class_network_top{_TOP}": thing.maker in ranks[:_TOP],
            "class_nearest": nearest == thing.maker,
        }
        if thing.color:
            row |= color_match(bundle, thing.color)
        return row | view_agreement(bundle) | {"valid": validate(bundle).ok}


def learnt_from() -> str:
    """The exact bundles that judges know, in words."""
    return f"toybox:{_PER_CLASS} of each class?seed={CLASSIFIER_SEED}"


def learnt(file: Path | None) -> tuple[Judges, Row]:
    """Judges, and the shares of exact and of softened bundles whose class they tell.

    Args:
        file: where they are kept; taken from there the next time. None trains them again each time.

    Raises:
        InputError: the file holds something else, or judges that learnt from other bundles.
    """
    if file and file.exists():
        return _read(file)
    judges = Judges.trained(*classifier.training_set(_PER_CLASS))
    views, classes = classifier.check_set(_CHECKED_PER_CLASS)
    softened = judges.accuracy(classifier.softened(views), classes)
    accuracy = {"exact": judges.accuracy(views, classes), "softened": softened}
    if file:
        _write(judges, accuracy, file)
    return judges, accuracy


def _identity() -> str:
    """Another version may build other toys, or another network."""
    return f"{learnt_from()} of kiss3d {__version__}"


def _write(judges: Judges, accuracy: Row, file: Path) -> None:
    about = {"judges": _identity(), "accuracy": json.dumps(accuracy)}
    tensors = {f"{_NETWORK}{name}": t for name, t in judges.network.state_dict().items()}
    with writing(file) as aside:
        save_file(tensors | {"known": judges.known, "classes": judges.classes}, aside, about)


def _read(file: Path) -> tuple[Judges, Row]:
    fix = "choose another --judges, or delete it to have them trained again"
    try:
        tensors, about = read_tensors(file)
    except InputError as error:
        raise InputError("these are no judges", where=file, fix=fix) from error
    if about.get("judges") != _identity():
        raise InputError("these judges learnt from other bundles", where=file, fix=fix)
    network = classifier.Classifier()
    own = {k.removeprefix(_NETWORK): t for k, t in tensors.items() if k.startswith(_NETWORK)}
    network.load_state_dict(own)
    accuracy: Row = json.loads(about["accuracy"])
    return Judges(network.eval(), tensors["known"], tensors["classes"]), accuracy
