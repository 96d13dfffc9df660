"""Rounds of drawings in run.dir: one that has its adapter and no result yet is waiting.

samples/step-00000500/adapter/pytorch_lora_weights.safetensors    until it was drawn
samples/step-00000500/0.bundle.png ...
samples/step-00000500.json, samples/step-00000500.png
samples/held_out/0.glb ...                                        kept for all rounds of the run
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.flux.lora import FILE_NAME

_PREFIX = "step-"


@dataclass(frozen=True)
class Round:
    """The drawings after so many optimizer steps."""

    run_dir: Path
    step: int

    @property
    def folder(self) -> Path:
        """Where the drawings lie."""
        return _folder_of(self.run_dir) / f"{_PREFIX}{self.step:08d}"

    @property
    def adapter(self) -> Path:
        """The folder of the adapter that draws."""
        return self.folder / "adapter"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.folder.with_suffix(".png")

    @property
    def record(self) -> Path:
        """What was measured and what is wrong with each drawing."""
        return self.folder.with_suffix(".json")

    def held_out_mesh(self, number: int) -> Path:
        """The mesh of the held-out bundle that drawing `number` is compared with."""
        return _folder_of(self.run_dir) / "held_out" / f"{number}.glb"

    def end(self) -> None:
        """Delete the adapter, which is large: the round no longer waits."""
        shutil.rmtree(self.adapter, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()  # if nothing was drawn


def waiting_rounds(run_dir: Path) -> list[Round]:
    """The rounds that have their adapter, the oldest first."""
    found = _folder_of(run_dir).glob(f"{_PREFIX}*/adapter/{FILE_NAME}")
    steps = sorted(int(path.parent.parent.name.removeprefix(_PREFIX)) for path in found)
    return [Round(run_dir, step) for step in steps]


def _folder_of(run_dir: Path) -> Path:
    return run_dir / "samples"
