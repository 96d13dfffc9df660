"""Are the normals of a bundle unit, do they face the viewer, and which convention do they follow?

Two things hold for the normals of any solid object and fail for most under a wrong convention: they
face the viewer, and around a silhouette they lean outward. Every convention is scored by both.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout

_WORKING_PIXELS = 128
_LEAST_PIXELS = 64
# Per negated axis. On exact renders a wrong axis leads by up to 0.07 (open shelves, layered trees).
_CLEAR_LEAD = 0.1
# In smaller tiles a wrong axis leads by more, for an edge is as wide as what it belongs to.
_CLEAR_PIXELS = 96
# One that turns the normals by less cannot be told from the right one, and does little harm.
_LEAST_TURN = 8.0
# Whose mean cosine to the viewer is lower in any view is not right, only less wrong.
_LEAST_FACING = 0.25
_AWAY_WEIGHT = 5.0
_AWAY = -0.1
_MIXED = 0.15


@dataclass(frozen=True)
class Convention:
    """One that normals may have been stored in by mistake.

    Attributes:
        name: what is different about it, as a clause.
        remedy: how its normals are put right, as an imperative.
        signs: of x, y, z as the published convention decodes them.
        in_world: whether the normals are in world space.
    """

    name: str
    remedy: str
    signs: tuple[int, int, int]
    in_world: bool = False

    @property
    def needed_lead(self) -> float:
        """What it must lead by to be believed; world space counts for two negated axes."""
        return _CLEAR_LEAD * (self.signs.count(-1) + 2 * self.in_world)

    def decode(self, published: Tensor, layout: BundleLayout) -> Tensor:
        """Camera-space normals [V, 3, H, W] from what the published convention decodes."""
        changed = published * published.new_tensor(self.signs).view(3, 1, 1)
        return normal_code.to_camera(changed, layout) if self.in_world else changed


_TO_CAMERA = "rotate them into each view's camera, then negate x"
# The likelier ones first.
_OTHERS = (
    Convention("x is not negated", "invert red inside the silhouettes", (-1, 1, 1)),
    Convention("y points down", "invert green inside the silhouettes", (1, -1, 1)),
    Convention(
        "x is not negated and y points down",
        "invert red and green inside the silhouettes",
        (-1, -1, 1),
    ),
    Convention(
        "they point into the object", "invert all channels inside the silhouettes", (-1, -1, -1)
    ),
    Convention("z points away from the viewer", "invert blue inside the silhouettes", (1, 1, -1)),
    Convention(
        "x is not negated and z points away from the viewer",
        "invert red and blue inside the silhouettes",
        (-1, 1, -1),
    ),
    Convention("they are in world space", _TO_CAMERA, (-1, 1, 1), in_world=True),
    Convention("they are in world space, x negated", _TO_CAMERA, (1, 1, 1), in_world=True),
)


@dataclass(frozen=True)
class Lead:
    """How other conventions compare with the published one.

    Attributes:
        score: the highest lead of any that comes into question; below 0 the published one fits
            better than all of them.
        convention: the one that the normals follow instead; None without a clear lead.
    """

    score: float
    convention: Convention | None


@dataclass(frozen=True)
class Figure:
    """Something measured on all views together and on each.

    Attributes:
        mean: over all pixels of all views.
        views: [V]; 0 for a view that shows too little to be judged by itself.
    """

    mean: float
    views: NDArray[np.float64]


def normal_quality(bundle: Bundle, masks: NDArray[np.bool_]) -> tuple[Figure, Figure]:
    """Measure the normals two pixels inside the normal row's silhouettes [V, T, T].

    Returns:
        Mean | |n| - 1 |, or 1 without any normals; share that points away from the viewer.
    """
    inside = ndimage.binary_erosion(masks, np.ones((1, 3, 3)), iterations=2)
    inside = inside if inside.any() else masks
    raw = normal_code.decode_raw(bundle.normal_colors)
    lengths = raw.square().sum(1).sqrt().numpy()
    facing = (raw * _to_viewer(bundle.layout, bundle.tile)).sum(1).numpy()
    counts = inside.sum((1, 2))
    judged = np.where(counts >= _LEAST_PIXELS, counts, np.inf)

    def figure(values: NDArray[np.floating] | NDArray[np.bool_], nothing: float) -> Figure:
        sums = (values * inside).sum((1, 2))
        mean = float(sums.sum() / counts.sum()) if counts.any() else nothing
        return Figure(mean, sums / judged)

    return figure(np.abs(lengths - 1), 1.0), figure(facing < _AWAY, 0.0)


def other_convention(bundle: Bundle, masks: NDArray[np.bool_]) -> Lead:
    """Look for a convention that the normals fit clearly better than the published one.

    Args:
        bundle: its normals should be about unit vectors.
        masks: [V, T, T] silhouettes of the normal row.
    """
    step = max(1, bundle.tile // _WORKING_PIXELS)
    small = masks[:, ::step, ::step]
    raw = normal_code.decode_raw(bundle.normal_colors[:, :, ::step, ::step])
    lengths = raw.square().sum(1, keepdim=True).sqrt()
    # A pixel that is far from unit mixes a surface with another one or with the background.
    pure = ((lengths[:, 0] - 1).abs() < _MIXED).numpy()
    inside = ndimage.binary_erosion(small, np.ones((1, 3, 3))) & pure
    if inside.sum() < _LEAST_PIXELS:
        return Lead(0.0, None)
    scene, stored = _Scene.of(small, inside, bundle.layout), raw / lengths.clamp(min=1e-6)
    own, leads, best = scene.score(stored), [], Lead(0.0, None)
    caution = max(1.0, _CLEAR_PIXELS / small.shape[-1])
    for convention in _OTHERS:
        normals = convention.decode(stored, bundle.layout)
        if scene.turn(stored, normals) < _LEAST_TURN or scene.facing(normals) < _LEAST_FACING:
            continue
        leads.append(scene.score(normals) - own)
        # An unlikelier one must also be clearly better than the likelier ones.
        if leads[-1] > caution * max(convention.needed_lead, best.score + _CLEAR_LEAD):
            best = Lead(leads[-1], convention)
    return Lead(max(leads, default=0.0), best.convention)


@dataclass(frozen=True)
class _Scene:
    inside: Tensor  # [V, S, S] bool
    outward: Tensor  # [V, 2, S, S]: x right, y up, at the edges inside; lengths add up to 1
    to_viewer: Tensor  # [3, S, S]

    @classmethod
    def of(
        cls, masks: NDArray[np.bool_], inside: NDArray[np.bool_], layout: BundleLayout
    ) -> "_Scene":
        # Downhill on a blurred silhouette is outward.
        sigma = max(1.0, masks.shape[-1] / 64)
        blurred = ndimage.gaussian_filter(masks.astype(np.float32), (0, sigma, sigma))
        down, right = np.gradient(blurred, axis=(1, 2))
        outward = np.stack([-right, down], axis=1) * inside[:, None]
        outward /= max(float(np.hypot(outward[:, 0], outward[:, 1]).sum()), 1e-6)
        to_viewer = _to_viewer(layout, masks.shape[-1])
        return cls(torch.from_numpy(inside), torch.from_numpy(outward), to_viewer)

    def score(self, normals: Tensor) -> float:
        """How well camera-space unit normals [V, 3, S, S] suit an object of these silhouettes."""
        leaning = (normals[:, :2] * self.outward).sum()
        away = ((normals * self.to_viewer).sum(1)[self.inside] < _AWAY).float().mean()
        return float(leaning - _AWAY_WEIGHT * away)

    def facing(self, normals: Tensor) -> float:
        """Lowest mean over a view's pixels inside of unit normals' cosine to the viewer."""
        cosines = (normals * self.to_viewer).sum(1) * self.inside
        counts = self.inside.sum((1, 2))
        return float((cosines.sum((1, 2)) / counts)[counts > 0].min())

    def turn(self, a: Tensor, b: Tensor) -> float:
        """Mean angle between unit normals [V, 3, S, S] inside, degrees."""
        cosines = (a * b).sum(1)[self.inside]
        return float(torch.rad2deg(cosines.clamp(-1, 1).acos()).mean())


def _to_viewer(layout: BundleLayout, size: int) -> Tensor:
    """Unit vectors [3, S, S] in camera axes, toward the viewer from what each pixel shows."""
    slope = ((torch.arange(size) + 0.5) / size * 2 - 1) / layout.cameras.focal
    across, down = torch.meshgrid(slope, slope, indexing="xy")
    length = (1 + across.square() + down.square()).sqrt()
    return torch.stack([-across, down, torch.ones_like(down)]) / length
