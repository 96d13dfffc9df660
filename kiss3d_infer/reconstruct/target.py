"""What the optimiser matches: world normals and coverage per view, cleaned of white edges."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.masks import silhouettes
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.camera import Cameras

_SOLID = 0.95
_EDGE_PIXELS = 3.0
_LEAST_COVERAGE = 5e-4


@dataclass(frozen=True)
class Target:
    """Square views to be matched; row 0 at the top.

    Attributes:
        cameras: one per view.
        rgb: [V, S, S, 3] sRGB; beyond the object, the colour of its nearest pixel.
        normals: [V, S, S, 3] world-space unit normals times alpha.
        alpha: [V, S, S, 1] coverage in [0, 1].
        warnings: sentences about views that had to be left out.
    """

    cameras: Cameras
    rgb: Tensor
    normals: Tensor
    alpha: Tensor
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Side of a view in pixels."""
        return int(self.alpha.shape[1])

    @classmethod
    def of(cls, bundle: Bundle) -> "Target":
        """Decode a bundle; a view without an object is left out.

        An edge pixel mixes the object with the white background, and generated edges are softer
        still, so pixels that are not fully covered take colour and normal of the nearest one.

        Raises:
            InputError: no view shows anything.
        """
        alpha = silhouettes(bundle)
        shown = [v for v in range(len(alpha)) if float(alpha[v].mean()) > _LEAST_COVERAGE]
        if not shown:
            raise InputError(
                "the bundle is empty: every view is white", fix="give a bundle that shows an object"
            )
        azimuths, elevations = bundle.layout.azimuths, bundle.layout.elevations
        warnings = tuple(
            f"view {v} (azimuth {azimuths[v]:g}) is empty and was left out"
            for v in range(len(alpha))
            if v not in shown
        )
        camera_normals = normal_code.decode(bundle.normal_colors)
        normals = normal_code.to_world(camera_normals, bundle.layout)
        rgb, normals = (_spread_solid(t[shown], alpha[shown]) for t in (bundle.rgb, normals))
        cameras = Cameras(
            tuple(azimuths[v] for v in shown),
            tuple(elevations[v] for v in shown),
            bundle.layout.distance,
            bundle.layout.fov,
        )
        alpha = alpha[shown].permute(0, 2, 3, 1).contiguous()
        return cls(cameras, rgb, normals * alpha, alpha, warnings)

    def resized(self, size: int) -> "Target":
        """The same views, shrunk by averaging over areas; normals stay unit times alpha."""
        if size == self.size:
            return self
        rgb, normals, alpha = (_shrunk(t, size) for t in (self.rgb, self.normals, self.alpha))
        normals = functional.normalize(normals, dim=-1) * alpha
        return Target(self.cameras, rgb, normals, alpha, self.warnings)

    def to(self, device: str | torch.device) -> "Target":
        """The same target on another device."""
        rgb, normals, alpha = (t.to(device) for t in (self.rgb, self.normals, self.alpha))
        return Target(self.cameras, rgb, normals, alpha, self.warnings)


def _shrunk(views: Tensor, size: int) -> Tensor:
    by_channel = views.permute(0, 3, 1, 2)
    small = functional.interpolate(by_channel, size=(size, size), mode="area")
    return small.permute(0, 2, 3, 1).contiguous()


def _spread_solid(views: Tensor, alpha: Tensor) -> Tensor:
    """[V, C, S, S] to [V, S, S, C], each pixel taking the values of its nearest covered one."""
    spread = []
    for view, coverage in zip(views, alpha[:, 0].numpy(), strict=True):
        solid = coverage > _SOLID
        if solid.any():
            distance, (row, column) = ndimage.distance_transform_edt(~solid, return_indices=True)
            # A wire has no covered pixel of its own: what it shows beats a far neighbour's colour.
            own = (distance > _EDGE_PIXELS) & (coverage > 0.5)
            row = np.where(own, np.arange(len(row))[:, None], row)
            column = np.where(own, np.arange(len(row))[None, :], column)
            view = view[:, torch.from_numpy(row), torch.from_numpy(column)]
        spread.append(view)
    return torch.stack(spread).permute(0, 2, 3, 1).contiguous()
