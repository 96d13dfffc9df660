"""Compiled tests of points against silhouettes, for placing depth maps in space."""

import numpy as np

from kiss3d_infer.reconstruct.topology import Bool, Float32, Int32, compiled


@compiled
def inside_silhouettes(
    points: Float32, world_to_clip: Float32, distances: Float32, limit: float
) -> Bool:
    """Which points lie within all of K silhouettes.

    Args:
        points: [P, 3] world; a point that is not finite is outside.
        world_to_clip: [K, 4, 4] of the silhouettes' cameras.
        distances: [K, S, S] signed distances in pixels to each silhouette's edge, positive inside.
        limit: the least distance that counts as within.
    """
    inside = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        inside[i] = _is_inside(
            points[i, 0], points[i, 1], points[i, 2], world_to_clip, distances, limit
        )
    return inside


@compiled
def nearest_depths(
    origin: Float32,
    rays: Float32,
    groups: Int32,
    counts: Int32,
    depths: Float32,
    world_to_clip: Float32,
    distances: Float32,
    limit: float,
    share: float,
) -> Float32:
    """For each group of rays, the last of the depths at which enough of it is within [G].

    Args:
        origin: [3] where the rays begin, world.
        rays: [P, 3] the ray of each pixel at depth 1.
        groups: [P] which group each ray belongs to, in [0, G).
        counts: [G] how many rays each group has.
        depths: [D] tried in this order.
        world_to_clip: [K, 4, 4], as for `inside_silhouettes`.
        distances: [K, S, S].
        limit: the least distance that counts as within.
        share: of a group's rays that must be within.

    Returns:
        [G] depths; nan for a group that is never within.
    """
    nearest = np.full(len(counts), np.nan, np.float32)
    for depth in depths:
        votes = np.zeros(len(counts), np.int32)
        for i in range(len(rays)):
            votes[groups[i]] += _is_inside(
                origin[0] + depth * rays[i, 0],
                origin[1] + depth * rays[i, 1],
                origin[2] + depth * rays[i, 2],
                world_to_clip,
                distances,
                limit,
            )
        for group in range(len(counts)):
            if votes[group] >= share * counts[group]:
                nearest[group] = depth
    return nearest


@compiled
def _is_inside(
    x: float, y: float, z: float, world_to_clip: Float32, distances: Float32, limit: float
) -> bool:
    size = distances.shape[1]
    for k in range(len(world_to_clip)):
        matrix = world_to_clip[k]
        w = matrix[3, 0] * x + matrix[3, 1] * y + matrix[3, 2] * z + matrix[3, 3]
        if not w > 0:  # behind the camera, or not finite
            return False
        across = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] * z + matrix[0, 3]) / w
        up = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] * z + matrix[1, 3]) / w
        column, row = (across + 1) * (size / 2), (1 - up) * (size / 2)
        if not (0 <= column < size and 0 <= row < size):
            return False
        if not distances[k, int(row), int(column)] > limit:
            return False
    return True
