"""Rectified flow on packed Flux latents: noise levels, per-sample randomness, and the loss.

Shape legend: B samples, N image tokens, C channels of a packed token, L text tokens, D text width,
P pooled width; c, h, w channels and size of an unpacked latent.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kiss3d_train.batch import TensorBatch
from kiss3d_train.config import ObjectiveSection

T = TypeVar("T", float, Tensor)
_FLUX_SHIFT = ((256, 0.5), (4096, 1.15))
"""Image tokens and the shift mu for them (FLUX.1's scheduler configuration)."""


@dataclass(frozen=True)
class Batch(TensorBatch):
    """Samples ready for the model; everything random about them is already drawn.

    Attributes:
        x0_BNC: packed, scaled latents, float32.
        noise_BNC: standard normal, float32.
        sigma_B: noise level in (0, 1), float32; 0 is data, 1 is noise.
        prompt_BLD: T5 embeddings.
        pooled_BP: pooled CLIP embedding.
        row_B: of the bundle layout's rows, the first that a sample shows, int64.
        grid: rows and columns of image tokens.
    """

    x0_BNC: Tensor
    noise_BNC: Tensor
    sigma_B: Tensor
    prompt_BLD: Tensor
    pooled_BP: Tensor
    row_B: Tensor
    grid: tuple[int, int]

    @classmethod
    def stacked(cls, samples: "Sequence[Batch]") -> "Batch":
        """Join batches of equal token grids along B."""
        parts = [sample._tensors() for sample in samples]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return cls(**tensors, grid=samples[0].grid)


@dataclass(frozen=True)
class Draws:
    """Everything random about one sample in one epoch."""

    posterior_chw: Tensor
    noise_chw: Tensor
    timestep: float
    caption_is_dropped: bool


def draw(objective: ObjectiveSection, key: Sequence[object], shape: tuple[int, int, int]) -> Draws:
    """Draw a sample's randomness as a pure function of `key`.

    The key is (seed, epoch, position in the epoch) in training. Nothing depends on the worker, the
    device or on how many samples were drawn before, so any number of workers sees the same values.

    Args:
        objective: distribution of timesteps and share of dropped captions.
        key: what the values depend on.
        shape: (c, h, w) of the latent.
    """
    digest = hashlib.sha256(repr(tuple(key)).encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    # The noise comes first, so that the recipe has no influence on it.
    posterior_chw, noise_chw = torch.from_numpy(rng.standard_normal((2, *shape), dtype=np.float32))
    caption_is_dropped = rng.random() < objective.caption_dropout
    if objective.timesteps == "uniform":
        timestep = rng.random()
    else:
        logit = objective.logit_mean + objective.logit_std * rng.standard_normal()
        timestep = 1 / (1 + math.exp(-logit))
    return Draws(posterior_chw, noise_chw, timestep, caption_is_dropped)


def shift_mu(objective: ObjectiveSection, num_tokens: int) -> float | None:
    """Logarithm of the timestep shift, None for none; auto is linear in the sequence length."""
    if objective.shift == "none":
        return None
    if objective.shift != "auto":
        return math.log(objective.shift)
    (few, least), (many, most) = _FLUX_SHIFT
    return least + (most - least) / (many - few) * (num_tokens - few)


def shifted(timestep: T, mu: float | None) -> T:
    """Noise level sigma = e^mu / (e^mu + 1/t - 1): more tokens need more noise (SD3, 5.3.2).

    Of a timestep, or of many in a tensor.
    """
    if mu is None:
        return timestep
    # Written without 1/t, which overflows for the smallest timesteps.
    return math.exp(mu) * timestep / (math.exp(mu) * timestep + 1 - timestep)


def weighted(loss_B: Tensor, sigma_B: Tensor, objective: ObjectiveSection) -> Tensor:
    """Losses [B] times the weight of their noise level.

    The weights are those of SD3, 3.1, as diffusers' `compute_loss_weighting_for_sd3` has them.
    """
    if objective.weighting == "sigma_sqrt":
        return loss_B / sigma_B.square()
    if objective.weighting == "cosmap":
        return loss_B * 2 / (math.pi * (1 - 2 * sigma_B + 2 * sigma_B.square()))
    return loss_B


def pack(latent_chw: Tensor) -> Tensor:
    """[..., c, h, w] -> [..., h/2 * w/2, 4c]: tokens of 2 x 2, channel-major, rows first."""
    *outer, c, h, w = latent_chw.shape
    patches = latent_chw.reshape(-1, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(*outer, (h // 2) * (w // 2), 4 * c)


def image_ids(grid: tuple[int, int], device: torch.device) -> Tensor:
    """[N, 3] positions (0, row, column) of the image tokens for rotary embeddings."""
    rows, columns = grid
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None]
    return ids.reshape(rows * columns, 3)


def loss_per_sample(model: nn.Module, batch: Batch, guidance: float | None) -> Tensor:
    """Mean squared error of the predicted velocity, [B]; see `squared_errors`."""
    return squared_errors(model, batch, guidance).mean(dim=(1, 2))


def squared_errors(model: nn.Module, batch: Batch, guidance: float | None) -> Tensor:
    """Squared errors of the predicted velocity, [B, N, C], float32.

    x_sigma = (1 - sigma) x0 + sigma noise; target = noise - x0 (rectified flow). The noisy latent
    and sigma enter the model in float32: a bfloat16 sigma near 1 has steps of 0.004.

    Args:
        model: the transformer, or an engine around it.
        batch: on the model's device.
        guidance: value for a guidance-distilled model, None for one without that input.
    """
    sigma_B11 = batch.sigma_B[:, None, None]
    noisy_BNC = (1 - sigma_B11) * batch.x0_BNC + sigma_B11 * batch.noise_BNC
    device = noisy_BNC.device
    predicted_BNC = model(
        hidden_states=noisy_BNC,
        timestep=batch.sigma_B,
        guidance=None if guidance is None else torch.full_like(batch.sigma_B, guidance),
        encoder_hidden_states=batch.prompt_BLD.float(),
        pooled_projections=batch.pooled_BP.float(),
        txt_ids=torch.zeros(batch.prompt_BLD.shape[1], 3, device=device),
        img_ids=image_ids(batch.grid, device),
        return_dict=False,
    )[0]
    target_BNC = batch.noise_BNC - batch.x0_BNC
    errors_BNC: Tensor = predicted_BNC.float() - target_BNC
    return errors_BNC.square()
