"""Pictures of a mesh: shaded colour, normals, coverage and depth, and the bundle made of them."""

import math
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
from kiss3d_infer.scene.raster import Fragments, rasterizer_for
from kiss3d_infer.scene.surface import Surface

__all__ = [
    "ALBEDO",
    "STUDIO",
    "Drawing",
    "Lighting",
    "Views",
    "draw",
    "render_bundle",
    "render_views",
]

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


@dataclass(frozen=True)
class Drawing:
    """What V cameras see, of those Q pixels of square pictures that show something."""

    cameras: Cameras
    size: int  # of the pictures
    where: Tensor  # [Q] flat indices into [V, H, W], view after view
    rgb: Tensor  # [Q, 3] as in `Views`, like the others
    normals: Tensor  # [Q, 3]
    alpha: Tensor  # [Q, 1]
    depth: Tensor  # [Q, 1]

    def views(self) -> Views:
        """Whole pictures."""
        return Views(
            self._picture(self.rgb, 1.0),
            self._picture(self.normals),
            self._picture(self.alpha),
            self._picture(self.depth),
        )

    def bundle(self, layout: BundleLayout) -> Bundle:
        """The bundle of a layout whose cameras these are, in main memory."""
        opaque = (self.rgb - (1 - self.alpha)) / self.alpha
        of_view = torch.bincount(self.where // self.size**2, minlength=len(self.cameras)).tolist()
        by_view = zip(
            torch.split(self.normals, of_view), layout.cameras.rotations.to(self.rgb), strict=True
        )
        normals = torch.cat([normals @ rotation for normals, rotation in by_view])  # to the camera
        alpha = self.alpha.flatten()
        return Bundle.from_pixels(self.where, opaque.T, normals.T, alpha, layout, self.size)

    def _picture(self, values: Tensor, background: float = 0.0) -> Tensor:
        """Pixels [Q, C] on a background: [V, C, H, W]."""
        shape = len(self.cameras), self.size, self.size
        canvas = values.new_full((math.prod(shape), values.shape[1]), background)
        canvas.index_copy_(0, self.where, values)
        return canvas.reshape(*shape, -1).permute(0, 3, 1, 2)


def draw(
    mesh: Mesh,
    cameras: Cameras,
    size: int,
    *,
    lighting: Light = STUDIO,
    smooth: bool = True,
    supersampling: int = 2,
    device: torch.device | str = "cpu",
) -> Drawing:
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
    drawn = [
        _pixels(surface, some, size, supersampling, lighting) for some in _split(cameras, at_once)
    ]
    where = torch.cat([place + i * at_once * size**2 for i, (place, _) in enumerate(drawn)])
    pixels = torch.cat([values for _, values in drawn])
    linear, normals, alpha, nearness = torch.split(pixels, [3, 3, 1, 1], dim=1)
    rgb = to_srgb((linear / alpha).clamp(0, 1)) * alpha + (1 - alpha)
    normals = normalize(normals, dim=1, eps=1e-6)
    return Drawing(cameras, size, where, rgb, normals, alpha, 1 / nearness)


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
    """Whole pictures of what `draw` draws, with the same arguments."""
    drawing = draw(
        mesh,
        cameras,
        size,
        lighting=lighting,
        smooth=smooth,
        supersampling=supersampling,
        device=device,
    )
    return drawing.views()


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
    return draw(mesh, layout.cameras, tile, lighting=lighting, device=device).bundle(layout)


def _views_at_once(surface: Surface, size: int) -> int:
    """One on the CPU: pictures of all views at once would not stay in the processor's cache."""
    return max(1, _SAMPLES_AT_ONCE // size**2) if surface.vertices.is_cuda else 1


def _split(cameras: Cameras, count: int) -> list[Cameras]:
    """The same cameras, at most `count` in each set."""
    pieces = [slice(start, start + count) for start in range(0, len(cameras), count)]
    azimuths, elevations = cameras.azimuths, cameras.elevations
    return [replace(cameras, azimuths=azimuths[p], elevations=elevations[p]) for p in pieces]


def _pixels(
    surface: Surface, cameras: Cameras, size: int, supersampling: int, lighting: Light
) -> tuple[Tensor, Tensor]:
    """The pixels of V views that show something: flat indices [Q] and values [Q, 8].

    Values are the means of the samples', with zeros for those outside the mesh; of the nearness it
    is the greatest.
    """
    side = size * supersampling
    where, *parts = _samples(surface, cameras, side, lighting)
    if not where.is_cuda:
        from kiss3d_infer.scene.raster.cpu import averaged

        return averaged(where, parts, size, supersampling)
    samples = torch.cat(parts, dim=1)
    whole = samples.new_zeros(len(cameras) * side**2, samples.shape[1])
    whole[where] = samples
    pixels = _averaged(whole.reshape(len(cameras), side, side, -1), supersampling).flatten(0, 2)
    shown = pixels[:, 6].nonzero().flatten()
    return shown, pixels[shown]


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


def _samples(surface: Surface, cameras: Cameras, size: int, lighting: Light) -> tuple[Tensor, ...]:
    """What V views of S x S samples see of the mesh.

    Returns:
        Flat indices [P], ascending, and there linear light [P, 3], world normals [P, 3], coverage
        [P, 1], which is 1, and 1 / depth [P, 1].
    """
    device, num_views = surface.vertices.device, len(cameras)
    corners = surface.vertices.flatten(0, 1)  # [3 F, 3]
    faces = torch.arange(len(corners), dtype=torch.int32, device=device).reshape(-1, 3)
    fragments = rasterizer_for(device).rasterize(cameras.clip(corners), faces, (size, size))
    where, values = _interpolated(surface.attributes, fragments)
    face = fragments.face.flatten().index_select(0, where).long() - 1  # faster than [where]
    view = where // size**2 if num_views > 1 else torch.zeros_like(where)

    normals, colors, uv = torch.split(values, surface.widths, dim=1)
    turned = _turned(surface.vertices, cameras).flatten()
    index = face if num_views == 1 else view * len(surface.vertices) + face
    normals = normalize(normals * turned.index_select(0, index).unsqueeze(1), dim=1)
    rotations = cameras.rotations.to(device)
    gloss = None
    if surface.gloss is not None and lighting.sees_gloss:
        values = surface.gloss.at(surface.material_index.index_select(0, face), uv)
        _, roughness, metallic = torch.split(values, 1, dim=1)
        gloss = Gloss(metallic, roughness, _to_viewer(cameras, where, size, rotations))
    albedo = surface.albedo(face, colors, uv)
    light = lighting.shade(Shown(albedo, normals, view, rotations, gloss))

    nearness = cameras.nearness(fragments.depth.flatten().index_select(0, where).unsqueeze(1))
    return where, light, normals, torch.ones_like(nearness), nearness


def _interpolated(attributes: Tensor, fragments: Fragments) -> tuple[Tensor, Tensor]:
    """Flat indices [P] of what shows a face, ascending, and there the attributes [P, C]."""
    if not attributes.is_cuda:
        from kiss3d_infer.scene.raster.cpu import interpolated_where_shown

        return interpolated_where_shown(attributes, fragments)
    where = fragments.face.flatten().nonzero().flatten()
    everywhere = rasterizer_for(attributes.device).interpolate(attributes, fragments)
    return where, everywhere.flatten(0, 2).index_select(0, where)


def _to_viewer(cameras: Cameras, where: Tensor, size: int, rotations: Tensor) -> Tensor:
    """Unit vectors [P, 3] to the viewer, in the world, from what flat indices [P] show."""
    view, row, column = where // size**2, where // size % size, where % size
    right, up = (2 * column + 1) / size - 1, 1 - (2 * row + 1) / size
    toward = torch.stack([-right, -up, torch.full_like(up, cameras.focal)], dim=1)
    turned = (rotations[view] @ normalize(toward, dim=1)[..., None]).squeeze(-1)
    return turned


def _turned(vertices: Tensor, cameras: Cameras) -> Tensor:
    """-1 where one of V cameras sees the back of a face [F, 3, 3], else 1: [V, F]."""
    a, b, c = vertices.unbind(1)
    toward = cameras.positions.to(a)[:, None] - a  # [V, F, 3]
    behind = (torch.linalg.cross(b - a, c - a) * toward).sum(-1) < 0
    return torch.where(behind, -1.0, 1.0)
