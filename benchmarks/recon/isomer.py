"""ISOMER's own settings (Unique3D, arXiv 2405.20343; Kiss3DGen's defaults) through our kernels.

A ball, 200 steps against images with silhouettes that push inward only, 100 steps against the
explicit target, every vertex painted by the views that see it; no clean-up, no texture.
"""

import torch
from scipy.spatial import cKDTree

from kiss3d_infer.bundle import Bundle
from kiss3d_infer.reconstruct.optimizer import DescentSettings
from kiss3d_infer.reconstruct.projection import Projector
from kiss3d_infer.reconstruct.refine import LossSettings, refine
from kiss3d_infer.reconstruct.starts import make_start
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.raster import vertex_normals

_ORIGINAL = {"stillness": 0.0, "steps_per_remesh": 1}
_FIRST = DescentSettings(edge_lengths=(0.1, 0.02), decay=0.995, **_ORIGINAL)
_SECOND = DescentSettings(
    edge_lengths=(0.02, 0.005), decay=0.99, ramp=5.0, length_gain=0.2, **_ORIGINAL
)
_FIRST_LOSS = LossSettings(expansion=0.1, is_two_sided=False)
_SECOND_LOSS = LossSettings(is_two_sided=False, explicit_every=20)
_SIZE = 512


def isomer(bundle: Bundle) -> Mesh:
    """A bundle's mesh with vertex colours."""
    target = Target.of(bundle)
    views = target.resized(min(_SIZE, target.size))
    ball = make_start("sphere", views)
    rough = refine(ball.vertices, ball.faces, views, _FIRST, 200, _FIRST_LOSS)
    made = refine(rough.vertices, rough.faces, views, _SECOND, 100, _SECOND_LOSS)
    return vertex_colored(made.vertices, made.faces, target)


@torch.no_grad()
def vertex_colored(vertices: Float32, faces: Int32, target: Target) -> Mesh:
    """Paint vertices by the views that see them, the others like the nearest that is seen."""
    positions, triangles = torch.from_numpy(vertices), torch.from_numpy(faces)
    normals = vertex_normals(positions, triangles)
    projector = Projector(target, positions, triangles, power=2)
    colors, weights = projector.values_at(positions, normals)
    seen = weights[:, 0] > 1e-3
    nearest = cKDTree(vertices[seen.numpy()]).query(vertices[(~seen).numpy()])[1]
    colors[~seen] = colors[seen][torch.from_numpy(nearest)]
    return Mesh(positions, triangles, normals=normals, vertex_colors=colors.clamp(0, 1))
