"""The large reconstruction model: views and cameras to triplanes, and what those say of points.

The network of InstantMesh (arXiv 2404.07191) as PRM trained it (arXiv 2412.07371), with the names
of its checkpoint. Its world is Z-up: a camera at azimuth a stands at (cos a, sin a) and z is up.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kiss3d_infer.reconstruct.lrm.config import PUBLISHED_SIZES, LrmConfig
from kiss3d_infer.reconstruct.lrm.encoder import ImageEncoder

_MLP_RATIO = 4
_NUM_CUBE_WEIGHTS = 12 + 8 + 1
_CUBE_WEIGHT_GAIN, _CUBE_WEIGHT_RANGE = 0.1, 0.5
_DEFORMATION_SHARE = 0.25
"""Of a cube's side in a grid of side 1; the grid's scale is not applied to it."""


class Lrm(nn.Module):
    """The whole network."""

    def __init__(self, config: LrmConfig = PUBLISHED_SIZES) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config)
        self.transformer = TriplaneTransformer(config)
        self.synthesizer = _Synthesizer(config)

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Reconstruct.

        Args:
            images: [V, 3, S, S] sRGB in [0, 1], on white.
            cameras: [V, 16] as `ImageEncoder` takes them.

        Returns:
            Planes [3, C, R, R] for `plane_features`.
        """
        tokens = self.encoder(images, cameras)
        planes: Tensor = self.transformer(tokens.flatten(0, 1)[None])
        return planes


class TriplaneTransformer(nn.Module):
    """Learned queries, one per plane token, that attend to the views' tokens and to each other."""

    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        dim, size = config.transformer_dim, config.triplane_size
        self._size = size
        self.pos_embed = nn.Parameter(torch.randn(1, 3 * size**2, dim) * dim**-0.5)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.transformer_layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.deconv = nn.ConvTranspose2d(dim, config.triplane_dim, kernel_size=2, stride=2)

    def forward(self, condition: Tensor) -> Tensor:
        """Condition [1, N, D] of all views' tokens to planes [3, C, R, R]."""
        tokens = self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens, condition)
        planes = self.norm(tokens)[0].unflatten(0, (3, self._size, self._size))
        texels: Tensor = self.deconv(planes.permute(0, 3, 1, 2))
        return texels


class _Layer(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        dim, num_heads = config.transformer_dim, config.transformer_heads
        shape = {"bias": False, "batch_first": True}
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(
            dim, num_heads, kdim=config.encoder_dim, vdim=config.encoder_dim, **shape
        )
        self.norm2 = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, num_heads, **shape)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, _MLP_RATIO * dim),
            nn.GELU(),
            nn.Identity(),  # the place of a dropout, which the checkpoint counts
            nn.Linear(_MLP_RATIO * dim, dim),
        )

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        # Without need_weights=False the whole attention matrix, 800 MB, would be kept.
        tokens = tokens + self.cross_attn(normed, condition, condition, need_weights=False)[0]
        normed = self.norm2(tokens)
        tokens = tokens + self.self_attn(normed, normed, normed, need_weights=False)[0]
        mixed: Tensor = tokens + self.mlp(self.norm3(tokens))
        return mixed


class _Synthesizer(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)


class Decoder(nn.Module):
    """Small networks over the planes' features; two of them, for appearance, are never asked here.

    They are kept so that a checkpoint's tensors are all accounted for.
    """

    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self._grid_size = config.grid_size
        dim, hidden = 3 * config.triplane_dim, config.decoder_dim
        self.net_sdf = _mlp(dim, hidden, 1)
        self.net_rgb = _mlp(dim, hidden, 3)
        self.net_material = _mlp(dim, hidden, 2)
        self.net_deformation = _mlp(dim, hidden, 3)
        self.net_weight = _mlp(8 * dim, hidden, _NUM_CUBE_WEIGHTS)

    def sdf(self, features: Tensor) -> Tensor:
        """Features [P, 3 C] to values [P], negative inside."""
        values: Tensor = self.net_sdf(features)
        return values[:, 0]

    def deformation(self, features: Tensor) -> Tensor:
        """Features [P, 3 C] at grid vertices to how far each is moved [P, 3]."""
        moved: Tensor = self.net_deformation(features)
        return moved.tanh() * (_DEFORMATION_SHARE / self._grid_size)

    def cube_weights(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [K, 8, 3 C] at cubes' corners to positive alpha [K, 8], beta [K, 12], gamma [K].

        The ranges are FlexiCubes' with a weight scale of 0.5.
        """
        raw = self.net_weight(features.flatten(1)) * _CUBE_WEIGHT_GAIN
        beta, alpha = (1 + _CUBE_WEIGHT_RANGE * raw[:, :20].tanh()).split((12, 8), 1)
        gamma = (1 - _CUBE_WEIGHT_RANGE) / 2 + _CUBE_WEIGHT_RANGE * raw[:, 20].sigmoid()
        return alpha, beta, gamma


def _mlp(num_inputs: int, hidden: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_outputs),
    )


def plane_features(planes: Tensor, points: Tensor) -> Tensor:
    """Look up points [P, 3] in planes [3, C, R, R]: features [P, 3 C], 0 outside [-1, 1].

    The planes lie along (x, y), (x, z) and (z, y); the first axis runs along a row.
    """
    places = torch.stack([points[:, [0, 1]], points[:, [0, 2]], points[:, [2, 1]]])
    found = functional.grid_sample(planes, places[:, None], align_corners=False)
    return found[:, :, 0].permute(2, 0, 1).flatten(1)
