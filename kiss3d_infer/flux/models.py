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
        InputError: files of the packaged model are missing, or its mini.json is damaged.
    """
    if str(model) != mini.NAME:
        return ChosenModel(Path(model), lora, Drawing())
    base, adapter = mini.FOLDER / "base", mini.FOLDER / "adapter" / FILE_NAME
    for file in (base / "model_index.json", adapter):
        if not file.is_file():
            raise _damaged(file, "this file is missing")
    return ChosenModel(base, lora or adapter, _packaged_drawing())


def _packaged_drawing() -> Drawing:
    file = mini.FOLDER / "mini.json"
    try:
        return Drawing.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = explain(error, Drawing) if isinstance(error, ValidationError) else str(error)
        raise _damaged(file, reason) from error


def _damaged(file: Path, reason: str) -> InputError:
    return InputError(
        f"the packaged model is damaged: {reason}", where=file, fix="install kiss3d again"
    )
