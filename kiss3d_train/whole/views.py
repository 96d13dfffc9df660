"""What is drawn, with its prompts: encoded once, held on the device, handed out in batches.

Shape legend: O objects, V views, N image tokens, C channels of a packed token, L text tokens,
B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.flux.prompt import t5_length, t5_prompt, view_t5_prompt
from kiss3d_train.batch import TensorBatch
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.draws import InMemoryStream, SharedDraws
from kiss3d_train.data.resident import ShowFn, showing
from kiss3d_train.objective import pack
from kiss3d_train.whole.autoencoder import to_model
from kiss3d_train.whole.config import Subject
from kiss3d_train.whole.pictures import Pictures
from kiss3d_train.whole.tiles import joined

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_TILES_PER_PASS = 256


@dataclass(frozen=True)
class ViewBatch(TensorBatch):
    """Samples ready for the model; everything random about them is already drawn.

    Attributes:
        x0_BNC: packed, scaled latents, float32.
        noise_BNC: standard normal, float32.
        sigma_B: noise level in (0, 1), float32.
        tokens_BL: T5 tokens of the prompts.
        grid: rows and columns of image tokens.
    """

    x0_BNC: Tensor
    noise_BNC: Tensor
    sigma_B: Tensor
    tokens_BL: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Views:
    """All views of some objects, or their bundles as the only view of each, on a device.

    Attributes:
        latents_OVNC: packed means of the scaled latents, float16.
        tokens_OVL: T5 tokens of each view's prompt.
        bare_VL: those of the prompts without a caption.
        grid: rows and columns of image tokens.
    """

    latents_OVNC: Tensor
    tokens_OVL: Tensor
    bare_VL: Tensor
    grid: tuple[int, int]

    def __len__(self) -> int:
        return self.latents_OVNC.shape[0] * self.latents_OVNC.shape[1]

    def batch(self, index_B: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> ViewBatch:
        """Views by their number over all objects, with noise and noise levels."""
        latents, tokens = self.latents_OVNC.flatten(0, 1), self.tokens_OVL.flatten(0, 1)
        x0_BNC = latents[index_B].float()
        return ViewBatch(x0_BNC, noise_BNC, sigma_B, tokens[index_B], self.grid)

    def bare_tokens(self, index_B: Tensor) -> Tensor:
        """Tokens [B, L] of these views' prompts without a caption."""
        return self.bare_VL[index_B % len(self.bare_VL)]


@torch.no_grad()
def encode_views(
    pipeline: "FluxPipeline",
    pictures: Pictures,
    layout: BundleLayout,
    draws: Subject,
    device: torch.device,
    show: ShowFn | None = None,
) -> Views:
    """Encode every RGB tile by itself or every bundle as a whole, and tokenize its prompt.

    The prompts of every second object's views stand behind the words that ask for a bundle.

    Args:
        pipeline: with its VAE, float32 and on the device, and T5's tokenizer.
        pictures: all rows of bundles, or the row of RGB views alone.
        layout: of the bundles.
        draws: which of both.
        device: where the result goes.
        show: told at times how far it is.
    """
    vae, captions = pipeline.vae, (*pictures.captions, "")
    tiles_NRV3TT = pictures.tiles_NRV3TT
    if draws == "bundles":
        num_tiles = len(layout.rows) * layout.num_views
        parts = torch.split(tiles_NRV3TT, max(1, _TILES_PER_PASS // num_tiles))
        prompts = [[t5_prompt(caption, layout)] for caption in captions]
    else:
        parts = torch.split(tiles_NRV3TT.flatten(0, 2), _TILES_PER_PASS)
        prompts = [[view_t5_prompt(c, azimuth) for azimuth in layout.azimuths] for c in captions]
        # The encoders are frozen when bundles are drawn, and have to know those words by then.
        for number in range(1, len(captions), 2):
            if captions[number]:
                prompts[number] = [t5_prompt(prompt, layout) for prompt in prompts[number]]
    images = map(joined, parts) if draws == "bundles" else parts
    means = [
        vae.encode(to_model(some.to(device))).latent_dist.mean
        for some in showing(images, len(parts), "batches of pictures", show, "encoded")
    ]
    scaled = [
        pack((mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor).half()
        for mean in means
    ]
    height, width = means[0].shape[-2:]
    tokens_OVL = _tokens(pipeline, prompts).to(device)
    return Views(
        latents_OVNC=torch.cat(scaled).reshape(
            len(pictures), len(prompts[0]), *scaled[0].shape[1:]
        ),
        tokens_OVL=tokens_OVL[:-1],
        bare_VL=tokens_OVL[-1],
        grid=(height // 2, width // 2),
    )


def _tokens(pipeline: "FluxPipeline", prompts: Sequence[Sequence[str]]) -> Tensor:
    """[O, V, L], as `FluxPipeline.encode_prompt` makes them."""
    tokens: Tensor = pipeline.tokenizer_2(
        [prompt for some in prompts for prompt in some],
        padding="max_length",
        max_length=t5_length(pipeline),
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens.reshape(len(prompts), len(prompts[0]), -1)


class ViewStream(InMemoryStream):
    """This worker's share of each global batch; see `SharedDraws`."""

    def __init__(self, views: Views, config: TrainConfig, rank: int, world_size: int) -> None:
        self._views, self._micro = views, config.scaling.micro_batch
        num_tokens, channels = views.latents_OVNC.shape[2:]
        self._draws = SharedDraws(
            config,
            "views",
            len(views),
            (num_tokens, channels),
            views.latents_OVNC.device,
            rank,
            world_size,
        )

    def micro_batches(self, step: int) -> list[ViewBatch]:
        """The batches to accumulate in optimizer step `step`, counted from 0."""
        views, drawn = self._views, self._draws.at(step)
        batch = views.batch(drawn.index_B, drawn.normals_KBNC[0], drawn.sigma_B)
        bare_BL = views.bare_tokens(drawn.index_B)
        tokens_BL = torch.where(drawn.is_dropped_B[:, None], bare_BL, batch.tokens_BL)
        return replace(batch, tokens_BL=tokens_BL).split(self._micro)
