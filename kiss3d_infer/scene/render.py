"""Pictures of a mesh: shaded colour, normals, coverage and depth, and the bundle made of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.color import to_srgb
from kiss3d_infer.scene.gloss import Gloss
from kiss3d_infer.scene.lighting import ALBEDO, STUDIO, Light, Lighting, Shown
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.raster import rasterizer_for
from kiss3d_infer.scene.surface import Surface

__all__ = ["ALBEDO", "STUDIO", "Lighting", "Views", "bundle_of", "render_bundle", "render_views"]

_TEXELS_PER_PIXEL = 2  # a texture wider than this many times the picture is reduced first
_SAMPLES_AT_ONCE = 2**24
"""On CUDA, where some 150 bytes are held per sample."""


@dataclass(frozen=True)
class Views:
    """What V cameras see; row 0 is the top."""

    rgb: Tensor  # [V, 3, H, W] sRGB in [0, 1] on white
    normals: Tensor  # [V, 3, H, W] unit, in the world, toward the viewer; 0 outside
    alpha: Tensor  # [V, 1, H, W] coverage in [0, 1]
    depth: Tensor  # [V, 1, H, W] nearest distance along the viewing axis, world units; 0 outside


def render_views(
    mesh: Mesh,
    cameras: Cameras,
    size: int,
    *,
    lighting: Light = STUDIO,
    smooth: bool = True,
    supersampling: int = 2,
    device: torch.device | str = "cpu",
) -> Views:
    """Draw a mesh as it stands in the world (see `Mesh.normalized`).

    Both sides of a surface are drawn, each lit as if it faced the viewer. Opacity is ignored. The
    same input gives the same bits on every run on the CPU.

    Args:
        mesh: in front of the cameras.
        cameras: V of them.
        size: height and width in pixels.
        lighting: `ALBEDO` for plain colours.
        smooth: False draws facets.
        supersampling: samples per pixel and axis, averaged with equal weights.
        device: where to draw, and where the result lies.
    """
    surface = Surface.of(mesh, smooth, _TEXELS_PER_PIXEL * size * supersampling, device)
    at_once = _views_at_once(surface, size * supersampling)
    pictures = [
        _averaged(_samples(surface, some, size * supersampling, lighting), supersampling)
        for some in _split(cameras, at_once)
    ]
    picture = torch.cat(pictures).permute(0, 3, 1, 2)  # [V, 8, H, W]
    linear, normals, alpha, nearness = torch.split(picture, [3, 3, 1, 1], dim=1)
    linear = linear / torch.where(alpha > 0, alpha, 1.0)
    rgb = to_srgb(linear.clamp(0, 1)) * alpha + (1 - alpha)
    depth = torch.where(nearness > 0, 1 / nearness, 0.0)
    return Views(rgb, normalize(normals, dim=1, eps=1e-6), alpha, depth)


def render_bundle(
    mesh: Mesh,
    layout: BundleLayout = PUBLISHED,
    tile: int = 512,
    *,
    lighting: Light = STUDIO,
    device: torch.device | str = "cpu",
) -> Bundle:
    """Draw the bundle of a mesh that is `Mesh.normalized`, with tiles of `tile` pixels.

    It lies in main memory, wherever it was drawn.
    """
    views = render_views(mesh, layout.cameras, tile, lighting=lighting, device=device)
    return bundle_of(views, layout)


def bundle_of(views: Views, layout: BundleLayout) -> Bundle:
    """The views of a layout's cameras as a bundle, in main memory."""
    covered = views.alpha > 0
    opaque = (views.rgb - (1 - views.alpha)) / torch.where(covered, views.alpha, 1.0)
    return Bundle.from_views(opaque, views.normals, views.alpha, layout)


