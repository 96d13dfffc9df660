import pytest
import torch

from kiss3d_infer.reconstruct.lrm.config import LrmConfig
from kiss3d_infer.reconstruct.lrm.network import Lrm

TINY = LrmConfig(
    image_size=32,
    patch_size=8,
    position_grid=3,
    encoder_dim=24,
    encoder_layers=2,
    encoder_heads=2,
    transformer_dim=32,
    transformer_layers=2,
    transformer_heads=2,
    triplane_size=8,
    triplane_dim=6,
    decoder_dim=16,
    grid_size=24,
)


@pytest.fixture
def tiny_config() -> LrmConfig:
    return TINY


@pytest.fixture
def tiny_lrm() -> Lrm:
    """A small network with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Lrm(TINY).eval().requires_grad_(False)
