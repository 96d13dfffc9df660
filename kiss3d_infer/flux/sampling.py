"""Draw a bundle from a prompt with diffusers' own `FluxPipeline`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout, Domains
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.prompt import check_prompt, clip_prompt, t5_length, t5_prompt
from kiss3d_infer.progress import ProgressFn

if TYPE_CHECKING:
    from diffusers import FluxPipeline


def generate_bundle(
    pipeline: "FluxPipeline",
    prompt: str,
    *,
    layout: BundleLayout = PUBLISHED,
    domains: Domains = "bundle",
    tile: int = 512,
    steps: int = 20,
    guidance: float = 3.5,
    cfg_scale: float = 1.0,
    seed: int = 0,
    on_progress: ProgressFn | None = None,
) -> Bundle:
    """Sample one bundle: Euler steps over a rectified flow, shifted by the number of tokens.

    The noise comes from a generator on the CPU, so one seed gives one picture on every device, up
    to the device's rounding.

    Args:
        pipeline: a whole base, with the LoRA applied.
        prompt: the object's caption; the layout's prefix is put before it.
        layout: what the LoRA was trained to draw.
        domains: how; with "switch" each row is a picture of its own, from the same seed.
        tile: side of a view in pixels, a multiple of 16 (8 of the VAE, 2 of the patches).
        steps: Euler steps.
        guidance: embedded guidance, which bases without it ignore; 3.5 is what the published LoRA
            is used with.
        cfg_scale: classifier-free guidance (Ho and Salimans 2022), for bases that were not
            distilled: how far to go from what the layout's prefix alone gives to what the caption
            gives, 1 being there. Above 1 each step takes two passes.
        seed: any integer from 0.
        on_progress: called after every step; what it raises cancels the sampling.

    Returns:
        The bundle [3, rows*tile, views*tile] on the CPU.

    Raises:
        InputError: the prompt is blank, the tile, the number of steps, the guidance or the seed is
            out of range, or the picture holds NaN, as float16 may give.
    """
    check_prompt(prompt)
    _check(pipeline, tile, steps, seed)
    if not 1 <= cfg_scale < float("inf"):
        raise InputError(
            f"a guidance of {cfg_scale} cannot be followed",
            where="cfg_scale",
            fix="give 1 for none, or more",
        )
    pictures = layout.pictures(domains)
    strips: list[Tensor] = []

    def report(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_progress is not None:
            done = len(strips) * steps + step + 1
            on_progress("generate", done / (len(pictures) * steps))
        return tensors

    for picture in pictures:
        width, height = picture.image_size(tile)
        images = pipeline(
            prompt=clip_prompt(picture),
            prompt_2=t5_prompt(prompt, picture),
            negative_prompt=clip_prompt(picture),
            negative_prompt_2=t5_prompt("", picture),
            true_cfg_scale=cfg_scale,
            width=width,
            height=height,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator("cpu").manual_seed(seed),
            max_sequence_length=t5_length(pipeline),
            output_type="pt",
            callback_on_step_end=report,
            callback_on_step_end_tensor_inputs=[],
        ).images
        strips.append(images[0].float().cpu())
    image = torch.cat(strips, dim=1)
    if not image.isfinite().all():
        raise InputError("the model overflowed", where="dtype", fix="use bfloat16 or float32")
    return Bundle(image, layout)


def _check(pipeline: "FluxPipeline", tile: int, steps: int, seed: int) -> None:
    multiple = 2 * pipeline.vae_scale_factor
    if tile < multiple or tile % multiple:
        raise InputError(
            f"a tile of {tile} pixels cannot be drawn",
            where="tile",
            fix=f"choose a multiple of {multiple}, e.g. {max(tile // multiple, 1) * multiple}",
        )
    if steps < 1:
        raise InputError(f"{steps} steps draw nothing", where="steps", fix="give at least 1")
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed {seed} is out of range", where="seed", fix="give 0 to 2^63 - 1")
