"""The one camera and scale convention.

World: right-handed, Y up, front = +Z (as glTF). A camera at azimuth a, elevation e and distance d
sits at d (cos e sin a, sin e, cos e cos a) and looks at the origin, so azimuth 0 sees the front and
azimuth 90 stands on +X, the subject's own left. Objects are centred, longest half-extent 1.

Camera: x right, y up, z toward the viewer (OpenGL). Angles are degrees at this interface.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """A set of pinhole cameras with square images that look at the origin.

    Attributes:
        azimuths: degrees about +Y, one per view; 0 looks at the front (+Z), 90 stands on +X.
        elevations: degrees above the horizon, one per view, within (-90, 90).
        distance: from the origin, in world units.
        fov: full opening angle in degrees (vertical = horizontal).
        near: distance of the near clipping plane.
        far: distance of the far clipping plane.
    """

    azimuths: tuple[float, ...]
    elevations: tuple[float, ...]
    distance: float = 4.5
    fov: float = 30.0
    near: float = 0.1
    far: float = 20.0

    def __len__(self) -> int:
        return len(self.azimuths)

    @property
    def focal(self) -> float:
        """Focal length in units of half the image's width: 1 / tan(fov / 2)."""
        return 1.0 / math.tan(math.radians(self.fov) / 2)

    @cached_property
    def rotations(self) -> Tensor:
        """Camera-to-world rotations [V, 3, 3], float32; columns are the camera's x, y, z axes."""
        azimuth = torch.deg2rad(torch.tensor(self.azimuths, dtype=torch.float64))
        elevation = torch.deg2rad(torch.tensor(self.elevations, dtype=torch.float64))
        sin_a, cos_a, zero = azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)
        sin_e, cos_e = elevation.sin(), elevation.cos()
        right = torch.stack([cos_a, zero, -sin_a], -1)
        toward_viewer = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], -1)
        up = torch.linalg.cross(toward_viewer, right)
        return torch.stack([right, up, toward_viewer], -1).float()

    @cached_property
    def positions(self) -> Tensor:
        """Camera centres in the world [V, 3], float32."""
        return self.rotations[:, :, 2] * self.distance

    @cached_property
    def world_to_camera(self) -> Tensor:
        """Rigid transforms [V, 4, 4], float32, acting on column vectors (x, y, z, 1)."""
        matrices = torch.eye(4).repeat(len(self), 1, 1)
        matrices[:, :3, :3] = self.rotations.transpose(1, 2)
        matrices[:, 2, 3] = -self.distance
        return matrices

    @cached_property
    def projection(self) -> Tensor:
        """OpenGL projection [4, 4]: clip y up, z/w from -1 (near) to 1 (far)."""
        near, far = self.near, self.far
        matrix = torch.zeros(4, 4)
        matrix[0, 0] = matrix[1, 1] = self.focal
        matrix[2, 2] = -(far + near) / (far - near)
        matrix[2, 3] = -2 * far * near / (far - near)
        matrix[3, 2] = -1.0
        return matrix

    @cached_property
    def world_to_clip(self) -> Tensor:
        """World to OpenGL clip coordinates [V, 4, 4], float32, acting on column vectors."""
        return self.projection @ self.world_to_camera

    def clip(self, points: Tensor) -> Tensor:
        """Project world points [N, 3] to clip coordinates [V, N, 4] on the points' device."""
        matrices = self.world_to_clip.to(points)
        return points @ matrices[:, :, :3].transpose(1, 2) + matrices[:, None, :, 3]

    def nearness(self, depth: Tensor) -> Tensor:
        """1 / distance along the viewing axis, from clip z/w (`projection` inverted), any shape."""
        return (self.far + self.near - depth * (self.far - self.near)) / (2 * self.near * self.far)


def all_around(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Azimuths and elevations in degrees, even over the sphere: equal heights, golden angles."""
    heights = [1 - (2 * step + 1) / count for step in range(count)]
    golden = 180 * (3 - math.sqrt(5))
    azimuths = tuple(golden * step % 360 for step in range(count))
    return azimuths, tuple(math.degrees(math.asin(height)) for height in heights)
