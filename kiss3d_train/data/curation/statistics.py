"""Figures of a mesh and of its bundle, by which samples are curated without rendering again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.bundle.masks import normal_masks
from kiss3d_infer.config import Config
from kiss3d_infer.scene.mesh import UNPAINTED, Material, Mesh
from kiss3d_infer.scene.normals import weld
from kiss3d_train.data.curation.picture import colors_of, image_hash

_GROUND = 0.02
"""Share of the longest extent above the lowest point within which a part stands on the ground."""
_GAP = 0.01
"""Share of the longest extent up to which two parts' boxes touch."""
_THING_STANDS, _THING_RISES = 0.1, 0.04
_MAX_GROUPED = 512
"""Parts, the largest first, that are grouped into objects; the rest are crumbs."""
_PIXELS = 128
"""Side of a tile at most that colours, coverage and hash are taken from."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Statistics(Config):
    """What is known of a sample beyond its description."""

    num_faces: int
    """Triangles of the mesh."""
    num_parts: int
    """Connected components; vertices that coincide are one."""
    num_ground_parts: int
    """Components that reach down to the lowest 2 % of the longest extent."""
    num_objects: int
    """Groups of components whose bounding boxes touch, up to 1 % of the longest extent."""
    num_things: int
    """Such groups, when the components that span more than half of the ground plan (a floor, a
    terrain, walls) are taken away, that stand in the lowest tenth of the longest extent and rise
    by 4 % of it or more."""
    main_object: float
    """Share of the surface that belongs to the largest group."""
    extents: tuple[float, float, float]
    """Width, height and depth; the longest is 1."""
    boundary_edges: float
    """Share of edges with one face only: 0 = watertight."""
    open_sides: float
    """Share of the silhouette before which no face is turned to the viewer, in the worst view; 0
    for a closed surface, 1 for one that shows a view nothing but its inside."""
    has_texture: bool
    has_material: bool
    """Whether the file gives a material, be it plain."""
    has_vertex_colors: bool
    num_colors: int
    """Distinct colours in the RGB row, in steps of 1/8 per channel, each at least 0.2 % of it."""
    colors: tuple[tuple[str, float], ...]
    """The five most frequent of these, "#rrggbb", and their share of the object's pixels."""
    coverage: tuple[float, ...]
    """Share of each view's tile that the object covers."""
    image_hash: str
    """Perceptual hash of the RGB row, 64 bits per view, in hexadecimal digits."""

    @property
    def thickness(self) -> float:
        """The shortest extent over the longest."""
        return min(self.extents) / max(self.extents)

    @property
    def elongation(self) -> float:
        """The longest horizontal extent over the height."""
        width, height, depth = self.extents
        return max(width, depth) / max(height, 1e-6)


def statistics_of(mesh: Mesh, bundle: Bundle) -> Statistics:
    """Measure a mesh and the bundle rendered from it; some milliseconds for a usual mesh."""
    surface = _Surface.of(mesh)
    materials = [material for material in mesh.materials if not _is_stand_in(material)]
    parts = _Parts.of(surface)
    extents = np.ptp(surface.vertices, axis=0)
    objects = parts.groups(extents.max())
    area = np.bincount(objects, parts.area)
    floor = surface.vertices[:, 1].min() + _GROUND * extents.max()
    small = _shrunk(bundle)
    masks = normal_masks(small)
    coverage = masks.mean((1, 2))
    num_colors, colors = colors_of(small.rgb, masks)
    return Statistics(
        num_faces=len(mesh.faces),
        num_parts=len(parts.area),
        num_ground_parts=int((parts.low[:, 1] <= floor).sum()),
        num_objects=int(objects.max()) + 1,
        num_things=parts.num_things(extents),
        main_object=_rounded(area.max() / area.sum()),
        extents=tuple(_rounded(extent) for extent in extents / extents.max()),
        boundary_edges=round(surface.boundary_edges(), 6),
        open_sides=_rounded(_open_sides(surface, bundle.layout, masks)),
        has_texture=any(material.texture is not None for material in materials),
        has_material=any(
            material.name != UNPAINTED.name or material.base_color != UNPAINTED.base_color
            for material in materials
        ),
        has_vertex_colors=mesh.vertex_colors is not None,
        num_colors=num_colors,
        colors=tuple((name, _rounded(share)) for name, share in colors),
        coverage=tuple(_rounded(share) for share in coverage),
        image_hash=image_hash(small.rgb),
    )


