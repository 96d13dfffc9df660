"""A prompt becomes a textured mesh."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kiss3d_infer.bundle import PUBLISHED, BundleLayout, Domains, save_bundle
from kiss3d_infer.bundle.image import checked_image_format
from kiss3d_infer.flux.sampling import generate_bundle
from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.reconstruct import ReconstructSettings
from kiss3d_infer.tasks.bundle_to_mesh import Asset, bundle_to_mesh, check_output

if TYPE_CHECKING:
    from diffusers import FluxPipeline

DRAW_AGAIN = "try another seed or more steps"
"""What to do about a bundle that was drawn and is of no use."""
_DEFAULTS = ReconstructSettings()


def text_to_3d(
    pipeline: "FluxPipeline",
    prompt: str,
    out: Path,
    *,
    layout: BundleLayout = PUBLISHED,
    domains: Domains = "bundle",
    tile: int = 512,
    steps: int = 20,
    guidance: float = 3.5,
    cfg_scale: float = 1.0,
    seed: int = 0,
    settings: ReconstructSettings = _DEFAULTS,
    device: str = "cpu",
    force: bool = False,
    on_progress: ProgressFn | None = None,
) -> Asset:
    """Draw a bundle, save it as `<stem of out>.bundle.png` beside `out`, and make its mesh.

    The mesh is made from the saved image, so `bundle_to_mesh` can repeat that part exactly. When
    the bundle fails validation, it stays, to be looked at.

    Args:
        pipeline: a whole base, with the LoRA applied.
        prompt: the object's caption.
        out: .glb, .obj, .ply or .stl; appears only when whole.
        layout: see `generate_bundle`, as the six after it.
        domains: whether the bundle is drawn whole.
        tile: side of a view in pixels.
        steps: sampling steps.
        guidance: embedded guidance.
        cfg_scale: classifier-free guidance; 1 is none.
        seed: of the noise.
        settings: see `bundle_to_mesh`, as `device` and `force`.
        device: where to rasterize.
        force: go on although the bundle fails validation.
        on_progress: what it raises cancels the work.

    Raises:
        InputError: the prompt is blank, a value is out of range, or the bundle fails validation or
            shows nothing.
    """
    check_output(out, device)
    bundle = out.with_name(f"{out.stem}.bundle.png")
    checked_image_format(bundle)
    began = time.perf_counter()
    drawn = generate_bundle(
        pipeline,
        prompt,
        layout=layout,
        domains=domains,
        tile=tile,
        steps=steps,
        guidance=guidance,
        cfg_scale=cfg_scale,
        seed=seed,
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - began
    save_bundle(drawn, bundle)
    asset = bundle_to_mesh(
        bundle,
        out,
        settings=settings,
        device=device,
        force=force,
        remedy=DRAW_AGAIN,
        on_progress=on_progress,
    )
    return replace(asset, seconds={"generate": seconds, **asset.seconds})
