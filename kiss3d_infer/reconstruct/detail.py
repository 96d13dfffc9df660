"""The dense mesh's shading, kept on the simplified one as a normal map."""

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from kiss3d_infer.reconstruct.spread import spread
from kiss3d_infer.reconstruct.texture import at_texels
from kiss3d_infer.reconstruct.topology import Float32, Int32, Int64, compiled, incident_faces
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.raster import vertex_normals
from kiss3d_infer.scene.tangents import vertex_tangents

_NUM_ALTERNATIVES = 16
_LEAST_HEIGHT = 0.05
_INVISIBLE = 1e-3
"""A tilt that 8 bits cannot hold; set to 0, so that rounding does not speckle flat areas."""


def normal_map(mesh: Mesh, vertices: Float32, faces: Int32, size: int) -> Tensor:
    """Bake the normals of a dense mesh into a texture of a coarse one.

    Each texel's point on the coarse mesh takes the smooth normal at the nearest point of the dense
    mesh that faces the same way (else a thin wall would show its other side), written in the
    coarse mesh's frame there: interpolated normal and tangent (`vertex_tangents`, which viewers
    compute alike), orthonormalised at the texel.

    Args:
        mesh: the coarse mesh, unwrapped.
        vertices: [N, 3] of the dense mesh, in the same world.
        faces: [F, 3].
        size: side of the texture in texels.

    Returns:
        [size, size, 3] as `Material.normal_map` has it, row 0 at the top; texels beyond the charts
        continue the nearest one inside.
    """
    if mesh.uv is None:
        raise ValueError("a mesh without texture coordinates has no texels")
    attributes = torch.cat([mesh.vertices, smooth_normals(mesh), vertex_tangents(mesh)], 1)
    covered, values = at_texels(attributes, mesh.uv, mesh.faces, size)
    points, normals, tangents, handed = torch.split(values, [3, 3, 3, 1], 1)
    normals = normalize(normals, dim=1)
    dense = _nearest_normals(points, normals, vertices, faces)
    texels = torch.tensor([0.5, 0.5, 1.0]).repeat(size, size, 1)
    texels[covered] = _encoded(dense, normals, tangents, handed)
    return spread(texels, covered)


def _encoded(dense: Tensor, normals: Tensor, tangents: Tensor, handed: Tensor) -> Tensor:
    """World normals as colours of the frames (normal, tangent, handedness) [P, 3 | 3 | 1]."""
    across = tangents - normals * (tangents * normals).sum(1, keepdim=True)
    tangents = normalize(across, dim=1)
    bitangents = torch.linalg.cross(normals, tangents) * torch.where(handed < 0, -1.0, 1.0)
    frame = torch.stack([tangents, bitangents, normals], 1)  # [P, 3, 3]
    local = (frame @ dense[:, :, None])[:, :, 0]
    local = torch.where(local.abs() < _INVISIBLE, 0.0, local)
    local[:, 2] = local[:, 2].clamp(min=_LEAST_HEIGHT)  # the format has no normals from behind
    return normalize(local, dim=1) * 0.5 + 0.5


def _nearest_normals(points: Tensor, normals: Tensor, vertices: Float32, faces: Int32) -> Tensor:
    """Smooth normals [P, 3] of a dense mesh nearest to points that face along `normals`."""
    at_vertices = vertex_normals(torch.from_numpy(vertices), torch.from_numpy(faces)).numpy()
    starts, incident = incident_faces(faces, len(vertices))
    wanted = normals.numpy()
    tree = cKDTree(vertices)
    vertex = np.asarray(tree.query(points.numpy())[1], np.int64)
    astray = np.flatnonzero((at_vertices[vertex] * wanted).sum(1) <= 0)
    if len(astray):
        near = tree.query(points.numpy()[astray], k=min(_NUM_ALTERNATIVES, len(vertices)))[1]
        near = near.reshape(len(astray), -1)
        agrees = (at_vertices[near] * wanted[astray, None]).sum(2) > 0
        vertex[astray] = near[np.arange(len(astray)), agrees.argmax(1)]
    face, weights = _nearest_on_faces(points.numpy(), vertex, starts, incident, vertices, faces)
    found = (at_vertices[faces[face]] * weights[:, :, None]).sum(1)
    found = np.where((found * wanted).sum(1, keepdims=True) > 0, found, wanted)
    return normalize(torch.from_numpy(found.astype(np.float32)), dim=1)


@compiled
def _nearest_on_faces(
    points: Float32,
    vertex: Int64,
    starts: Int32,
    incident: Int32,
    vertices: Float32,
    faces: Int32,
) -> tuple[Int64, Float32]:
    """The face [P] around a given vertex [P] that is nearest to each point, and where: [P, 3]."""
    face = np.zeros(len(points), np.int64)
    weights = np.zeros((len(points), 3), np.float32)
    for p in range(len(points)):
        least = np.inf
        for i in range(starts[vertex[p]], starts[vertex[p] + 1]):
            a, b, c = faces[incident[i], 0], faces[incident[i], 1], faces[incident[i], 2]
            squared, v, w = _nearest_on_triangle(points[p], vertices[a], vertices[b], vertices[c])
            if squared < least:
                least = squared
                face[p] = incident[i]
                weights[p, 0], weights[p, 1], weights[p, 2] = 1 - v - w, v, w
    return face, weights


@compiled
def _nearest_on_triangle(
    point: Float32, a: Float32, b: Float32, c: Float32
) -> tuple[float, float, float]:
    """Squared distance from a triangle, and the weights v of b and w of c at its nearest point.

    Minimises |d - v e - w f|^2 over the triangle, where d = point - a, e = b - a, f = c - a.
    """
    dd, de, df, ee, ef, ff = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(3):
        d, e, f = float(point[k] - a[k]), float(b[k] - a[k]), float(c[k] - a[k])
        dd += d * d
        de += d * e
        df += d * f
        ee += e * e
        ef += e * f
        ff += f * f
    area = ee * ff - ef * ef
    if area > 0:
        v, w = (ff * de - ef * df) / area, (ee * df - ef * de) / area
        if v >= 0 and w >= 0 and v + w <= 1:
            return dd - v * de - w * df, v, w
    least, best_v, best_w = dd, 0.0, 0.0
    for side in range(3):  # ab, ac, bc
        if side == 0:
            v, w = min(max(de / max(ee, 1e-30), 0.0), 1.0), 0.0
        elif side == 1:
            v, w = 0.0, min(max(df / max(ff, 1e-30), 0.0), 1.0)
        else:
            w = min(max((df - de - ef + ee) / max(ee - 2 * ef + ff, 1e-30), 0.0), 1.0)
            v = 1 - w
        squared = dd - 2 * (v * de + w * df) + v * v * ee + 2 * v * w * ef + w * w * ff
        if squared < least:
            least, best_v, best_w = squared, v, w
    return least, best_v, best_w
