"""The VAE as it trains: what it returns, its loss, and the error of what it draws.

Shape legend: B pictures, 3 colours, H and W pixels; c, h, w channels and size of a latent.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kiss3d_train.batch import TensorBatch

_FOREGROUND = 3.0
"""Weight of pixels that are not white, beside those that are."""
_WHITE = 0.97
"""Darker than this in some channel, of [-1, 1], is no background."""
_LOGVAR = (-30.0, 20.0)
"""As diffusers' `DiagonalGaussianDistribution` bounds it."""
_LEAST_ERROR = 1e-10


@dataclass(frozen=True)
class PictureBatch(TensorBatch):
    """Pictures to encode and decode.

    Attributes:
        images_B3HW: uint8 sRGB.
        noise_Bchw: standard normal, for the sample of the posterior; None for its mean.
    """

    images_B3HW: Tensor
    noise_Bchw: Tensor | None


class WholeVae(nn.Module):
    """An `AutoencoderKL` from pictures to pictures in one forward pass, as DDP needs it.

    It is not compiled: torch's inductor (2.13, on a CPU) gave a decoder whose outputs were right
    and whose gradients were zero before the last upsampling.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.to(memory_format=torch.channels_last)
        for module in vae.modules():
            if isinstance(module, nn.GroupNorm):
                # On the instance, as a module put around it would change the names of its weights.
                module.forward = partial(_group_norm, module)  # type: ignore[method-assign]

    def forward(
        self, images_B3HW: Tensor, noise_Bchw: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode, sample (or, without noise, take the mean) and decode.

        Args:
            images_B3HW: in [-1, 1].
            noise_Bchw: standard normal.

        Returns:
            The pictures again [B, 3, H, W], and mean and log-variance [B, c, h, w], float32.
        """
        moments = self.vae.encoder(images_B3HW)
        if self.vae.quant_conv is not None:
            moments = self.vae.quant_conv(moments)
        mean, logvar = moments.float().chunk(2, dim=1)
        logvar = logvar.clamp(*_LOGVAR)
        latents = mean if noise_Bchw is None else mean + (0.5 * logvar).exp() * noise_Bchw
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        return self.vae.decoder(latents).float(), mean, logvar


def _group_norm(norm: nn.GroupNorm, values: Tensor) -> Tensor:
    """A norm that gives the precision it gets; its statistics are float32 all the same.

    Under autocast it would give float32, and what comes until the next convolution, too: twice the
    memory traffic, which is what a step waits for.
    """
    weight, bias = norm.weight.to(values.dtype), norm.bias.to(values.dtype)
    with torch.autocast(values.device.type, enabled=False):
        return nn.functional.group_norm(values, norm.num_groups, weight, bias, norm.eps)


def to_model(images_B3HW: Tensor) -> Tensor:
    """uint8 to [-1, 1] float32, channels last."""
    return (images_B3HW.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def vae_losses(model: nn.Module, batch: PictureBatch, kl_weight: float) -> Tensor:
    """Loss of each picture [B]: L1, more where the object is, L1 of gradients, and the KL term.

    All are means over values in [-1, 1], so that tiles and whole bundles weigh the same.
    """
    images = to_model(batch.images_B3HW)
    drawn, mean, logvar = model(images, batch.noise_Bchw)
    is_object = (images < _WHITE).any(dim=1, keepdim=True)
    weight = torch.where(is_object, _FOREGROUND, 1.0)
    error = drawn - images
    slopes = error.diff(dim=-1).abs().mean(dim=(1, 2, 3)) + error.diff(dim=-2).abs().mean(
        dim=(1, 2, 3)
    )
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(dim=(1, 2, 3))
    losses: Tensor = (weight * error.abs()).mean(dim=(1, 2, 3)) + slopes + kl_weight * divergence
    return losses


def psnr(model: nn.Module, images_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB of uint8 pictures that went through the mean."""
    images = to_model(images_B3HW)
    drawn, _, _ = model(images, None)
    error = (drawn.clamp(-1, 1) - images) / 2
    ratios: Tensor = -10 * error.square().mean(dim=(1, 2, 3)).clamp(min=_LEAST_ERROR).log10()
    return ratios
