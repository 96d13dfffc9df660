"""Colours or normals of surface points, blended from the views that see them well."""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.raster import rasterizer_for
from kiss3d_infer.scene.raster.threads import for_each_view

_LEAST_COSINE = 0.15
_RAMP_PIXELS = 3.0
_DEPTH_SIZE = 1024
_DEPTH_SLACK = 0.02
_DEPTH_JUMP = 0.06
"""World units: how far behind the nearest surface still counts as on it; what breaks a surface."""


class Projector:
    """Looks up what the views of a target show at points on a mesh.

    A view's say is a power of the cosine at which it sees the point, times its own weight, times a
    ramp that falls to 0 within three pixels of a silhouette or of an edge where the depth jumps.

    Args:
        target: the views.
        vertices: [N, 3] the mesh that occludes, on the target's device.
        faces: [F, 3].
        images: [V, S, S, C] what is looked up, the target's colours if None.
        power: of the cosine; a high one prefers the view that sees a point best.
    """

    def __init__(
        self,
        target: Target,
        vertices: Tensor,
        faces: Tensor,
        images: Tensor | None = None,
        power: int = 4,
    ) -> None:
        self._cameras = target.cameras
        self._power = power
        self._weights = view_weights(target.cameras) * target.confidence
        self._depth = _depth_maps(target.cameras, vertices, faces)
        self._images = (target.rgb if images is None else images).permute(0, 3, 1, 2)
        self._ramp = _edge_ramps(target.alpha, self._depth)

    def values_at(self, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
        """Blend the views at surface points.

        Args:
            points: [P, 3] world positions on the mesh.
            normals: [P, 3] unit normals there.

        Returns:
            values [P, C], 0 where no view has a say, and total weights [P, 1].
        """
        clip = self._cameras.clip(points)
        depth = clip[..., 3]
        places = clip[..., :2] / depth[..., None] * points.new_tensor([1.0, -1.0])
        visible = depth < _look_up(self._depth, places, "nearest")[..., 0] + _DEPTH_SLACK
        visible &= (places.abs() < 1).all(-1)
        toward = self._cameras.positions.to(points)[:, None] - points
        cosine = (functional.normalize(toward, dim=-1) * normals).sum(-1)
        weight = cosine.clamp(min=0) ** self._power * (visible & (cosine > _LEAST_COSINE))
        weight = weight[..., None] * _look_up(self._ramp, places, "bilinear")
        weight = weight * self._weights.to(points)[:, None, None]
        total = weight.sum(0)
        blended = (weight * _look_up(self._images, places, "bilinear")).sum(0)
        return blended / total.clamp(min=1e-9), total


def view_weights(cameras: Cameras) -> Tensor:
    """How much each view is trusted [V]: 1 at the front, 0.9 at the back, 0.6 at the sides.

    A generated front is the best and its opposite the next best; the sides disagree most.
    """
    weights = []
    for azimuth in cameras.azimuths:
        along = math.cos(math.radians(azimuth))
        weights.append(0.6 + (0.4 if along > 0 else 0.3) * along**2)
    return torch.tensor(weights)


def _depth_maps(cameras: Cameras, vertices: Tensor, faces: Tensor) -> Tensor:
    """Distance along each camera's axis of its nearest surface, [V, 1, S, S]; far = background."""
    rasterizer = rasterizer_for(vertices.device)
    fragments = rasterizer.rasterize(cameras.clip(vertices), faces, (_DEPTH_SIZE, _DEPTH_SIZE))
    return 1 / cameras.nearness(fragments.depth)[:, None]


def _edge_ramps(alpha: Tensor, depth: Tensor) -> Tensor:
    """[V, 1, S, S] in [0, 1]: 0 on silhouettes and depth jumps, 1 three view pixels inside."""
    per_pixel = _DEPTH_SIZE / alpha.shape[1]
    wide = functional.interpolate(alpha.permute(0, 3, 1, 2), size=depth.shape[2:])
    nearest = -functional.max_pool2d(-depth, 3, stride=1, padding=1)
    farthest = functional.max_pool2d(depth, 3, stride=1, padding=1)
    smooth = (wide > 0.5) & (farthest - nearest < _DEPTH_JUMP)
    masks = smooth[:, 0].cpu().numpy()
    distances = for_each_view(lambda v: ndimage.distance_transform_edt(masks[v]), len(masks))
    ramps = torch.from_numpy(np.stack(distances)[:, None]) / (per_pixel * _RAMP_PIXELS)
    return ramps.clamp(0, 1).to(alpha)


def _look_up(images: Tensor, places: Tensor, mode: str) -> Tensor:
    """Values [V, P, C] of images [V, C, S, S] at places [V, P, 2] in [-1, 1], y down."""
    found = functional.grid_sample(
        images, places[:, None], mode=mode, padding_mode="border", align_corners=False
    )
    return found[:, :, 0].transpose(1, 2)