def _open_sides(surface: _Surface, layout: BundleLayout, masks: NDArray[np.bool_]) -> float:
    """The largest share, over the views, of the silhouette for which no face turned there exists.

    The faces that are turned toward a viewer fill at least the silhouette if the surface is closed.
    A sheet has none for the viewer behind it; neither has a bust without a back, of which that
    viewer sees the inside. Directions are taken level, because no view sees a missing bottom.
    """
    height = np.ptp(surface.vertices[:, 1])
    shares = []
    for azimuth, mask in zip(np.deg2rad(layout.azimuths), masks, strict=True):
        sin, cos = np.sin(azimuth), np.cos(azimuth)
        width = np.ptp(surface.vertices[:, 0] * cos - surface.vertices[:, 2] * sin)
        # As filled as the picture of the silhouette is, but free of its perspective.
        silhouette = max(width * height * _filled(mask), 1e-9)
        toward = surface.areas[:, 0] * sin + surface.areas[:, 2] * cos
        shares.append(1 - np.maximum(toward, 0).sum() / silhouette)
    return max(0.0, *map(float, shares))


def _filled(mask: NDArray[np.bool_]) -> float:
    """Share of the mask's bounding rectangle that belongs to it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 1.0
    return float(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean())


def _is_stand_in(material: Material) -> bool:
    """Whether it is the 2x2 grey that trimesh gives to texture coordinates without a material."""
    texture = material.texture
    return (
        texture is not None
        and tuple(texture.shape[:2]) == (2, 2)
        and bool((texture == texture[0, 0, 0]).all())
    )


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _shrunk(bundle: Bundle) -> Bundle:
    step = max(1, bundle.tile // _PIXELS)
    while bundle.tile % step:
        step -= 1
    return Bundle(bundle.image[:, ::step, ::step], bundle.layout)


@dataclass(frozen=True)
class _Surface:
    """Triangles whose coinciding vertices are one.

    Attributes:
        vertices: [N, 3].
        faces: [F, 3] into the vertices.
        areas: [F, 3], along the normal, as long as the face is large.
    """

    vertices: Floats
    faces: Integers
    areas: Floats

    @classmethod
    def of(cls, mesh: Mesh) -> _Surface:
        points, index = weld(mesh.vertices)
        faces = index.numpy()[mesh.faces.numpy()]
        corners = points[torch.from_numpy(faces)].double()
        edges = corners[:, 1:] - corners[:, :1]
        areas = torch.linalg.cross(edges[:, 0], edges[:, 1]) / 2
        return cls(points.numpy().astype(np.float64), faces, areas.numpy())

    def boundary_edges(self) -> float:
        begin, end = self.faces.ravel(), self.faces[:, [1, 2, 0]].ravel()
        codes = np.sort(np.minimum(begin, end) * len(self.vertices) + np.maximum(begin, end))
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        return float((np.diff(starts, append=len(codes)) == 1).mean())


@dataclass(frozen=True)
class _Parts:
    """The connected components of a surface.

    Attributes:
        low: [P, 3] lower corners of their bounding boxes.
        high: [P, 3] upper corners.
        area: [P].
    """

    low: Floats
    high: Floats
    area: Floats

    @classmethod
    def of(cls, surface: _Surface) -> _Parts:
        a, b, c = surface.faces.T
        rows, columns = np.concatenate([a, b]), np.concatenate([b, c])
        num = len(surface.vertices)
        graph = coo_array((np.ones(len(rows), bool), (rows, columns)), (num, num))
        count, label = connected_components(graph, directed=False)
        order = np.argsort(label, kind="stable")
        starts = np.searchsorted(label[order], np.arange(count))
        ordered = surface.vertices[order]
        face_area = np.linalg.norm(surface.areas, axis=1)
        return cls(
            low=np.minimum.reduceat(ordered, starts),
            high=np.maximum.reduceat(ordered, starts),
            area=np.bincount(label[a], face_area, minlength=count).astype(np.float64),
        )

    def groups(self, longest: float) -> Integers:
        """Which group [P] of touching boxes each part belongs to; crumbs go to the largest's."""
        largest = np.argsort(-self.area, kind="stable")[:_MAX_GROUPED]
        low, high = self.low[largest], self.high[largest] + _GAP * longest
        touch = ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(-1)
        groups = connected_components(touch, directed=False)[1].astype(np.int64)
        result = np.full(len(self.area), groups[0], np.int64)
        result[largest] = groups
        return result

    def num_things(self, extents: Floats) -> int:
        """See `Statistics.num_things`."""
        size = self.high - self.low
        is_ground = size[:, 0] * size[:, 2] > extents[0] * extents[2] / 2
        kept = _Parts(self.low[~is_ground], self.high[~is_ground], self.area[~is_ground])
        if not len(kept.area):
            return 0
        groups = kept.groups(extents.max())
        low, high = np.full(groups.max() + 1, np.inf), np.full(groups.max() + 1, -np.inf)
        np.minimum.at(low, groups, kept.low[:, 1])
        np.maximum.at(high, groups, kept.high[:, 1])
        stands = low <= self.low[:, 1].min() + _THING_STANDS * extents.max()
        return int((stands & (high - low >= _THING_RISES * extents.max())).sum())
