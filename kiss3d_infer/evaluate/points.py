"""Points on a mesh's surface, all of it or what can be seen from outside."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.topology import Float64
from kiss3d_infer.scene.camera import Cameras, all_around
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.raster import rasterizer_for

_NUM_DIRECTIONS = 48
_BATCH = 8  # views drawn at once: more would only take memory
_DEPTH_SIZE = 512
_DISTANCE = 10.0  # in radii of the mesh: nearly parallel rays
_STEEPEST = 5.0  # seen flatter than that, a surface spans too much depth within a pixel to tell
_MAX_ROUNDS = 100


@dataclass(frozen=True)
class SurfacePoints:
    """Points on a surface, in random order.

    Attributes:
        positions: [P, 3] world units.
        normals: [P, 3] unit normals of the faces that the points lie on.
    """

    positions: Float64
    normals: Float64

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Self:
        return type(self)(self.positions[which], self.normals[which])

    def moved(self, matrix: Float64) -> Self:
        """The points after a similarity transform [4, 4]."""
        linear = matrix[:3, :3]
        rotation = linear / np.cbrt(np.linalg.det(linear))
        return type(self)(self.positions @ linear.T + matrix[:3, 3], self.normals @ rotation.T)


def sample_points(
    mesh: Mesh,
    num_points: int = 16_384,
    *,
    seed: int | tuple[int, ...] = 0,
    only_visible: bool = False,
) -> SurfacePoints:
    """Draw points uniformly by area; the same mesh and seed give the same points.

    Args:
        mesh: with at least one face of positive area.
        num_points: how many.
        seed: of the random numbers.
        only_visible: leave out what no direction sees, such as the inside of a CAD model.

    Raises:
        InputError: the mesh has no area, or next to nothing of it can be seen from outside.
    """
    import trimesh

    surface = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    if len(mesh.faces) == 0 or not surface.area > 0:
        raise InputError("the mesh has no surface", fix="give one with a face of positive area")
    random = np.random.default_rng(seed)
    depth = _DepthMaps.of(mesh) if only_visible else None
    found: list[SurfacePoints] = []
    for _ in range(_MAX_ROUNDS):
        positions, face = trimesh.sample.sample_surface(surface, num_points, seed=random)
        drawn = SurfacePoints(np.asarray(positions), np.asarray(surface.face_normals[face]))
        found.append(drawn if depth is None else drawn[depth.see(drawn)])
        if sum(map(len, found)) >= num_points:
            return SurfacePoints(
                np.concatenate([points.positions for points in found])[:num_points],
                np.concatenate([points.normals for points in found])[:num_points],
            )
    raise InputError(
        f"less than 1/{_MAX_ROUNDS} of the mesh's surface can be seen from outside",
        fix="sample all of it",
    )


@dataclass(frozen=True)
class _DepthMaps:
    """How far a mesh lies from cameras all around it.

    Attributes:
        cameras: around a mesh with the bounding sphere 1.
        centre: [3], of the mesh's bounding box.
        radius: of its bounding sphere about that.
        distance: [V, S, S] along the viewing axis, in radii.
    """

    cameras: Cameras
    centre: Float64
    radius: float
    distance: Float64

    @classmethod
    def of(cls, mesh: Mesh) -> Self:
        used = mesh.vertices[torch.unique(mesh.faces.long())]
        centre = (used.amin(0) + used.amax(0)) / 2
        radius = float((used - centre).norm(dim=1).max())
        vertices, cameras = (mesh.vertices - centre) / radius, _cameras_around()
        distances = []
        for start in range(0, len(cameras), _BATCH):
            some = slice(start, start + _BATCH)
            batch = replace(
                cameras, azimuths=cameras.azimuths[some], elevations=cameras.elevations[some]
            )
            fragments = rasterizer_for("cpu").rasterize(
                batch.clip(vertices), mesh.faces, (_DEPTH_SIZE, _DEPTH_SIZE)
            )
            distances.append(1 / cameras.nearness(fragments.depth))
        return cls(cameras, centre.double().numpy(), radius, torch.cat(distances).numpy())

    def see(self, points: SurfacePoints) -> NDArray[np.bool_]:
        """Which points no surface hides from at least one camera, [P].

        A point may lie up to three quarters of a pixel from the centre of its own, so that the
        distance there differs by as much times the surface's slope.
        """
        positions = (points.positions - self.centre) / self.radius
        matrices = self.cameras.world_to_clip.double().numpy()
        seen = np.zeros(len(points), bool)
        for view, eye in enumerate(self.cameras.positions.double().numpy()):
            x, y, _, w = matrices[view, :, :3] @ positions.T + matrices[view, :, 3:]
            column = np.clip((x / w + 1) / 2 * _DEPTH_SIZE, 0, _DEPTH_SIZE - 1).astype(int)
            row = np.clip((1 - y / w) / 2 * _DEPTH_SIZE, 0, _DEPTH_SIZE - 1).astype(int)
            toward = (eye - positions) / np.linalg.norm(eye - positions, axis=1, keepdims=True)
            cosine = np.abs((toward * points.normals).sum(1))
            slope = np.minimum(np.tan(np.arccos(np.minimum(cosine, 1))), _STEEPEST)
            pixel = 2 * w / (self.cameras.focal * _DEPTH_SIZE)
            farthest = self.distance[view, row, column] + pixel * (0.75 * slope + 0.25)
            seen |= w <= farthest
        return seen


def _cameras_around() -> Cameras:
    azimuths, elevations = all_around(_NUM_DIRECTIONS)
    return Cameras(
        azimuths,
        elevations,
        distance=_DISTANCE,
        fov=2 * math.degrees(math.asin(1 / _DISTANCE)) * 1.01,
        near=_DISTANCE - 1.1,
        far=_DISTANCE + 1.1,
    )
