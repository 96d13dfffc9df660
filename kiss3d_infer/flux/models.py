"""What to draw with: the packaged model by its name, or any base with any LoRA."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from kiss3d_infer import mini
from kiss3d_infer.config import Config, explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.lora import FILE_NAME


class Drawing(Config):
    """How to draw with a model: see `generate_bundle`. The defaults are FLUX.1-dev's."""

    tile: int = Field(512, ge=16)
    """Side of a view in pixels."""
    steps: int = Field(20, ge=1)
    """Euler steps."""
    guidance: float = Field(3.5, ge=0)
    """Embedded guidance."""
    cfg_scale: float = Field(1.0, ge=1)
    """Classifier-free guidance; 1 is none."""


@dataclass(frozen=True)
class ChosenModel:
    """A base, the LoRA that goes on it, and how to draw with them."""

    base: Path
    lora: Path | None
    drawing: Drawing


def choose_model(model: str | Path, lora: Path | None = None) -> ChosenModel:
    """Find what a user names.

    Args:
        model: `mini` for the packaged model, or the path of a base, which is not looked at here.
        lora: the bundle LoRA; mini brings its own.

    Raises:
        InputError: this version has no packaged model, or its mini.json is damaged.
    """
    if str(model) != mini.NAME:
        return ChosenModel(Path(model), lora, Drawing())
    if not has_packaged_model():
        raise InputError(
            "this version of kiss3d ships no trained model",
            where=mini.FOLDER,
            fix="give --model and --lora, a Flux base and a bundle LoRA trained on it; "
            "`kiss3d demo` trains a small one",
        )
    adapter = mini.FOLDER / "adapter" / FILE_NAME
    return ChosenModel(mini.FOLDER / "base", lora or adapter, _packaged_drawing())


def has_packaged_model() -> bool:
    """Whether the weights of `mini` are here."""
    needed = (Path("base", "model_index.json"), Path("adapter", FILE_NAME))
    return all((mini.FOLDER / file).is_file() for file in needed)


def _packaged_drawing() -> Drawing:
    file = mini.FOLDER / "mini.json"
    try:
        return Drawing.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = explain(error, Drawing) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"the packaged model is damaged: {reason}", where=file, fix="install kiss3d again"
        ) from error
