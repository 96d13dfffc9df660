"""One prompt: drawn, judged beside the exact bundle, and reconstructed."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.mini.held_out import HeldOut
from benchmarks.mini.judges import Judges, Row
from benchmarks.mini.vae import through
from kiss3d_infer.bundle import (
    PUBLISHED,
    Bundle,
    BundleLayout,
    Domains,
    save_bundle,
    validate,
)
from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate import bundle_psnr
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import apply_lora
from kiss3d_infer.flux.models import Drawing
from kiss3d_infer.flux.sampling import generate_bundle
from kiss3d_infer.reconstruct import ReconstructSettings, reconstruct

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_BUDGET = ReconstructSettings(coarse_steps=80, fine_steps=0, num_faces=5000, texture_size=256)
_GOOD_IOU = 0.9


@dataclass(frozen=True)
class Model:
    """A base, with its LoRA if it has one, and how to draw with them."""

    pipeline: "FluxPipeline"
    layout: BundleLayout
    domains: Domains
    drawing: Drawing

    @classmethod
    def load(cls, base: Path, lora: Path | None, drawing: Drawing, device: str = "cpu") -> "Model":
        """In float32. A base without a LoRA draws bundles by itself."""
        pipeline = load_base(base, dtype="float32", device=device)
        if lora is None:
            return cls(pipeline, PUBLISHED, "bundle", drawing)
        info = apply_lora(pipeline, lora)
        return cls(pipeline, info.layout, info.domains, drawing)

    def draw(self, thing: HeldOut) -> Bundle:
        """The bundle of its caption; its index is the seed."""
        return generate_bundle(
            self.pipeline,
            thing.caption,
            layout=self.layout,
            domains=self.domains,
            seed=thing.index,
            **self.drawing.model_dump(),
        )

    def encoded_and_decoded(self, bundle: Bundle) -> Bundle:
        """What the VAE alone makes of a bundle, without the noise of its posterior."""
        return through(self.pipeline.vae, bundle)


def measured(thing: HeldOut, judges: Judges, model: Model, folder: Path) -> Row:
    """Everything about one prompt; the drawn bundle is kept in the folder."""
    truth = thing.bundle(model.drawing.tile)
    drawn, row = _drawn(thing, judges, model, folder)
    return {
        **row,
        "exact": judges.judged(truth, thing),
        "vae": bundle_psnr(model.encoded_and_decoded(truth), truth),
        "mesh": reconstructed(drawn),
        "exact_mesh": reconstructed(truth),
    }


def measured_drawing(thing: HeldOut, judges: Judges, model: Model, folder: Path) -> Row:
    """The drawing of one prompt alone, which is kept in the folder."""
    return _drawn(thing, judges, model, folder)[1]


def _drawn(thing: HeldOut, judges: Judges, model: Model, folder: Path) -> tuple[Bundle, Row]:
    began = time.perf_counter()
    drawn = model.draw(thing)
    seconds = time.perf_counter() - began
    save_bundle(drawn, drawn_file(folder, thing.index))
    return drawn, {
        "index": thing.index,
        "caption": thing.caption,
        "color": thing.color,
        "drawn": judges.judged(drawn, thing) | {"seconds": seconds},
    }


def drawn_file(folder: Path, index: int) -> Path:
    """Where a drawn bundle is kept."""
    return folder / f"{index:04d}.bundle.png"


def reconstructed(bundle: Bundle) -> Row:
    """Does a bundle, if it passes validation, become a mesh that agrees with it?"""
    began = time.perf_counter()
    try:
        if problems := validate(bundle).problems:
            return {"agrees": False, "problem": problems[0]}
        made = reconstruct(bundle, _BUDGET)
    except InputError as error:
        return {"agrees": False, "problem": error.what}
    iou = made.measurements["silhouette_iou"]
    seconds = time.perf_counter() - began
    return {"agrees": iou >= _GOOD_IOU, "silhouette_iou": iou, "seconds": seconds}
