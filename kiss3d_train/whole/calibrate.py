"""A trained VAE made fit for diffusion: latent channels of unit deviation, measured factors."""

from typing import Any

import torch
from torch import Tensor

from kiss3d_train.whole.autoencoder import to_model

_PER_PASS = 64


@torch.no_grad()
def calibrate(vae: Any, images_B3HW: Tensor) -> None:
    """Give each latent channel unit deviation, and set the factors that follow.

    A channel's deviation is divided out of the encoder's last convolution and multiplied into the
    decoder's first, so the pictures that come out stay. Then (latents - shift_factor) *
    scaling_factor has mean 0, and deviation 1 about each channel's own mean. Those means stay where
    they are: the decoder pads with zeros, and a shift would change what it sees at the border.

    Args:
        vae: an `AutoencoderKL`, changed in place, in float32.
        images_B3HW: uint8 pictures to measure with.
    """
    deviation_c = _channels(vae, images_B3HW).std(dim=1)
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    first = vae.decoder.conv_in if vae.post_quant_conv is None else vae.post_quant_conv
    num = len(deviation_c)
    last.weight[:num] /= deviation_c[:, None, None, None]
    last.bias[:num] /= deviation_c
    last.bias[num:] -= 2 * deviation_c.log()  # the log-variances of the same channels
    first.weight *= deviation_c[None, :, None, None]
    values_cN = _channels(vae, images_B3HW)
    vae.register_to_config(
        shift_factor=values_cN.mean().item(),
        scaling_factor=1 / values_cN.var(dim=1).mean().sqrt().item(),
    )


def _channels(vae: Any, images_B3HW: Tensor) -> Tensor:
    """The means of the latents by channel, [c, values]."""
    device = next(vae.parameters()).device
    means = [
        vae.encode(to_model(some.to(device))).latent_dist.mean
        for some in torch.split(images_B3HW, _PER_PASS)
    ]
    return torch.cat(means).transpose(0, 1).flatten(1)
