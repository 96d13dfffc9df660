"""Shapes whose measures are known by hand."""

import numpy as np
import torch
import trimesh

from kiss3d_infer.scene.mesh import Mesh


def as_mesh(*shapes: trimesh.Trimesh) -> Mesh:
    """One mesh of all shapes, vertices and faces in their order."""
    whole = trimesh.util.concatenate(list(shapes))
    return Mesh(
        torch.tensor(whole.vertices, dtype=torch.float32),
        torch.tensor(whole.faces, dtype=torch.int32),
    )


def ball(radius: float = 1.0, center: tuple[float, ...] = (0, 0, 0)) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(4, radius).apply_translation(center)


def box(
    extents: tuple[float, ...] = (1, 1, 1), center: tuple[float, ...] = (0, 0, 0)
) -> trimesh.Trimesh:
    return trimesh.creation.box(extents).apply_translation(center)


def inside_out(shape: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(shape.vertices, shape.faces[:, ::-1], process=False)


def open_box() -> trimesh.Trimesh:
    """A unit box about the origin without its top (+Y)."""
    whole = box()
    return trimesh.Trimesh(
        whole.vertices, whole.faces[whole.face_normals[:, 1] < 0.5], process=False
    )


def square(height: float = 0.0, side: float = 1.0) -> Mesh:
    """A horizontal square of one side from the origin, looking up (+Y)."""
    corners = torch.tensor([[0.0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]]) * side
    corners[:, 1] = height
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32))


def flag() -> trimesh.Trimesh:
    """Parts in three directions from a pole: no turn about Y maps it to itself."""
    return trimesh.util.concatenate(
        [
            box((0.3, 2.0, 0.2)),
            box((0.2, 0.3, 1.0), (0, 0.7, 0.6)),
            box((0.6, 0.2, 0.2), (0.4, -0.5, 0)),
        ]
    )


def turned(shape: trimesh.Trimesh, yaw: float) -> trimesh.Trimesh:
    """The shape turned about Y, +Z toward +X."""
    angle = np.radians(yaw)
    return shape.copy().apply_transform(trimesh.transformations.rotation_matrix(angle, [0, 1, 0]))
