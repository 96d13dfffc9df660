"""Pictures of a mesh: shaded colour, normals, coverage and depth, and the bundle made of them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, normalize

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.color import to_linear, to_srgb
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import corner_normals
from kiss3d_infer.scene.raster import Fragments, Rasterizer, rasterizer_for

_TEXELS_PER_PIXEL = 2  # a texture wider than this many times the picture is reduced first


@dataclass(frozen=True)
class Lighting:
    """An ambient light and two directional ones that stand still relative to each camera.

    Every view is lit alike, so no side of an object is darker for where it faces. Light is linear;
    directions point to the light in camera axes (x right, y up, z toward the viewer). A surface
    that faces the viewer receives about 1, so that its picture has about its own colour.
    """

    ambient: float = 0.55
    key: float = 0.5
    key_direction: tuple[float, float, float] = (-0.5, 0.7, 0.6)
    fill: float = 0.2
    fill_direction: tuple[float, float, float] = (0.7, 0.1, 0.7)


STUDIO = Lighting()
ALBEDO = Lighting(ambient=1.0, key=0.0, fill=0.0)
"""No shading: every surface shows its own colour."""


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
    lighting: Lighting = STUDIO,
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
    samples = _samples(mesh, cameras, size * supersampling, lighting, smooth, torch.device(device))
    alpha = avg_pool2d(samples.alpha, supersampling)
    covered = alpha > 0
    linear = avg_pool2d(samples.linear, supersampling) / torch.where(covered, alpha, 1.0)
    rgb = to_srgb(linear.clamp(0, 1)) * alpha + (1 - alpha)
    normals = normalize(avg_pool2d(samples.normals, supersampling), dim=1, eps=1e-6)
    return Views(rgb, normals, alpha, _nearest(samples.depth, supersampling))


def render_bundle(
    mesh: Mesh,
    layout: BundleLayout = PUBLISHED,
    tile: int = 512,
    *,
    lighting: Lighting = STUDIO,
    device: torch.device | str = "cpu",
) -> Bundle:
    """Draw the bundle of a mesh that is `Mesh.normalized`, with tiles of `tile` pixels."""
    views = render_views(mesh, layout.cameras, tile, lighting=lighting, device=device)
    covered = views.alpha > 0
    opaque = (views.rgb - (1 - views.alpha)) / torch.where(covered, views.alpha, 1.0)
    return Bundle.from_views(opaque, views.normals, views.alpha, layout)


class _Samples(NamedTuple):
    """Views before averaging, one sample per pixel, all 0 outside the mesh."""

    linear: Tensor  # [V, 3, H, W] light
    normals: Tensor  # [V, 3, H, W]
    alpha: Tensor  # [V, 1, H, W]
    depth: Tensor  # [V, 1, H, W]


def _samples(
    mesh: Mesh, cameras: Cameras, size: int, lighting: Lighting, smooth: bool, device: torch.device
) -> _Samples:
    rasterizer = rasterizer_for(device)
    # Every face gets its own corners, since two faces may differ in normal at a shared vertex.
    vertices = mesh.vertices[mesh.faces.long()].to(device)  # [F, 3, 3]
    faces = torch.arange(vertices.shape[0] * 3, dtype=torch.int32, device=device).reshape(-1, 3)
    fragments = rasterizer.rasterize(cameras.clip(vertices.reshape(-1, 3)), faces, (size, size))
    hit = fragments.face > 0  # [V, H, W]
    view = hit.nonzero()[:, 0]  # [P]
    face = fragments.face[hit].long() - 1

    normals = corner_normals(mesh, smooth=smooth).to(device).reshape(-1, 3)
    normals = normalize(rasterizer.interpolate(normals, fragments)[hit], dim=-1)  # [P, 3]
    normals = torch.where(_seen_from_behind(vertices, cameras)[view, face, None], -normals, normals)
    linear = _albedo(mesh, fragments, rasterizer, face)
    linear = linear * _light(normals, cameras.rotations.to(device)[view], lighting)

    def image(values: Tensor) -> Tensor:  # [P, C] -> [V, C, H, W]
        picture = values.new_zeros(*hit.shape, values.shape[1])
        picture[hit] = values
        return picture.permute(0, 3, 1, 2)

    near, far = cameras.near, cameras.far
    depth = 2 * near * far / (far + near - fragments.depth[hit] * (far - near))
    return _Samples(
        image(linear),
        image(normals),
        hit.to(linear.dtype).unsqueeze(1),
        image(depth.unsqueeze(-1)),
    )


def _seen_from_behind(vertices: Tensor, cameras: Cameras) -> Tensor:
    """Whether each camera sees the back of each face [F, 3, 3]: [V, F] bool."""
    a, b, c = vertices.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)  # [F, 3]
    behind: Tensor = cameras.positions.to(a) @ normal.T < (normal * a).sum(-1)
    return behind


def _albedo(mesh: Mesh, fragments: Fragments, rasterizer: Rasterizer, face: Tensor) -> Tensor:
    """The surface's own linear colour at the covered pixels, which show the faces [P]: [P, 3]."""
    device = face.device
    hit = fragments.face > 0
    corners = mesh.faces.flatten().long()
    materials, index = mesh.face_materials
    material = index.to(device)[face].long()
    base = torch.tensor([material.base_color for material in materials], device=device)
    albedo = to_linear(base)[material]
    if mesh.vertex_colors is not None:
        colors = to_linear(mesh.vertex_colors)[corners].to(device)
        albedo = albedo * rasterizer.interpolate(colors, fragments)[hit]
    if mesh.uv is None or all(material.texture is None for material in materials):
        return albedo
    uv = rasterizer.interpolate(mesh.uv[corners].to(device), fragments)[hit]
    for i in torch.unique(material).tolist():
        texture = _linear_texture(materials[i], _TEXELS_PER_PIXEL * hit.shape[-1])
        if texture is not None:
            here = material == i
            albedo[here] *= rasterizer.sample_texture(texture.to(device), uv[here])
    return albedo


def _linear_texture(material: Material, widest: int) -> Tensor | None:
    """The material's texture in linear light [h, w, 3], halved until no side exceeds `widest`."""
    if material.texture is None:
        return None
    planes = to_linear(material.texture).permute(2, 0, 1)
    while max(planes.shape[1:]) > widest and min(planes.shape[1:]) > 1:
        planes = avg_pool2d(planes, 2)
    return planes.permute(1, 2, 0)


def _light(normals: Tensor, rotations: Tensor, lighting: Lighting) -> Tensor:
    """Light received at normals [P, 3] seen by cameras with rotations [P, 3, 3]: [P, 1]."""
    received = torch.full_like(normals[:, :1], lighting.ambient)
    for strength, direction in (
        (lighting.key, lighting.key_direction),
        (lighting.fill, lighting.fill_direction),
    ):
        toward = normalize(normals.new_tensor(direction), dim=0)
        cosine = (normals * (rotations @ toward)).sum(-1, keepdim=True)
        received = received + strength * cosine.clamp(min=0)
    return received


def _nearest(depth: Tensor, supersampling: int) -> Tensor:
    inverse = torch.where(depth > 0, 1 / depth, 0.0)
    nearest = max_pool2d(inverse, supersampling)
    return torch.where(nearest > 0, 1 / nearest, 0.0)
