"""A mesh made ready for drawing on a device."""

from dataclasses import dataclass

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

    def sample(self, index: Tensor, uv: Tensor) -> Tensor:
        """Bilinear lookup with repeat wrapping, as `raster.texture.sample_texture`.

        Args:
            index: [P] int64, which picture.
            uv: [P, 2], u right and v up.

        Returns:
            [P, C].
        """
        start, height, width = self.places[index].unbind(1)
        wrapped = uv - uv.floor()
        x, y = wrapped[:, 0] * width - 0.5, (1 - wrapped[:, 1]) * height - 0.5
        left, top = x.floor(), y.floor()
        right_share, lower_share = (x - left).unsqueeze(1), (y - top).unsqueeze(1)
        columns = [(left.long() + step).remainder(width) for step in (0, 1)]
        rows = [start + (top.long() + step).remainder(height) * width for step in (0, 1)]
        upper, lower = (
            torch.lerp(self.texels[row + columns[0]], self.texels[row + columns[1]], right_share)
            for row in rows
        )
        return torch.lerp(upper, lower, lower_share)


@dataclass(frozen=True)
class Surface:
    """Every face has its own three corners: two faces may differ in normal at a shared vertex.

    Colours are in linear light.
    """

    vertices: Tensor  # [F, 3, 3]
    attributes: Tensor  # [3 F, 3..8]: normal, then colour and uv if there are any
    widths: list[int]  # of the attributes' three parts
    material_index: Tensor  # [F] int64
    base_colors: Tensor  # [M, 3]
    texture_index: Tensor  # [M] int64 into `textures`, -1 = none
    textures: Textures | None

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
        textures, texture_index = _textures(mesh, materials, widest, device)
        nothing = torch.empty(len(corners), 0, device=device)
        colors, uv = nothing, nothing
        if mesh.vertex_colors is not None:
            colors = to_linear(mesh.vertex_colors.to(device))[corners]
        if mesh.uv is not None and textures is not None:
            uv = mesh.uv.to(device)[corners]
        normals = corner_normals(mesh, smooth=smooth, device=device).flatten(0, 1)
        return cls(
            vertices=mesh.vertices.to(device)[corners].reshape(-1, 3, 3),
            attributes=torch.cat([normals, colors, uv], dim=1),
            widths=[3, colors.shape[1], uv.shape[1]],
            material_index=index.long().to(device),
            base_colors=to_linear(torch.tensor([m.base_color for m in materials])).to(device),
            texture_index=torch.tensor(texture_index).to(device),
            textures=textures,
        )

    def albedo(self, face: Tensor, colors: Tensor, uv: Tensor) -> Tensor:
        """The surface's own colour at P points on the faces [P]: [P, 3]."""
        material = self.material_index[face]
        albedo = self.base_colors[material]
        if colors.shape[1]:
            albedo = albedo * colors
        if self.textures is not None:
            picture = self.texture_index[material]
            here = (picture >= 0).nonzero().flatten()
            albedo[here] = albedo[here] * self.textures.sample(picture[here], uv[here])
        return albedo


def _textures(
    mesh: Mesh, materials: tuple[Material, ...], widest: int, device: torch.device | str
) -> tuple[Textures | None, list[int]]:
    """The distinct textures, packed, and which of them each material has; -1 = none."""
    own = [None if mesh.uv is None else material.texture for material in materials]
    distinct = {id(texture): texture for texture in own if texture is not None}
    places = {key: place for place, key in enumerate(distinct)}
    index = [places.get(id(texture), -1) for texture in own]
    if not distinct:
        return None, index
    pictures = [_linear(texture.to(device), widest) for texture in distinct.values()]
    return Textures.of(pictures), index


def _linear(texture: Tensor, widest: int) -> Tensor:
    """A texture [H, W, 3] in linear light, halved until no side exceeds `widest`."""
    planes = to_linear(texture).permute(2, 0, 1)
    while max(planes.shape[1:]) > widest and min(planes.shape[1:]) > 1:
        planes = avg_pool2d(planes, 2)
    return planes.permute(1, 2, 0)
