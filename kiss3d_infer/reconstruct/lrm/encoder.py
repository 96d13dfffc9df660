"""Images to tokens: DINO's ViT, each block modulated by the camera that took the image.

Modules are named as in the published checkpoint, which follows transformers' `ViTModel`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kiss3d_infer.reconstruct.lrm.config import LrmConfig

CAMERA_DIM = 16
_EPS = 1e-12
_MLP_RATIO = 4
_MEAN = _STD = 0.5
"""From the image processor of facebook/dino-vitb16: not ImageNet's mean and deviation."""


class ImageEncoder(nn.Module):
    """Encode views together with their cameras."""

    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.model = _VisionTransformer(config)
        self.camera_embedder = nn.Sequential(
            nn.Linear(CAMERA_DIM, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, images: Tensor, cameras: Tensor) -> Tensor:
        """Encode.

        Args:
            images: [V, 3, S, S] sRGB in [0, 1].
            cameras: [V, 16] camera-to-world [3, 4] row by row, then fx, fy, cx, cy.

        Returns:
            [V, 1 + (S / patch)^2, D] tokens, the class token first.
        """
        tokens: Tensor = self.model((images - _MEAN) / _STD, self.camera_embedder(cameras))
        return tokens


class _VisionTransformer(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Blocks(config)
        self.layernorm = nn.LayerNorm(config.encoder_dim, eps=_EPS)

    def forward(self, images: Tensor, condition: Tensor) -> Tensor:
        tokens: Tensor = self.layernorm(self.encoder(self.embeddings(images), condition))
        return tokens


class _Blocks(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Block(config) for _ in range(config.encoder_layers)])

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        for block in self.layer:
            tokens = block(tokens, condition)
        return tokens


class _Embeddings(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        dim, patch = config.encoder_dim, config.patch_size
        self._grid = config.position_grid
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position_embeddings = nn.Parameter(torch.randn(1, 1 + self._grid**2, dim) * 0.02)
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, dim, patch, patch)})

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embeddings["projection"](images)
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), tokens], 1)
        return tokens + self._positions(patches.shape[-1])

    def _positions(self, side: int) -> Tensor:
        table, grid = self.position_embeddings, self._grid
        if side == grid:
            return table
        patches = table[:, 1:].transpose(1, 2).reshape(1, -1, grid, grid)
        # DINO adds 0.1 to the side, against rounding, and samples by that factor: at 512 pixels by
        # 32.1 / 14, where resizing to 32 would sample by 32 / 14. The weights were trained so.
        factor = (side + 0.1) / grid
        resized = functional.interpolate(patches, scale_factor=factor, mode="bicubic")
        return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], 1)


class _Block(nn.Module):
    def __init__(self, config: LrmConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.attention = _Attention(dim, config.encoder_heads)
        self.intermediate = _Dense(dim, _MLP_RATIO * dim)
        self.output = _Dense(_MLP_RATIO * dim, dim)
        self.layernorm_before = nn.LayerNorm(dim, eps=_EPS)
        self.layernorm_after = nn.LayerNorm(dim, eps=_EPS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 4 * dim))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(condition)[:, None]
        shift_attention, scale_attention, shift_mlp, scale_mlp = modulation.chunk(4, -1)
        normed = self.layernorm_before(tokens) * (1 + scale_attention) + shift_attention
        tokens = tokens + self.attention(normed)
        normed = self.layernorm_after(tokens) * (1 + scale_mlp) + shift_mlp
        mixed: Tensor = tokens + self.output(functional.gelu(self.intermediate(normed)))
        return mixed


class _Attention(nn.Module):
    """Self-attention, its projections nested as in the checkpoint."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        projections = {name: nn.Linear(dim, dim) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(projections)
        self.output = _Dense(dim, dim)
        self._num_heads = num_heads

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            self.attention[name](tokens).unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return mixed


class _Dense(nn.Module):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(num_inputs, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.dense(tokens)
        return mixed
