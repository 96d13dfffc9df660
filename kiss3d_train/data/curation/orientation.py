"""Which way objects face: annotated fronts, and the turn that brings a front to +Z.

A front is the azimuth, in degrees, at which the object's face is seen when it is rendered as it
comes: 0 if it already looks along +Z, 90 if the face shows in the second column of a published
bundle. One can be read off a contact sheet.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.sources.item import MeshItem

_FORMS = 'a JSON object {"key": degrees, ...}, or CSV with the columns key (or uid) and front'


FrontEstimator = Callable[[Mesh], float | None]
"""Guesses a mesh's front: its azimuth in degrees, or None if it cannot tell."""


@lru_cache
def load_estimator(spec: str) -> FrontEstimator:
    """The function at `module:function`, which must be importable on every node.

    Raises:
        InputError: there is no such module or function.
    """
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"no front estimator can be imported: {error}",
            where=spec,
            fix="give module:function, and have the module on PYTHONPATH",
        ) from error
    if not callable(found):
        raise InputError("the front estimator is no function", where=spec)
    estimator: FrontEstimator = found
    return estimator


def oriented(item: MeshItem, mesh: Mesh, estimator: FrontEstimator | None) -> tuple[MeshItem, Mesh]:
    """The item with its front, estimated if nobody said it, and its mesh with the front at +Z."""
    front = item.front
    if front is None and estimator is not None:
        front = estimator(mesh)
    return replace(item, front=front), turned(mesh, front or 0.0)


def turned(mesh: Mesh, front: float) -> Mesh:
    """The mesh turned about +Y so that what is seen at azimuth `front` (degrees) faces +Z."""
    if front % 360 == 0:
        return mesh
    cos, sin = math.cos(math.radians(front)), math.sin(math.radians(front))
    rotation = torch.tensor([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
    normals = None if mesh.normals is None else mesh.normals @ rotation.T
    return replace(mesh, vertices=mesh.vertices @ rotation.T, normals=normals)


def annotated(items: Sequence[MeshItem], annotations: Path) -> Sequence[MeshItem]:
    """The items with the fronts that a file gives by key or uid; others stay as they are.

    Raises:
        InputError: the file cannot be read, or names none of the items.
    """
    fronts = read_fronts(annotations)
    result = [replace(item, front=_front(item, fronts)) for item in items]
    if all(item.front is None for item in result):
        raise InputError(
            f"none of the {len(fronts)} annotated objects is in the source",
            where=annotations,
            fix="name objects by the key or uid that 'kiss3d data render' writes",
        )
    return result


def _front(item: MeshItem, fronts: Mapping[str, float]) -> float | None:
    names = (item.key, str(getattr(item, "uid", None)))
    return next((fronts[name] for name in names if name in fronts), item.front)


def read_fronts(path: Path) -> dict[str, float]:
    """Key or uid -> azimuth of the front in degrees, from a `.json` or `.csv` file.

    Raises:
        InputError: no such file, another form, a name twice, or an angle that is no number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the annotations cannot be read", where=path, fix=_FORMS) from error
    fronts: dict[str, float] = {}
    for name, value in _pairs(text, path):
        if name in fronts:
            raise InputError(f"{name} is annotated twice", where=path)
        try:
            fronts[name] = float(value)
        except (TypeError, ValueError):
            fronts[name] = math.nan
        if isinstance(value, bool) or not math.isfinite(fronts[name]):
            raise InputError(f"the front of {name} is no angle in degrees: {value!r}", where=path)
    return fronts


def _pairs(text: str, path: Path) -> Iterable[tuple[str, str | float]]:
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines())
        columns = reader.fieldnames or ()
        name = next((column for column in ("key", "uid") if column in columns), None)
        if name is None or "front" not in columns:
            raise InputError("not a table of fronts", where=path, fix=f"give {_FORMS}")
        return [(row[name], row["front"]) for row in reader]
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except ValueError:
        pairs = None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError("not a table of fronts", where=path, fix=f"give {_FORMS}")
    return pairs
