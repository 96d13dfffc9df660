"""How right the measured words of a caption are, on toybox objects, whose truth is known.

`python -m benchmarks.captions [COUNT]` renders them and writes results/captions-<date>.json.
"""

import json
import re
import sys
import time
from collections import Counter

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from benchmarks.machine import describe, write_report
from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.progress import track
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle, render_views
from kiss3d_train.data.captions.colors import measured_colors
from kiss3d_train.data.captions.shape import measured_shape
from kiss3d_train.data.sources.toybox import make
from kiss3d_train.data.sources.toybox.build import Toy
from kiss3d_train.data.sources.toybox.paint import COLORS

_SEED = 11
"""Another series than the one on which the thresholds were looked at."""
_TILE = 128
_SHADES = {
    "wooden": {"brown", "beige", "orange"},
    "metal": {"grey"},
    "dark metal": {"grey", "black"},
    "golden": {"yellow", "brown", "orange"},
    "glass": {"light blue", "blue", "grey", "teal"},
    "brick": {"red", "brown"},
    "stone": {"grey"},
    "straw": {"yellow", "beige", "brown"},
}
"""The colours that a material may rightly be said to have."""


def main(count: int) -> None:
    """Measure, print and write."""
    hits: Counter[str] = Counter()
    seconds = 0.0
    for index in track(range(count), "measuring"):
        toy = make(index, _SEED)
        bundle = render_bundle(framed(toy.mesh(), PUBLISHED.cameras), tile=_TILE)
        began = time.process_time()
        colors, shape = [name for name, _ in measured_colors(bundle)], measured_shape(bundle)
        seconds += time.process_time() - began
        hits.update(_color_hits(toy, colors))
        hits.update(_shape_hits(toy.mesh(), shape.attributes if shape else []))
    figures = {
        "objects": count,
        "tile": _TILE,
        "cpu_ms_per_object": round(1000 * seconds / count, 1),
        **{name: f"{hits[f'{name}: yes']} of {_total(hits, name)}" for name in _names(hits)},
    }
    print(json.dumps(figures, indent=1))
    write_report({"machine": describe(), **figures}, "captions")


def _color_hits(toy: Toy, colors: list[str]) -> list[str]:
    words = {paint.word for _, paint in toy.parts}
    painted = set().union(*({*_colors_in(word), *_SHADES.get(word, ())} for word in words))
    hits = [_hit("a named colour is on the object", color in painted) for color in colors]
    if toy.look in COLORS:
        hits.append(_hit("the caption's first colour is named", toy.look in colors))
        hits.append(_hit("the caption's first colour is named first", [toy.look] == colors[:1]))
    return hits


def _colors_in(text: str) -> list[str]:
    return [word for word in re.findall(r"light blue|\w+", text) if word in COLORS]


def _shape_hits(mesh: Mesh, attributes: list[str]) -> list[str]:
    """Given attributes that hold, and attributes that hold and are given."""
    extents = (mesh.vertices.amax(0) - mesh.vertices.amin(0)).tolist()
    shortest, middle, longest = sorted(extents)
    true = {
        "slender": longest >= 3 * middle,
        "flat or thin": shortest <= 0.2 * middle,
        "round": _turned_agreement(mesh) > 0.9,
        "symmetric": _unmirrored_share(mesh) < 0.05,
    }
    given = {
        "slender": any("slender" in attribute for attribute in attributes),
        "flat or thin": bool({"flat", "thin"} & set(attributes)),
        "round": "round" in attributes,
        "symmetric": bool({"round", "symmetric"} & set(attributes)),
    }
    hits = [_hit(f"'{name}' holds where it is said", true[name]) for name in true if given[name]]
    return hits + [
        _hit(f"'{name}' is said where it holds", given[name]) for name in true if true[name]
    ]


def _turned_agreement(mesh: Mesh) -> float:
    """The least IoU of the front's silhouette with those from azimuths a bundle does not hold."""
    azimuths = (0.0, 20.0, 45.0, 70.0, 110.0, 135.0, 160.0)
    cameras = Cameras(azimuths, (0.0,) * len(azimuths), PUBLISHED.distance, PUBLISHED.fov)
    views = render_views(framed(mesh, cameras), cameras, 64, supersampling=1).alpha[:, 0] > 0.5
    front, *others = views
    return min(float((front & other).sum() / (front | other).sum()) for other in others)


def _unmirrored_share(mesh: Mesh) -> float:
    """Share of the surface that is farther than 4 % of the size from the mirrored surface."""
    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    points, _ = trimesh.sample.sample_surface(surface, 4000, seed=0)
    points = (points - surface.bounds.mean(0)) / surface.extents.max()
    distances, _ = cKDTree(points).query(points * np.array([-1, 1, 1]))
    return float((distances > 0.04).mean())


def _hit(name: str, yes: bool) -> str:
    return f"{name}: {'yes' if yes else 'no'}"


def _names(hits: Counter[str]) -> list[str]:
    return list(dict.fromkeys(hit.rsplit(": ", 1)[0] for hit in hits))


def _total(hits: Counter[str], name: str) -> int:
    return hits[f"{name}: yes"] + hits[f"{name}: no"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 240)
