"""Our own renderer for `benchmarks.data.render_cpu`, with the interface of the peers."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.render_peers import TILE, Model
from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.bundle.image import save_bundle
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.rendering.sample import RenderJob, paths_of, render_item
from kiss3d_train.data.sources import open_source

SOURCE = "data/furniture"


class Ours:
    """What the peers do and no more: read, draw, write the picture."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._source = open_source(SOURCE)

    def read(self, model: Model) -> Mesh:
        """Read the model out of its library, turned, scaled and framed."""
        return framed(self._source.load(model.item), PUBLISHED.cameras)

    def draw(self, mesh: Mesh) -> Bundle:
        """Draw."""
        return render_bundle(mesh, tile=TILE)

    def write(self, bundle: Bundle, path: Path) -> None:
        """Save as PNG."""
        save_bundle(bundle, path)


class WholeJob:
    """All that a render job does for a mesh, in one stage: also checksums, validation, figures."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._folder = tempfile.TemporaryDirectory()
        source = str(Path(SOURCE).resolve())
        self._job = RenderJob(source, Path(self._folder.name), TILE, PUBLISHED)

    def read(self, model: Model) -> Any:
        """Nothing yet."""
        return model.item

    def draw(self, item: Any) -> Any:
        """All of it."""
        assert render_item(self._job, item) is None
        return paths_of(self._job, item)[0]

    def write(self, picture: Path, path: Path) -> None:
        """Put the picture where the others are."""
        shutil.move(picture, path)
