"""The 24 objects: 12 furniture models chosen by name before anything was measured, and 12 toys."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.bundle import PUBLISHED
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.furniture import fetch_furniture
from kiss3d_train.data.sources import MeshSource, open_source

_FURNITURE = Path("data/furniture")
_TOYS = "toybox:12?seed=2"
_NAMES = (
    "BlendSwap-CC-0.sh3f#1",  # armchair of bent tubes
    "BlendSwap-CC-0.sh3f#19",  # kitchen mixer
    "BlendSwap-CC-0.sh3f#79",  # tulip chair
    "BlendSwap-CC-0.sh3f#97",  # horse
    "BlendSwap-CC-0.sh3f#139",  # tufted armchair
    "BlendSwap-CC-0.sh3f#175",  # wooden toy
    "KatorLegaz.sh3f#57",  # sofa
    "KatorLegaz.sh3f#69",  # car
    "Reallusion.sh3f#3",  # woman
    "Scopia.sh3f#14",  # jar
    "Scopia.sh3f#170",  # van
    "Scopia.sh3f#338",  # round table
)


@dataclass(frozen=True)
class Object:
    """A mesh in the frame of the published cameras."""

    name: str
    mesh: Mesh


def objects() -> Iterator[Object]:
    """All objects in a fixed order; the furniture is fetched where it is missing."""
    if not any(_FURNITURE.glob("*.sh3f")):
        fetch_furniture(_FURNITURE)
    yield from _objects_of(open_source(str(_FURNITURE)), _NAMES)
    yield from _objects_of(open_source(_TOYS), None)


def _objects_of(source: MeshSource, locators: tuple[str, ...] | None) -> Iterator[Object]:
    by_locator = {item.locator: item for item in source.items()}
    for locator in locators or by_locator:
        item = source.describe(by_locator[locator])
        mesh = framed(source.load(item), PUBLISHED.cameras)
        yield Object(item.caption or f"{item.name} ({locator})", mesh)
