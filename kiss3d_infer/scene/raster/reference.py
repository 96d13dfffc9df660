"""The rasterizer in plain torch: slow and short, for any device and float type.

What the faster rasterizers are tested against; autograd does its derivatives.
"""

import torch
from torch import Tensor

from kiss3d_infer.scene.raster import Fragments
from kiss3d_infer.scene.raster.edges import antialias, to_screen
from kiss3d_infer.scene.raster.texture import sample_texture

_CHUNK_ELEMENTS = 4_000_000  # pixels x faces examined at once


class TorchRasterizer:
    """Rasterizer that tests every pixel against every face."""

    @torch.no_grad()
    def rasterize(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Fragments:
        """See `Rasterizer.rasterize`."""
        height, width = resolution
        views = [_nearest_faces(view, faces, resolution) for view in clip]
        face = torch.stack([face for face, _ in views]).reshape(-1, height, width)
        depth = torch.stack([depth for _, depth in views]).reshape(-1, height, width)
        return Fragments(face, depth, clip, faces)

    def interpolate(self, attributes: Tensor, fragments: Fragments) -> Tensor:
        """See `Rasterizer.interpolate`."""
        weights = _barycentrics(fragments)  # [V, H, W, 3]
        corners = fragments.faces[(fragments.face - 1).clamp(min=0).long()].long()  # [V, H, W, 3]
        values = (weights.unsqueeze(-1) * attributes[corners]).sum(-2)
        return torch.where(fragments.face.unsqueeze(-1) > 0, values, torch.zeros_like(values))

    def antialias(self, image: Tensor, fragments: Fragments) -> Tensor:
        """See `Rasterizer.antialias`."""
        return antialias(image, fragments)

    def sample_texture(self, texture: Tensor, uv: Tensor) -> Tensor:
        """See `Rasterizer.sample_texture`."""
        return sample_texture(texture, uv)


def summed_face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Sum over each vertex's faces of (b - a) x (c - a): [N, 3]."""
    corners = faces.long()
    a, b, c = vertices[corners].unbind(1)
    normals = torch.linalg.cross(b - a, c - a)  # [F, 3]
    return torch.zeros_like(vertices).index_add(
        0, corners.flatten(), normals.repeat_interleave(3, dim=0)
    )


def _nearest_faces(
    clip: Tensor, faces: Tensor, resolution: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Face index + 1 and depth at every pixel of one view: [H * W] each."""
    height, width = resolution
    screen = to_screen(clip.unsqueeze(0), resolution)[0].double()
    z = clip[:, 2] / clip[:, 3]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([column.flatten(), row.flatten()], dim=-1).to(screen) + 0.5  # [P, 2]
    nearest = torch.ones(len(pixels), dtype=clip.dtype, device=clip.device)
    found = torch.zeros(len(pixels), dtype=torch.int32, device=clip.device)
    step = max(1, _CHUNK_ELEMENTS // len(pixels))
    for start in range(0, len(faces), step):
        corners = faces[start : start + step].long()
        depth = _depth_at(pixels, screen[corners], z[corners])  # [P, chunk], inf outside
        closest, index = depth.min(dim=1)
        is_nearer = closest < nearest
        nearest = torch.where(is_nearer, closest, nearest)
        found = torch.where(is_nearer, (index + start + 1).int(), found)
    return found, nearest


def _depth_at(pixels: Tensor, corners: Tensor, z: Tensor) -> Tensor:
    """z/w of the faces [C, 3, 2] at the pixels [P, 2], inf outside a face: [P, C]."""
    a, b, c = corners.unbind(1)

    def signed_area(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (
            r[..., 0] - p[..., 0]
        )

    area = signed_area(a, b, c)
    p = pixels.unsqueeze(1)
    weights = torch.stack(
        [signed_area(b, c, p), signed_area(c, a, p), signed_area(a, b, p)], dim=-1
    )
    covered = ((weights * area.sign()[:, None]) >= 0).all(-1) & (area.abs() > 0)
    depth = ((weights * z.double()).sum(-1) / area).to(z.dtype)
    return torch.where(covered & (depth >= -1), depth, torch.inf)


def _barycentrics(fragments: Fragments) -> Tensor:
    """Perspective-correct barycentric coordinates [V, H, W, 3], with gradients to clip."""
    clip = fragments.clip
    num_views, height, width = fragments.face.shape
    corners = fragments.faces[(fragments.face - 1).clamp(min=0).long()].long()  # [V, H, W, 3]
    view = torch.arange(num_views, device=clip.device).reshape(-1, 1, 1, 1)
    points = clip[view, corners]  # [V, H, W, 3, 4]
    x = (2 * torch.arange(width).to(clip) + 1) / width - 1
    y = 1 - (2 * torch.arange(height).to(clip) + 1) / height
    px = points[..., 0] - x.reshape(1, 1, -1, 1) * points[..., 3]  # [V, H, W, 3]
    py = points[..., 1] - y.reshape(1, -1, 1, 1) * points[..., 3]
    weights = px.roll(-1, -1) * py.roll(-2, -1) - py.roll(-1, -1) * px.roll(-2, -1)
    total = weights.sum(-1, keepdim=True)
    covered = fragments.face.unsqueeze(-1) > 0
    return weights / torch.where(covered, total, torch.ones_like(total))