def _views_at_once(surface: Surface, size: int) -> int:
    """One on the CPU: pictures of all views at once would not stay in the processor's cache."""
    return max(1, _SAMPLES_AT_ONCE // size**2) if surface.vertices.is_cuda else 1


def _split(cameras: Cameras, count: int) -> list[Cameras]:
    """The same cameras, at most `count` in each set."""
    pieces = [slice(start, start + count) for start in range(0, len(cameras), count)]
    azimuths, elevations = cameras.azimuths, cameras.elevations
    return [replace(cameras, azimuths=azimuths[p], elevations=elevations[p]) for p in pieces]


def _averaged(samples: Tensor, supersampling: int) -> Tensor:
    """Pixels [V, H, W, 8] from their samples [V, S, S, 8]; of the nearness the greatest."""
    steps = range(supersampling)
    blocks = [samples[:, y::supersampling, x::supersampling] for y in steps for x in steps]
    picture, nearness = blocks[0].clone(), blocks[0][..., 7].clone()
    for block in blocks[1:]:
        picture += block
        torch.maximum(nearness, block[..., 7], out=nearness)
    picture /= len(blocks)
    picture[..., 7] = nearness
    return picture


def _samples(surface: Surface, cameras: Cameras, size: int, lighting: Light) -> Tensor:
    """One sample per pixel of V views, 0 outside the mesh.

    Returns:
        [V, S, S, 8]: linear light (3), world normal (3), coverage, 1 / depth.
    """
    device, num_views = surface.vertices.device, len(cameras)
    rasterizer = rasterizer_for(device)
    corners = surface.vertices.flatten(0, 1)  # [3 F, 3]
    faces = torch.arange(len(corners), dtype=torch.int32, device=device).reshape(-1, 3)
    fragments = rasterizer.rasterize(cameras.clip(corners), faces, (size, size))
    where = fragments.face.flatten().nonzero().flatten()  # [P]: only these are computed
    face = fragments.face.flatten()[where].long() - 1
    view = where // size**2

    interpolated = rasterizer.interpolate(surface.attributes, fragments).flatten(0, 2)[where]
    normals, colors, uv = torch.split(interpolated, surface.widths, dim=1)
    behind = _seen_from_behind(surface.vertices, cameras)[view, face, None]
    normals = normalize(torch.where(behind, -normals, normals), dim=1)
    rotations = cameras.rotations.to(device)
    gloss = None
    if surface.gloss is not None and lighting.sees_gloss:
        values = surface.gloss.at(surface.material_index[face], uv)
        _, roughness, metallic = torch.split(values, 1, dim=1)
        gloss = Gloss(metallic, roughness, _to_viewer(cameras, where, size, rotations))
    albedo = surface.albedo(face, colors, uv)
    light = lighting.shade(Shown(albedo, normals, view, rotations, gloss))

    nearness = cameras.nearness(fragments.depth.flatten()[where, None])
    values = torch.cat([light, normals, torch.ones_like(nearness), nearness], dim=1)
    picture = values.new_zeros(num_views * size**2, values.shape[1])
    picture[where] = values
    return picture.reshape(num_views, size, size, -1)


def _to_viewer(cameras: Cameras, where: Tensor, size: int, rotations: Tensor) -> Tensor:
    """Unit vectors [P, 3] to the viewer, in the world, from what flat indices [P] show."""
    view, row, column = where // size**2, where // size % size, where % size
    right, up = (2 * column + 1) / size - 1, 1 - (2 * row + 1) / size
    toward = torch.stack([-right, -up, torch.full_like(up, cameras.focal)], dim=1)
    turned = (rotations[view] @ normalize(toward, dim=1)[..., None]).squeeze(-1)
    return turned


def _seen_from_behind(vertices: Tensor, cameras: Cameras) -> Tensor:
    """Whether each of V cameras sees the back of each face [F, 3, 3]: [V, F] bool."""
    a, b, c = vertices.unbind(1)
    toward = cameras.positions.to(a)[:, None] - a  # [V, F, 3]
    behind: Tensor = (torch.linalg.cross(b - a, c - a) * toward).sum(-1) < 0
    return behind
