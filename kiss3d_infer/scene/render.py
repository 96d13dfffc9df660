"""Pictures of a mesh: shaded colour, normals, coverage and depth, and the bundle made of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.color import to_linear, to_srgb
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import corner_normals
from kiss3d_infer.scene.raster import Rasterizer, rasterizer_for

_TEXELS_PER_PIXEL = 2  # a texture wider than this many times the picture is reduced first


@dataclass(frozen=True)
class Lighting:
    """An ambient light and two directional ones that stand still relative to each camera.

    Every view is lit alike, so no side of an object is darker for where it faces. Light is linear;
    directions point to the light in camera axes (x right, y up, z toward the viewer). A surface
    that faces the viewer receives 0.81, and none more than 0.93: a white object never dissolves in
    the white background.
    """

    ambient: float = 0.46
    key: float = 0.415
    key_direction: tuple[float, float, float] = (-0.5, 0.7, 0.6)
    fill: float = 0.165
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
    surface = _Surface.of(mesh, smooth, _TEXELS_PER_PIXEL * size * supersampling, device)
    pictures = []
    # View by view: pictures of all views at once would not stay in the processor's cache.
    for azimuth, elevation in zip(cameras.azimuths, cameras.elevations, strict=True):
        camera = replace(cameras, azimuths=(azimuth,), elevations=(elevation,))
        samples = _samples(surface, camera, size * supersampling, lighting)
        offsets = range(supersampling)
        blocks = [samples[y::supersampling, x::supersampling] for y in offsets for x in offsets]
        stacked = torch.stack(blocks)  # [samples per pixel, H, W, 8]
        pictures.append(torch.cat([stacked[..., :7].mean(0), stacked[..., 7:].amax(0)], dim=-1))
    picture = torch.stack(pictures).permute(0, 3, 1, 2)  # [V, 8, H, W]
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
    lighting: Lighting = STUDIO,
    device: torch.device | str = "cpu",
) -> Bundle:
    """Draw the bundle of a mesh that is `Mesh.normalized`, with tiles of `tile` pixels."""
    views = render_views(mesh, layout.cameras, tile, lighting=lighting, device=device)
    covered = views.alpha > 0
    opaque = (views.rgb - (1 - views.alpha)) / torch.where(covered, views.alpha, 1.0)
    return Bundle.from_views(opaque, views.normals, views.alpha, layout)


@dataclass(frozen=True)
class _Surface:
    """A mesh made ready for drawing: every face has its own three corners.

    Two faces may differ in normal at a shared vertex. Colours are in linear light.
    """

    vertices: Tensor  # [F, 3, 3]
    attributes: Tensor  # [3 F, 3..8]: normal, then colour and uv if there are any
    widths: list[int]  # of the attributes' three parts
    material_index: Tensor  # [F] int64
    base_colors: Tensor  # [M, 3]
    textures: dict[int, Tensor]  # by material: [h, w, 3]; materials may share one

    @classmethod
    def of(cls, mesh: Mesh, smooth: bool, widest: int, device: torch.device | str) -> "_Surface":
        corners = mesh.faces.flatten().long()
        materials, index = mesh.face_materials
        textured = {
            i: material.texture
            for i, material in enumerate(materials)
            if material.texture is not None and mesh.uv is not None
        }
        distinct = {id(texture): texture for texture in textured.values()}
        linear = {key: _linear_texture(t, widest).to(device) for key, t in distinct.items()}
        textures = {i: linear[id(texture)] for i, texture in textured.items()}
        nothing = torch.empty(len(corners), 0)
        colors = nothing if mesh.vertex_colors is None else to_linear(mesh.vertex_colors)[corners]
        uv = nothing if mesh.uv is None or not textures else mesh.uv[corners]
        parts = [corner_normals(mesh, smooth=smooth).flatten(0, 1), colors, uv]
        return cls(
            vertices=mesh.vertices[corners].reshape(-1, 3, 3).to(device),
            attributes=torch.cat(parts, dim=1).to(device),
            widths=[3, colors.shape[1], uv.shape[1]],
            material_index=index.long().to(device),
            base_colors=to_linear(torch.tensor([m.base_color for m in materials])).to(device),
            textures=textures,
        )

    def albedo(self, face: Tensor, colors: Tensor, uv: Tensor, rasterizer: Rasterizer) -> Tensor:
        """The surface's own colour at P points on the faces [P]: [P, 3]."""
        material = self.material_index[face]
        albedo = self.base_colors[material]
        if colors.shape[1]:
            albedo = albedo * colors
        for i, texture in self.textures.items():
            here = (material == i).nonzero().flatten()
            albedo[here] = albedo[here] * rasterizer.sample_texture(texture, uv[here])
        return albedo


def _samples(surface: _Surface, camera: Cameras, size: int, lighting: Lighting) -> Tensor:
    """One sample per pixel of one view, 0 outside the mesh.

    Returns:
        [S, S, 8]: linear light (3), world normal (3), coverage, 1 / depth.
    """
    device = surface.vertices.device
    rasterizer = rasterizer_for(device)
    corners = surface.vertices.flatten(0, 1)  # [3 F, 3]
    faces = torch.arange(len(corners), dtype=torch.int32, device=device).reshape(-1, 3)
    fragments = rasterizer.rasterize(camera.clip(corners), faces, (size, size))
    where = fragments.face.flatten().nonzero().flatten()  # [P]: only these are computed
    face = fragments.face.flatten()[where].long() - 1

    interpolated = rasterizer.interpolate(surface.attributes, fragments).flatten(0, 2)[where]
    normals, colors, uv = torch.split(interpolated, surface.widths, dim=1)
    behind = _seen_from_behind(surface.vertices, camera)[face, None]
    normals = normalize(torch.where(behind, -normals, normals), dim=1)
    light = _light(normals, camera.rotations[0].to(device), lighting)
    linear = surface.albedo(face, colors, uv, rasterizer) * light

    nearness = camera.nearness(fragments.depth.flatten()[where, None])
    values = torch.cat([linear, normals, torch.ones_like(nearness), nearness], dim=1)
    picture = values.new_zeros(size * size, values.shape[1])
    picture[where] = values
    return picture.reshape(size, size, -1)


def _seen_from_behind(vertices: Tensor, camera: Cameras) -> Tensor:
    """Whether the camera sees the back of each face [F, 3, 3]: [F] bool."""
    a, b, c = vertices.unbind(1)
    toward = camera.positions[0].to(a) - a
    behind: Tensor = (torch.linalg.cross(b - a, c - a) * toward).sum(-1) < 0
    return behind


def _linear_texture(texture: Tensor, widest: int) -> Tensor:
    """A texture [H, W, 3] in linear light, halved until no side exceeds `widest`."""
    planes = to_linear(texture).permute(2, 0, 1)
    while max(planes.shape[1:]) > widest and min(planes.shape[1:]) > 1:
        planes = avg_pool2d(planes, 2)
    return planes.permute(1, 2, 0)


def _light(normals: Tensor, rotation: Tensor, lighting: Lighting) -> Tensor:
    """Light received at normals [P, 3] seen by a camera with the rotation [3, 3]: [P, 1]."""
    received = torch.full_like(normals[:, :1], lighting.ambient)
    for strength, direction in (
        (lighting.key, lighting.key_direction),
        (lighting.fill, lighting.fill_direction),
    ):
        toward = normalize(normals.new_tensor(direction), dim=0)
        cosine = (normals @ (rotation @ toward)).unsqueeze(1)
        received = received + strength * cosine.clamp(min=0)
    return received
