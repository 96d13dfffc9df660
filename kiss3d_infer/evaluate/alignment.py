"""Bringing two meshes to the same place, size and heading before they are compared."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree

from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate.geometry import chamfer_mean
from kiss3d_infer.evaluate.points import SurfacePoints
from kiss3d_infer.reconstruct.topology import Float64
from kiss3d_infer.scene.mesh import Mesh

Normalization = Literal["none", "cube"]
Alignment = Literal["none", "yaw", "icp"]

_NUM_YAWS = 24
_NUM_POINTS = 4096  # enough to find a pose
_ICP_ROUNDS, _ICP_PROGRESS = 50, 1e-7


def normalizing(vertices: Float64, normalization: Normalization) -> Float64:
    """The transform [4, 4] that normalizes a mesh.

    Args:
        vertices: [N, 3].
        normalization: "cube" centres the bounding box and scales its longest side to [-1, 1]
            (Kiss3DGen, arXiv 2503.01370, section 4.3); "none" does nothing.

    Raises:
        InputError: all vertices coincide.
    """
    matrix = np.eye(4)
    if normalization == "cube":
        low, high = vertices.min(0), vertices.max(0)
        half_extent = (high - low).max() / 2
        if not half_extent > 0:
            raise InputError("the mesh has no extent: all its vertices coincide")
        matrix[:3] = np.c_[np.eye(3), -(low + high) / 2] / half_extent
    return matrix


def turning(yaw: float) -> Float64:
    """The rotation [4, 4] by `yaw` degrees about +Y, which turns +Z toward +X."""
    matrix = np.eye(4)
    cosine, sine = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    matrix[0, [0, 2]], matrix[2, [0, 2]] = (cosine, sine), (-sine, cosine)
    return matrix


def moved(mesh: Mesh, matrix: Float64) -> Mesh:
    """The mesh after a similarity transform [4, 4]."""
    transform = torch.from_numpy(matrix)
    linear = transform[:3, :3]
    rotation = linear / torch.linalg.det(linear) ** (1 / 3)
    vertices = mesh.vertices.double() @ linear.T + transform[:3, 3]
    normals = None if mesh.normals is None else (mesh.normals.double() @ rotation.T).float()
    return replace(mesh, vertices=vertices.float(), normals=normals)


def aligning(
    vertices: Float64,
    points: SurfacePoints,
    truth: SurfacePoints,
    normalization: Normalization,
    *,
    refined: bool,
) -> tuple[Float64, float]:
    """Find the transform that brings a mesh nearest to the truth.

    Of 24 headings about the world's Y axis, 15 degrees apart, the one with the least `chamfer_mean`
    is taken; turning changes the bounding box, so each is normalized anew. Refining moves it on by
    rigid ICP, unless that makes the distance larger.

    Args:
        vertices: [N, 3] of the mesh as it is.
        points: on it, as it is.
        truth: points on the true mesh, normalized.
        normalization: of the mesh after turning.
        refined: whether to run ICP.

    Returns:
        The whole transform [4, 4], normalization included, and the heading in degrees.
    """
    from trimesh.registration import icp

    few, tree = points[:_NUM_POINTS].positions, cKDTree(truth[:_NUM_POINTS].positions)

    def distance(matrix: Float64) -> float:
        return chamfer_mean(few @ matrix[:3, :3].T + matrix[:3, 3], tree)

    candidates = []
    for yaw in np.arange(_NUM_YAWS) * 360 / _NUM_YAWS:
        turn = turning(yaw)
        matrix = normalizing(vertices @ turn[:3, :3].T, normalization) @ turn
        candidates.append((distance(matrix), float(yaw), matrix))
    best, yaw, matrix = min(candidates, key=lambda candidate: candidate[:2])
    if refined:
        found, _, _ = icp(
            few,
            tree.data,
            initial=matrix,
            threshold=_ICP_PROGRESS,
            max_iterations=_ICP_ROUNDS,
            reflection=False,
            scale=False,  # matching one way only, a free scale would shrink the mesh
        )
        if distance(found) < best:
            matrix = found
    return matrix, yaw
