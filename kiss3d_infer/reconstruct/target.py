"""What the optimiser matches: world normals and coverage per view, cleaned of white edges."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.masks import shown_views, silhouettes
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.raster.threads import for_each_view

_SOLID = 0.95
_EDGE_PIXELS = 3.0
_LEAST_SHIFT_PIXELS = 0.2
"""Moving a view by less would only blur it."""


@dataclass(frozen=True)
class Target:
    """Square views to be matched; row 0 at the top.

    Attributes:
        cameras: one per view.
        rgb: [V, S, S, 3] sRGB; beyond the object, the colour of its nearest pixel.
        normals: [V, S, S, 3] world-space unit normals times alpha.
        alpha: [V, S, S, 1] coverage in [0, 1].
        views: which of the bundle's views they are, from 0.
        confidence: [V] in (0, 1], how much each view counts; on the CPU.
        warnings: sentences about views that had to be left out.
    """

    cameras: Cameras
    rgb: Tensor
    normals: Tensor
    alpha: Tensor
    views: tuple[int, ...]
    confidence: Tensor
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Side of a view in pixels."""
        return int(self.alpha.shape[1])

    @property
    def geometry(self) -> Tensor:
        """Normals times alpha, and alpha: [V, S, S, 4]."""
        return torch.cat([self.normals, self.alpha], -1)

    @classmethod
    def of(cls, bundle: Bundle) -> "Target":
        """Decode a bundle; a view without an object is left out.

        An edge pixel mixes the object with the white background, and generated edges are softer
        still, so pixels that are not fully covered take colour and normal of the nearest one.

        Raises:
            InputError: no view shows anything.
        """
        alpha = silhouettes(bundle)
        shown = shown_views(alpha)
        azimuths, elevations = bundle.layout.azimuths, bundle.layout.elevations
        warnings = tuple(
            f"view {v} (azimuth {azimuths[v]:g}) is empty and was left out"
            for v in range(len(alpha))
            if v not in shown
        )
        camera_normals = normal_code.decode(bundle.normal_colors)
        normals = normal_code.to_world(camera_normals, bundle.layout)
        shown_colors = torch.cat([bundle.rgb, normals], 1)[shown]
        spread = torch.stack(_spread_solid(shown_colors, alpha[shown])).permute(0, 2, 3, 1)
        rgb, normals = spread[..., :3].contiguous(), spread[..., 3:].contiguous()
        cameras = Cameras(
            tuple(azimuths[v] for v in shown),
            tuple(elevations[v] for v in shown),
            bundle.layout.distance,
            bundle.layout.fov,
        )
        alpha = alpha[shown].permute(0, 2, 3, 1).contiguous()
        confidence = torch.ones(len(shown))
        return cls(cameras, rgb, normals * alpha, alpha, tuple(shown), confidence, warnings)

    def resized(self, size: int) -> "Target":
        """The same views, shrunk by averaging over areas; normals stay unit times alpha."""
        if size == self.size:
            return self
        return self._remade(lambda images: _shrunk(images, size))

    def shifted(self, shifts: Tensor) -> "Target":
        """The views moved right and down by `shifts` [V, 2] of their width."""
        if float(shifts.abs().max()) * self.size < _LEAST_SHIFT_PIXELS:
            return self
        return self._remade(lambda images: translated(images, shifts))

    def to(self, device: str | torch.device) -> "Target":
        """The same target on another device."""
        rgb, normals, alpha = (t.to(device) for t in (self.rgb, self.normals, self.alpha))
        return replace(self, rgb=rgb, normals=normals, alpha=alpha)

    def _remade(self, resample: Callable[[Tensor], Tensor]) -> "Target":
        rgb, normals, alpha = (resample(t) for t in (self.rgb, self.normals, self.alpha))
        normals = functional.normalize(normals, dim=-1) * alpha
        return replace(self, rgb=rgb, normals=normals, alpha=alpha)


def translated(images: Tensor, shifts: Tensor) -> Tensor:
    """Views [V, S, S, C] moved right and down by `shifts` [V, 2] of their width; edges repeat."""
    theta = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    theta[:, :, 2] = -2 * shifts.to(images)
    by_channel = images.permute(0, 3, 1, 2)
    grid = functional.affine_grid(theta, list(by_channel.shape), align_corners=False)
    found = functional.grid_sample(
        by_channel, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return found.permute(0, 2, 3, 1).contiguous()


def _shrunk(views: Tensor, size: int) -> Tensor:
    by_channel = views.permute(0, 3, 1, 2)
    small = functional.interpolate(by_channel, size=(size, size), mode="area")
    return small.permute(0, 2, 3, 1).contiguous()


def _spread_solid(views: Tensor, alpha: Tensor) -> list[Tensor]:
    """Each view [C, S, S] with every pixel taking the values of its nearest covered one."""

    def spread(v: int) -> Tensor:
        coverage = alpha[v, 0].numpy()
        solid = coverage > _SOLID
        if not solid.any():
            return views[v]
        distance, (row, column) = ndimage.distance_transform_edt(~solid, return_indices=True)
        # A wire has no covered pixel of its own: what it shows beats a far neighbour's colour.
        own = (distance > _EDGE_PIXELS) & (coverage > 0.5)
        row = np.where(own, np.arange(len(row))[:, None], row)
        column = np.where(own, np.arange(len(row))[None, :], column)
        return views[v][:, torch.from_numpy(row), torch.from_numpy(column)]

    return for_each_view(spread, len(views))
