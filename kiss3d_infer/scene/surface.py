"""A mesh made ready for drawing on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.normals import corner_normals


@dataclass(frozen=True)
class Textures:
    """Pictures of any sizes behind one another, so that one lookup serves all of them."""

    texels: Tensor  # [T, C]
    places: Tensor  # [K, 3] int64: of each picture the first texel, the height and the width

    @classmethod
    def of(cls, pictures: list[Tensor]) -> "Textures":
        """Pack pictures [h, w, C] of one device."""
        places, start = [], 0
        for picture in pictures:
            height, width, _ = picture.shape
            places.append((start, height, width))
            start += height * width
        texels = torch.cat([picture.flatten(0, 1) for picture in pictures])
        return cls(texels, torch.tensor(places).to(texels.device))

    def to(self, device: torch.device | str) -> "Textures":
        """The same on another device."""
        return Textures(self.texels.to(device), self.places.to(device))

    def sample(self, index: Tensor, uv: Tensor) -> Tensor:
        """Bilinear lookup with repeat wrapping, as `raster.texture.sample_texture`.

        Args:
            index: [P] int64, which picture.
            uv: [P, 2], u right and v up.

        Returns:
            [P, C].
        """
        if not uv.is_cuda:
            from kiss3d_infer.scene.raster.cpu import sampled

            return sampled(self.texels, self.places, index, uv)
        start, height, width = self.places.index_select(0, index).unbind(1)
        wrapped = uv - uv.floor()
        x, y = wrapped[:, 0] * width - 0.5, (1 - wrapped[:, 1]) * height - 0.5
        left, top = x.floor(), y.floor()
        right_share, lower_share = (x - left).unsqueeze(1), (y - top).unsqueeze(1)
        columns = [(left.long() + step).remainder(width) for step in (0, 1)]
        rows = [start + (top.long() + step).remainder(height) * width for step in (0, 1)]
        upper, lower = (
            torch.lerp(
                self.texels.index_select(0, row + columns[0]),
                self.texels.index_select(0, row + columns[1]),
                right_share,
            )
            for row in rows
        )
        return torch.lerp(upper, lower, lower_share)


@dataclass(frozen=True)
class Paint:
    """A property of M materials: a factor of each, and for some of them a picture."""

    factors: Tensor  # [M, C]
    picture: Tensor  # [M] int64 into `pictures`, -1 = none
    pictures: Textures | None

    @classmethod
    def of(
        cls,
        factors: Tensor,
        pictures: Sequence[Tensor | None],
        prepared: Callable[[Tensor], Tensor],
    ) -> "Paint":
        """Pack what is made of the pictures, [h, w, C] each; materials may share one."""
        distinct = {id(picture): picture for picture in pictures if picture is not None}
        places = {key: place for place, key in enumerate(distinct)}
        index = torch.tensor([places.get(id(picture), -1) for picture in pictures])
        packed = Textures.of([prepared(p) for p in distinct.values()]) if distinct else None
        return cls(factors, index.to(factors.device), packed)

    def at(self, material: Tensor, uv: Tensor) -> Tensor:
        """The property [P, C] at points of the materials [P], with uv [P, 2] if it is needed."""
        values = self.factors.index_select(0, material)
        if self.pictures is not None:
            picture = self.picture.index_select(0, material)
            here = (picture >= 0).nonzero().flatten()
            index, points = picture.index_select(0, here), uv.index_select(0, here)
            texels = self.pictures.sample(index, points)
            values.index_copy_(0, here, values.index_select(0, here) * texels)
        return values


@dataclass(frozen=True)
class Surface:
    """Every face has its own three corners: two faces may differ in normal at a shared vertex.

    Colours are in linear light.
    """

    vertices: Tensor  # [F, 3, 3]
    attributes: Tensor  # [3 F, 3..8]: normal, then colour and uv if there are any
    widths: list[int]  # of the attributes' three parts
    material_index: Tensor  # [F] int64
    colors: Paint
    gloss: Paint | None  # (unused, roughness, metallic), as in glTF; None = matt all over

    @classmethod
    def of(cls, mesh: Mesh, smooth: bool, widest: int, device: torch.device | str) -> "Surface":
        """Prepare a mesh.

        Args:
            mesh: as it stands in the world.
            smooth: False for facets.
            widest: a texture with a longer side is halved until it has none.
            device: where it will be drawn.
        """
        corners = mesh.faces.flatten().long().to(device)
        materials, index = mesh.face_materials
        if mesh.uv is None:  # nothing to look pictures up with
            materials = tuple(replace(m, texture=None, gloss_map=None) for m in materials)
        colors, gloss = _colors(materials, widest, device), _gloss(materials, widest, device)
        nothing = torch.empty(len(corners), 0, device=device)
        vertex_colors, uv = nothing, nothing
        if mesh.vertex_colors is not None:
            vertex_colors = to_linear(mesh.vertex_colors.to(device))[corners]
        if mesh.uv is not None and any(p and p.pictures for p in (colors, gloss)):
            uv = mesh.uv.to(device)[corners]
        normals = corner_normals(mesh, smooth=smooth, device=device).flatten(0, 1)
        return cls(
            vertices=mesh.vertices.to(device)[corners].reshape(-1, 3, 3),
            attributes=torch.cat([normals, vertex_colors, uv], dim=1),
            widths=[3, vertex_colors.shape[1], uv.shape[1]],
            material_index=index.long().to(device),
            colors=colors,
            gloss=gloss,
        )

    def albedo(self, face: Tensor, vertex_colors: Tensor, uv: Tensor) -> Tensor:
        """The surface's own colour at P points on the faces [P]: [P, 3]."""
        albedo = self.colors.at(self.material_index.index_select(0, face), uv)
        return albedo * vertex_colors if vertex_colors.shape[1] else albedo


def _colors(materials: Sequence[Material], widest: int, device: torch.device | str) -> Paint:
    factors = to_linear(torch.tensor([m.base_color for m in materials])).to(device)
    pictures = [m.texture for m in materials]
    return Paint.of(factors, pictures, lambda p: _halved(to_linear(p.to(device)), widest))


def _gloss(materials: Sequence[Material], widest: int, device: torch.device | str) -> Paint | None:
    if all(material.is_matt for material in materials):
        return None
    factors = torch.tensor([(1.0, m.roughness, m.metallic) for m in materials]).to(device)
    pictures = [m.gloss_map for m in materials]
    return Paint.of(factors, pictures, lambda p: _halved(p.to(device), widest))


def _halved(picture: Tensor, widest: int) -> Tensor:
    """A picture [H, W, C], halved until no side exceeds `widest`."""
    planes = picture.permute(2, 0, 1)
    while max(planes.shape[1:]) > widest and min(planes.shape[1:]) > 1:
        planes = avg_pool2d(planes, 2)
    return planes.permute(1, 2, 0)
