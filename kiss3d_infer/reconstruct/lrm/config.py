"""The sizes of the large reconstruction model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LrmConfig:
    """Sizes; the defaults are those of the published weights (PRM, arXiv 2412.07371)."""

    image_size: int = 512
    """Side to which the views are resized."""
    patch_size: int = 16
    position_grid: int = 14
    """Side of the encoder's table of positions, in patches."""
    encoder_dim: int = 768
    encoder_layers: int = 12
    encoder_heads: int = 12
    transformer_dim: int = 1024
    transformer_layers: int = 16
    transformer_heads: int = 16
    triplane_size: int = 32
    """Side of a plane in tokens; the planes have twice as many texels."""
    triplane_dim: int = 80
    decoder_dim: int = 64
    grid_size: int = 128
    """Cubes along a side of the grid in which the surface is found."""
    grid_scale: float = 2.1
    """Side of that grid, centred on the origin."""


PUBLISHED_SIZES = LrmConfig()
