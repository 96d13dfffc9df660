"""Albedo from shaded views: the light is estimated from the normals and divided out."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.reconstruct.spread import spread
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.color import to_linear, to_srgb

_SOLID = 0.95
_DARKEST, _BRIGHTEST = 0.004, 0.98
"""Linear range of usable pixels: below, hues are noise; above, a channel may be cut off."""
_NUM_SAMPLES = 16_384
_OFFSETS = (1, 2, 3, 5)
"""Each sample is compared with those so many places further on among the samples of its hue."""
_HUE_BINS = 24
_HUE_TOLERANCE = 0.02
_FIRST_TOLERANCE, _LAST_TOLERANCE, _TIGHTENING = 0.06, 0.03, 0.85
"""How far two albedos may differ, relatively, and still count as one paint; from step to step."""
_NUM_STEPS = 20
_RIDGE = 1e-3
_LEAST_LIGHT, _MOST_LIGHT = 0.25, 2.0


def without_shading(target: Target) -> Target:
    """Divide the light out of the views, so that a texture made of them can be lit anew.

    Model: linear RGB = albedo * E(n) with one irradiance E for all views and channels, of second
    order in the normal n (Ramamoorthi and Hanrahan 2001, "An Efficient Representation for
    Irradiance Environment Maps": 9 coefficients, of which the constant is set to 1). E has no
    colour, so hues stay exactly. Neither albedo nor light is known: pairs of pixels of one hue are
    taken for one paint, whose albedos must agree, and pairs that cannot be made to agree lose their
    say. The light is tried fixed to the cameras, as this project's renderer has it, and fixed to
    the world; the one that explains more stays. Surfaces that face a viewer keep their brightness.

    What it cannot do: cast shadows, reflections and coloured light stay. Paints of one hue and two
    brightnesses that lie on different sides (a dark roof on light walls, both grey) can pass for
    light. An object that shows few directions tells little about its light.

    Args:
        target: the views; not changed.

    Returns:
        The target with albedo, in sRGB, for its colours.
    """
    pairs = _Pairs.of(target)
    if len(pairs.likeness) == 0:
        return target
    rotations = target.cameras.rotations.to(target.normals)
    received, _ = min(
        (_received(pairs, target, axes) for axes in (rotations, _unrotated(rotations))),
        key=lambda found: found[1],
    )
    linear = to_linear(target.rgb) / received.clamp(_LEAST_LIGHT, _MOST_LIGHT)[..., None]
    linear = linear / linear.amax(-1, keepdim=True).clamp(min=1)  # too bright: the hue stays
    # Where nothing is covered there is no normal to tell the light by.
    views = zip(to_srgb(linear), target.alpha[..., 0] > 0, strict=True)
    return replace(target, rgb=torch.stack([spread(view, covered) for view, covered in views]))


@dataclass(frozen=True)
class _Pairs:
    """P pairs of pixels that may show one paint."""

    view: Tensor  # [2, P]
    normals: Tensor  # [2, P, 3] in the world
    brightness: Tensor  # [2, P] linear
    likeness: Tensor  # [P] in [0, 1], of their hues

    @classmethod
    def of(cls, target: Target) -> "_Pairs":
        linear = to_linear(target.rgb)
        usable = (target.alpha[..., 0] > _SOLID) & (linear.amax(-1) < _BRIGHTEST)
        usable &= linear.mean(-1) > _DARKEST
        where = usable.nonzero()  # [N, 3]: view, row, column
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(where), generator=generator)[:_NUM_SAMPLES].to(where.device)
        view, row, column = where[chosen].unbind(1)
        colors = linear[view, row, column].cpu().double()
        normals = functional.normalize(target.normals[view, row, column].cpu().double(), dim=-1)
        hues = colors / colors.sum(-1, keepdim=True)
        cells = (hues * _HUE_BINS).round().long()
        cell = (cells[:, 0] * (_HUE_BINS + 1) + cells[:, 1]).sort(stable=True)
        parts = []
        for offset in _OFFSETS:
            same = cell.values[offset:] == cell.values[:-offset]
            parts.append(torch.stack([cell.indices[:-offset][same], cell.indices[offset:][same]]))
        pairs = torch.cat(parts, 1)
        apart = (hues[pairs[0]] - hues[pairs[1]]).norm(dim=-1) / _HUE_TOLERANCE
        return cls(
            view.cpu()[pairs], normals[pairs], colors.mean(-1)[pairs], torch.exp(-(apart**2))
        )


def _unrotated(rotations: Tensor) -> Tensor:
    return torch.eye(3).to(rotations).expand_as(rotations)


def _received(pairs: _Pairs, target: Target, axes: Tensor) -> tuple[Tensor, float]:
    """The light [V, S, S] on every pixel, fixed to the axes [V, 3, 3] of each view, and its cost.

    It is 1 on average over the views at surfaces that face the viewer.
    """
    turned = torch.einsum("kpc,kpcd->kpd", pairs.normals, axes.cpu().double()[pairs.view])
    coefficients, cost = _fitted(pairs, _harmonics(turned))
    toward = target.cameras.rotations[:, None, :, 2].to(axes) @ axes
    normals = functional.normalize(target.normals, dim=-1) @ axes[:, None]
    coefficients = coefficients.to(normals)
    return _light(normals, coefficients) / _light(toward, coefficients).mean(), cost


def _harmonics(normals: Tensor) -> Tensor:
    """The real spherical harmonics of order 1 and 2, unscaled, at unit vectors: [..., 8]."""
    x, y, z = normals.unbind(-1)
    return torch.stack([x, y, z, x * y, y * z, x * z, 3 * z * z - 1, x * x - y * y], -1)


def _light(normals: Tensor, coefficients: Tensor) -> Tensor:
    return (1 + _harmonics(normals) @ coefficients).clamp(min=_LEAST_LIGHT / 2)


def _fitted(pairs: _Pairs, harmonics: Tensor) -> tuple[Tensor, float]:
    """The light under which most pairs have equal albedos.

    Iteratively reweighted least squares with the Geman-McClure weight, from a wide tolerance to a
    narrow one: two paints of one hue are told apart only once the light is roughly known. An albedo
    is I / E, so the residual of a pair, (I_1 E_2 - I_2 E_1) / (I_1 E_2 + I_2 E_1), is the relative
    difference of its albedos; E is linear in the coefficients, and so is the numerator.

    Args:
        pairs: P of them.
        harmonics: [2, P, 8] at their normals.

    Returns:
        coefficients [8], and the mean robust cost of a pair in [0, 1].
    """
    bright = pairs.brightness
    rows = bright[0][:, None] * harmonics[1] - bright[1][:, None] * harmonics[0]
    constant = bright[0] - bright[1]
    coefficients = harmonics.new_zeros(8)
    tolerance = _FIRST_TOLERANCE
    ridge = _RIDGE * pairs.likeness.sum() * torch.eye(8).to(harmonics)
    for _ in range(_NUM_STEPS):
        light = (1 + harmonics @ coefficients).clamp(min=_LEAST_LIGHT / 2)
        size = bright[0] * light[1] + bright[1] * light[0]
        error = ((rows @ coefficients + constant) / size / tolerance) ** 2
        weight = pairs.likeness / (1 + error) ** 2
        scaled = rows / size[:, None]
        system = scaled.T @ (weight[:, None] * scaled) + ridge
        coefficients = torch.linalg.solve(system, -scaled.T @ (weight * constant / size))
        cost = float((pairs.likeness * error / (1 + error)).sum() / pairs.likeness.sum())
        tolerance = max(_LAST_TOLERANCE, tolerance * _TIGHTENING)
    return coefficients, cost
