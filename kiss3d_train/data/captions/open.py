"""Opens a captioner by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_train.data.captions.captioner import Captioner
from kiss3d_train.data.captions.metadata import MetadataCaptioner

CaptionerName = Literal["metadata", "api", "local"]


def open_captioner(
    name: CaptionerName, folder: Path, config: Path | None = None, overrides: Sequence[str] = ()
) -> Captioner:
    """Open a captioner.

    Args:
        name: which one.
        folder: of the samples, where answers that were paid for are kept.
        config: YAML file with its settings, if it has any.
        overrides: settings as key=value.

    Raises:
        InputError: the settings are wrong.
    """
    if name == "metadata":
        if config or overrides:
            raise InputError("the metadata captioner has no settings", where="--config, --set")
        return MetadataCaptioner()
    if name == "local":
        from kiss3d_train.data.captions.local import LocalCaptioner, LocalSettings

        return LocalCaptioner(load_config(LocalSettings, config, overrides).config)
    from kiss3d_train.data.captions.api import ApiCaptioner, ApiSettings, find_endpoint

    settings = load_config(ApiSettings, config, overrides).config
    return ApiCaptioner(settings, find_endpoint(), folder)
