"""From triplanes to a mesh: the field on a grid, then FlexiCubes on the cubes that matter."""

import torch
from torch import Tensor

from kiss3d_infer.reconstruct.lrm.config import LrmConfig
from kiss3d_infer.reconstruct.lrm.cube_tables import CORNERS
from kiss3d_infer.reconstruct.lrm.flexicubes import (
    CubeWeights,
    SurfaceCubes,
    dual_surface,
    surface_cubes,
)
from kiss3d_infer.reconstruct.lrm.network import Lrm, plane_features
from kiss3d_infer.reconstruct.topology import Float32, Int32

_CHUNK_POINTS = 1 << 16
"""Points asked at a time: their features are 63 MB, those of the whole grid would be 2 GB."""


def extract_mesh(network: Lrm, planes: Tensor) -> tuple[Float32, Int32]:
    """Extract the surface that the planes hold.

    Deformations and cube weights are only asked for the cubes that the surface crosses, some 2 % of
    the grid: asked everywhere, the weights' inputs alone would take 16 GB.

    Args:
        network: the decoder's weights and the grid.
        planes: [3, C, R, R] on the network's device.

    Returns:
        vertices [N, 3] in the network's Z-up world and faces [F, 3], closed and outward.

    Raises:
        InputError: the planes hold no surface.
    """
    cubes = surface_cubes(_field(network, planes))
    positions, weights = _shaped(network, planes, cubes)
    return dual_surface(cubes, positions, weights)


def grid_points(index: Tensor, config: LrmConfig) -> Tensor:
    """Positions [..., 3] of grid vertices with integer indices [..., 3]."""
    return (index / config.grid_size - 0.5) * config.grid_scale


def _field(network: Lrm, planes: Tensor) -> Float32:
    """The field [G + 1, G + 1, G + 1] at the grid's vertices."""
    side = network.config.grid_size + 1
    axis = torch.arange(side, device=planes.device)
    values = []
    # Slabs of whole x layers, so that no list of all points is ever held.
    for layers in torch.split(axis, max(1, _CHUNK_POINTS // side**2)):
        index = torch.stack(torch.meshgrid(layers, axis, axis, indexing="ij"), -1)
        points = grid_points(index.reshape(-1, 3), network.config)
        values.append(network.synthesizer.decoder.sdf(plane_features(planes, points)))
    field: Float32 = torch.cat(values).view(side, side, side).float().cpu().numpy()
    return field


def _shaped(network: Lrm, planes: Tensor, cubes: SurfaceCubes) -> tuple[Float32, CubeWeights]:
    """Deformed corners [K, 8, 3] and weights of the surface's cubes."""
    decoder = network.synthesizer.decoder
    corners = torch.from_numpy(CORNERS).to(planes.device)
    parts = []
    all_cells = torch.from_numpy(cubes.cells).to(planes.device)
    for cells in torch.split(all_cells, _CHUNK_POINTS // 8):
        points = grid_points((cells[:, None] + corners).reshape(-1, 3), network.config)
        features = plane_features(planes, points)
        moved = (points + decoder.deformation(features)).view(-1, 8, 3)
        parts.append((moved, *decoder.cube_weights(features.view(len(cells), 8, -1))))
    positions, alpha, beta, gamma = (
        torch.cat(part).float().cpu().numpy() for part in zip(*parts, strict=True)
    )
    return positions, CubeWeights(alpha, beta, gamma)
