"""Bundle in, textured mesh out: the stages in order."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.reconstruct.settings import Reconstruction, ReconstructSettings

if TYPE_CHECKING:
    from kiss3d_infer.bundle.image import Bundle

_COARSE_SIZE, _FINE_SIZE = 256, 512
_DEFAULTS = ReconstructSettings()


def reconstruct(
    bundle: "Bundle",
    settings: ReconstructSettings = _DEFAULTS,
    *,
    device: str = "cpu",
    on_progress: ProgressFn | None = None,
) -> Reconstruction:
    """Turn a bundle image into a closed, textured mesh that looks like it from its cameras.

    The same bundle and settings give the same mesh on the CPU.

    Args:
        bundle: any layout; generated normals need not be unit, nor edges sharp.
        settings: see `ReconstructSettings`.
        device: "cpu" or "cuda"; rasterizes and paints. Remeshing and clean-up stay on the CPU.
        on_progress: told (stage, share done); an exception raised in it cancels the work.

    Returns:
        The mesh in world units, its agreement with the bundle, and the seconds of each stage.

    Raises:
        InputError: the bundle shows nothing, or CUDA was asked for and is not there.
    """
    import torch

    from kiss3d_infer.reconstruct.cleanup import clean
    from kiss3d_infer.reconstruct.measure import agreement
    from kiss3d_infer.reconstruct.refine import COARSE, COARSE_EXPANSION, FINE, refine
    from kiss3d_infer.reconstruct.starts import make_start
    from kiss3d_infer.reconstruct.target import Target
    from kiss3d_infer.reconstruct.texture import textured
    from kiss3d_infer.reconstruct.topology import is_closed_manifold

    stages = _Stages(on_progress)
    with stages.timed("target"):
        target = Target.of(bundle)
        coarse = target.resized(min(_COARSE_SIZE, target.size))
        fine = target.resized(min(_FINE_SIZE, target.size)).to(device)
    warnings = list(target.warnings)
    with stages.timed("start"):
        start = make_start(settings.init, coarse)
    if start.name != settings.init:
        warnings.append(
            f"the views disagree too much for a {settings.init} start; began with a {start.name}"
        )
    with stages.timed("coarse") as on_step:
        vertices, faces = refine(
            start.vertices,
            start.faces,
            coarse.to(device),
            COARSE,
            settings.coarse_steps,
            expansion=COARSE_EXPANSION,
            on_step=on_step,
        )
    with stages.timed("fine") as on_step:
        vertices, faces = refine(vertices, faces, fine, FINE, settings.fine_steps, on_step=on_step)
    with stages.timed("clean"):
        vertices, faces = clean(vertices, faces, settings.num_faces)
    with stages.timed("texture"), torch.no_grad():
        full = target.to(device)
        mesh, unseen_share = textured(vertices, faces, full, settings.texture_size)
    with stages.timed("measure"), torch.no_grad():
        measurements = agreement(mesh, full) | {
            "num_faces": float(len(faces)),
            "watertight": float(is_closed_manifold(faces, len(vertices))),
            "unseen_share": unseen_share,
        }
    return Reconstruction(mesh, measurements, stages.seconds, tuple(warnings))


def warm_up() -> None:
    """Compile all CPU kernels into numba's cache by reconstructing a small ball, with progress."""
    import torch
    from trimesh.creation import icosphere

    from kiss3d_infer.progress import show_stages
    from kiss3d_infer.scene import raster
    from kiss3d_infer.scene.mesh import Mesh
    from kiss3d_infer.scene.render import render_bundle

    raster.warm_up()
    ball = icosphere(2)
    mesh = Mesh(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).int())
    bundle = render_bundle(mesh, tile=64)
    settings = ReconstructSettings(coarse_steps=4, fine_steps=4, num_faces=500, texture_size=64)
    reconstruct(bundle, settings, on_progress=show_stages("compiling the reconstruction"))


class _Stages:
    """Times the stages and tells the caller where the work is."""

    def __init__(self, on_progress: ProgressFn | None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress

    @contextmanager
    def timed(self, stage: str) -> Iterator[Callable[[float], None]]:
        """Time a stage; yields a function to be told the share of it that is done."""

        def report(fraction: float) -> None:
            if self._on_progress is not None:
                self._on_progress(stage, fraction)

        began = time.perf_counter()
        report(0.0)
        yield report
        report(1.0)
        self.seconds[stage] = time.perf_counter() - began
