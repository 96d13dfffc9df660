"""The surface that no view sees, closed by the smallest film that its rim can carry.

From four views at elevation 5 nothing tells where an underside lies. The silhouettes alone leave a
bulge there, some hundredths of the object deep; most real undersides are flat.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32, directed_edges
from kiss3d_infer.scene.raster import rasterizer_for

_SIZE = 512
_STIFFNESS = 1e-8
"""Pull toward the old place: holds components that are nowhere seen."""


def with_film(vertices: Float32, faces: Int32, target: Target) -> Float32:
    """Move the vertices that no view sees to the means of their neighbours, all at once.

    That is the harmonic surface over the rim of what is seen: flat where the rim is.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3] closed.
        target: its cameras see; its device rasterizes.

    Returns:
        New vertices [N, 3].
    """
    seen = seen_vertices(vertices, faces, target)
    free = np.flatnonzero(~seen)
    if len(free) == 0 or not seen.any():
        return vertices
    start, end = directed_edges(faces)
    size = len(vertices)
    joined = sparse.coo_matrix((np.ones(len(start)), (start, end)), shape=(size, size)).tocsr()
    degree = np.asarray(joined.sum(1)).ravel()
    laplacian = (sparse.diags(degree) - joined).tocsr()[free]
    system = laplacian[:, free] + _STIFFNESS * sparse.identity(len(free))
    wanted = _STIFFNESS * vertices[free] - laplacian[:, seen] @ vertices[seen].astype(np.float64)
    moved = vertices.copy()
    moved[free] = splu(system.tocsc()).solve(wanted).astype(np.float32)
    return moved


@torch.no_grad()
def seen_vertices(vertices: Float32, faces: Int32, target: Target) -> NDArray[np.bool_]:
    """Which vertices [N] have a face that some view shows."""
    device = target.alpha.device
    positions, triangles = torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device)
    clip = target.cameras.clip(positions)
    fragments = rasterizer_for(device).rasterize(clip, triangles, (_SIZE, _SIZE))
    shown = torch.unique(fragments.face.long())
    shown = shown[shown > 0] - 1
    seen = torch.zeros(len(vertices), dtype=torch.bool, device=device)
    seen[triangles[shown].long().flatten()] = True
    result: NDArray[np.bool_] = seen.cpu().numpy()
    return result
