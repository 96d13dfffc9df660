"""Texture of a reconstructed mesh."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn import functional

from kiss3d_infer.reconstruct.atlas import Atlas, unwrap
from kiss3d_infer.reconstruct.projection import Projector
from kiss3d_infer.reconstruct.spread import spread
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import Float32, Int32, directed_edges
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.raster import rasterizer_for, vertex_normals

_CONFIDENT = 0.05
"""Weight from which on a point's projected colour is taken as it is."""
_UNSEEN = 1e-3
_DATA_STIFFNESS = 50.0
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Painted:
    """A mesh with its texture.

    Attributes:
        mesh: in main memory.
        weights: [T, T] how well the views see each texel; negative between the charts.
    """

    mesh: Mesh
    weights: Tensor

    @property
    def unseen_share(self) -> float:
        """The share of the charts' texels that no view has seen."""
        inside = self.weights[self.weights >= 0]
        return float((inside <= _UNSEEN).float().mean()) if len(inside) else 0.0

    @property
    def seen_map(self) -> Tensor:
        """A picture [T, T, 3]: white where seen well, red where filled, grey between the charts."""
        trust = (self.weights / _CONFIDENT).clamp(0, 1)[..., None]
        color = torch.lerp(torch.tensor([0.8, 0.1, 0.1]), torch.ones(3), trust)
        return torch.where(self.weights[..., None] < 0, torch.tensor(0.5), color)


def textured(vertices: Float32, faces: Int32, target: Target, size: int) -> Painted:
    """Unwrap a mesh and paint it with the target's views.

    Args:
        vertices: [N, 3] world units.
        faces: [F, 3] a closed manifold.
        target: the views; its device does the work.
        size: side of the square texture in texels.
    """
    device = target.rgb.device
    atlas = unwrap(vertices, faces, size)
    positions, triangles = torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device)
    normals = vertex_normals(positions, triangles)
    projector = Projector(target, positions, triangles)
    colors, weights = projector.values_at(positions, normals)
    filled = fill_unseen(vertices, faces, colors.cpu().numpy(), weights[:, 0].cpu().numpy())
    attributes = torch.cat([positions, normals, torch.from_numpy(filled).to(device)], 1)
    texture, seen = _bake(projector, atlas, attributes, size)
    mesh = Mesh(
        vertices=torch.from_numpy(vertices)[atlas.source],
        faces=atlas.faces,
        normals=normals.cpu()[atlas.source],
        uv=atlas.uv,
        materials=(Material("surface", texture=texture.cpu()),),
    )
    return Painted(mesh, seen.cpu())


def fill_unseen(vertices: Float32, faces: Int32, colors: Float32, weights: Float32) -> Float32:
    """Continue the colours of seen vertices smoothly over those that no view has seen.

    Minimises the colour differences along the edges (over edge length) plus, at seen vertices, the
    difference from the colour seen. Solved directly: on large unseen areas conjugate gradients
    would stop early and leave the middle black.

    Args:
        vertices: [N, 3].
        faces: [F, 3] closed.
        colors: [N, 3] as seen.
        weights: [N] total view weights.

    Returns:
        Colours [N, 3].
    """
    seen = weights > _UNSEEN
    if not seen.any():
        return np.full(colors.shape, 0.8, np.float32)
    start, end = directed_edges(faces)
    pull = 1 / (np.linalg.norm(vertices[start] - vertices[end], axis=1).astype(np.float64) + 1e-6)
    count = len(vertices)
    # On a closed mesh the directed edges of the faces are symmetric, and so is the sum.
    pulls = sparse.coo_matrix((pull, (start, end)), shape=(count, count)).tocsr()
    pulls = pulls + pulls.T
    degree = np.asarray(pulls.sum(1)).ravel()
    confidence = np.minimum(weights / _CONFIDENT, 1.0)
    # A shell that is nowhere seen takes the mean colour.
    stiffness = np.where(seen, confidence * _DATA_STIFFNESS, 1e-9) * degree.mean()
    wanted = np.where(seen[:, None], colors, colors[seen].mean(0))
    system = (sparse.diags(degree + stiffness) - pulls).tocsc()
    solution = splu(system).solve(stiffness[:, None] * wanted)
    colors_everywhere: Float32 = np.clip(solution, 0, 1).astype(np.float32)
    return colors_everywhere


def at_texels(attributes: Tensor, uv: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Interpolate vertex attributes at the surface points that the texels of an atlas show.

    Args:
        attributes: [M, C] of the atlas vertices; their device does the work.
        uv: [M, 2] in [0, 1], v up.
        faces: [F, 3].
        size: side of the texture in texels.

    Returns:
        Which texels lie in a chart, [size, size] with row 0 at the top, and the values there,
        [P, C].
    """
    device = attributes.device
    clip = functional.pad(uv * 2 - 1, (0, 2)).to(device)  # z = 0
    clip[:, 3] = 1
    rasterizer = rasterizer_for(device)
    fragments = rasterizer.rasterize(clip[None], faces.to(device), (size, size))
    covered = fragments.face[0] > 0
    return covered, rasterizer.interpolate(attributes, fragments)[0][covered]


def _bake(
    projector: Projector, atlas: Atlas, attributes: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Paint the texels of all charts, then the space between them.

    Args:
        projector: gives the colour of surface points.
        atlas: where each face lies in the texture.
        attributes: [N, 9] position, normal and fallback colour of the original vertices.
        size: side of the texture.

    Returns:
        The texture [size, size, 3], row 0 at the top, and the texels' weights as in `Painted`.
    """
    device = attributes.device
    laid_out = attributes[atlas.source.to(device)]
    covered, values = at_texels(laid_out, atlas.uv, atlas.faces, size)
    positions, normals, fallback = torch.split(values, 3, dim=1)
    painted, weights = [], []
    for chunk in torch.split(torch.arange(len(values), device=device), _CHUNK):
        normal = functional.normalize(normals[chunk], dim=1)
        color, weight = projector.values_at(positions[chunk], normal)
        trust = (weight / _CONFIDENT).clamp(max=1)
        painted.append(torch.lerp(fallback[chunk], color, trust))
        weights.append(weight[:, 0])
    texture = torch.zeros(size, size, 3, device=device)
    texture[covered] = torch.cat(painted)
    seen = torch.full((size, size), -1.0, device=device)
    seen[covered] = torch.cat(weights)
    return spread(texture, covered), seen
