"""Captions by Florence-2 on this machine, from a folder of its weights."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from kiss3d_infer.config import Config, Integer
from kiss3d_infer.devices import pick_device
from kiss3d_infer.errors import InputError
from kiss3d_train.data.captions.answer import MalformedAnswerError, checked_clause
from kiss3d_train.data.captions.captioner import (
    BadSampleError,
    CaptionSource,
    Sample,
    read_bundle,
)
from kiss3d_train.data.captions.names import joined
from kiss3d_train.data.captions.shape import measured_shape

if TYPE_CHECKING:
    from PIL.Image import Image

TASK = "<DETAILED_CAPTION>"
"""One of Florence-2's own prompts: a sentence or two."""
_ARCHITECTURE = "florence2"
_NUM_BEAMS = 3

_ABOUT = re.compile(
    r"^(in )?(the|this) (image|picture|photo)"
    r"( (shows|depicts|features|contains|is of)|,? (we|you) can see|,? there (is|are))\s+",
    re.IGNORECASE,
)
_KIND = re.compile(
    r"^(an?|the) ((3d|computer generated|close[- ]up) )*"
    r"(model|render|rendering|image|picture|photo|illustration|view|shot) of\s+",
    re.IGNORECASE,
)
_BACKGROUND = re.compile(
    r",?\s*(((is|are) )?(placed|standing|sitting|set|isolated|shown|seen) )?"
    r"(on|against|in front of|with|over) an? ((plain|clean|solid) )?white (background|surface).*$",
    re.IGNORECASE | re.DOTALL,
)
_LATER_SENTENCES = re.compile(r"(?<=\w[.!])\s.*$", re.DOTALL)


class LocalSettings(Config):
    """The model, and where it runs."""

    model: Path
    """Folder of a Florence-2 in the layout of transformers, weights as safetensors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    max_tokens: Annotated[Integer, Field(gt=0)] = 150
    """Of one answer."""


class LocalCaptioner:
    """Has Florence-2 describe the front view, and adds what is measured of the shape.

    Args:
        settings: model and device.
    """

    num_threads = 1

    def __init__(self, settings: LocalSettings) -> None:
        self._settings = settings
        self._place = pick_device(settings.device)
        self.source = CaptionSource("local", settings.model.resolve().name, f"{TASK} 1")

    @property
    def params(self) -> dict[str, object]:
        """Model, prompt and device."""
        return {**self.source.to_json(), "device": self._place.name}

    @property
    def figures(self) -> dict[str, float]:
        """Nothing is spent here."""
        return {}

    def caption(self, sample: Sample) -> str:
        """The sample's caption; the model is loaded with the first one."""
        bundle = read_bundle(sample)
        front = bundle.to_pil().crop(_front(bundle.layout.rows, bundle.tile))
        try:
            clause = clause_of(self._answer(front))
        except MalformedAnswerError as error:
            raise BadSampleError(str(error)) from error
        shape = measured_shape(bundle)
        return joined(clause, shape.attributes if shape else [])

    def stop(self) -> None:
        """Nothing waits here."""

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load_florence(self._settings.model, self._place.name, self._place.dtype)

    def _answer(self, picture: Image) -> str:
        import torch

        processor, model = self._loaded
        inputs = processor(text=TASK, images=picture, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        with torch.no_grad():
            tokens = model.generate(
                **inputs,
                max_new_tokens=self._settings.max_tokens,
                num_beams=_NUM_BEAMS,
                do_sample=False,
            )
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0])


def _front(rows: tuple[str, ...], tile: int) -> tuple[int, int, int, int]:
    """The box of the first RGB view, in pixels of the bundle."""
    top = rows.index("rgb") * tile
    return 0, top, tile, top + tile


def load_florence(folder: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """Load processor and model; no code from the folder is run, and nothing is unpickled.

    Raises:
        InputError: the folder holds no Florence-2 that transformers itself can load.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not (folder / "config.json").is_file():
        raise InputError("no model in the folder", where=folder, fix="give a Florence-2 folder")
    try:
        kind = AutoConfig.from_pretrained(folder, **safely).model_type
        if kind != _ARCHITECTURE:
            raise InputError(
                f"the local captioner runs Florence-2, not {kind}",
                where=folder,
                fix="serve this model by a program that speaks OpenAI's protocol, and use the api",
            )
        processor = AutoProcessor.from_pretrained(folder, **safely)
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **safely,
        )
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"the model cannot be loaded: {reason}", where=folder) from error
    if missing := sorted(report["missing_keys"]):
        # Without this, transformers would go on with random weights.
        raise InputError(
            f"{len(missing)} weights are missing, e.g. {missing[0]}",
            where=folder,
            fix="give a Florence-2 that was converted for transformers 4.56 or newer",
        )
    return processor, model.to(device).eval()


def clause_of(answer: str) -> str:
    """The object clause in an answer such as "The image shows a chair on a white background."

    Raises:
        MalformedAnswerError: nothing is left that describes an object.
    """
    text = _LATER_SENTENCES.sub("", answer.strip())
    for pattern in (_ABOUT, _KIND, _BACKGROUND):
        text = pattern.sub("", text)
    text = text.strip(" .,")
    if len(text) < 5:
        raise MalformedAnswerError(f"no object is described: {answer[:200]}")
    return checked_clause(text)
