"""Bundle in, textured mesh out: the stages in order."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.reconstruct.settings import Reconstruction, ReconstructSettings

if TYPE_CHECKING:
    from kiss3d_infer.bundle.image import Bundle
    from kiss3d_infer.reconstruct.refine import Refined
    from kiss3d_infer.reconstruct.starts import Start
    from kiss3d_infer.reconstruct.target import Target
    from kiss3d_infer.reconstruct.texture import Painted
    from kiss3d_infer.reconstruct.topology import Float32, Int32
    from kiss3d_infer.scene.mesh import Mesh

_COARSE_SIZE, _FINE_SIZE = 256, 512
"""Widest views, in pixels, that the two refinements compare."""
_DETAILED_LENGTHS = (0.05, 0.02)
"""(first, least) edge length, world units, for a start whose details shall survive."""
_NOTABLE_SHIFT, _NOTABLE_CONFIDENCE = 0.004, 0.6
"""A warning is due for a view that was moved by more of its width, or counts for less."""
_POOR_IOU, _POOR_NORMALS = 0.9, 25.0
"""Silhouette IoU below, or normal error in degrees above, which a mesh does not fit a view."""
_DEFAULTS = ReconstructSettings()


def reconstruct(
    bundle: "Bundle",
    settings: ReconstructSettings = _DEFAULTS,
    *,
    device: str = "cpu",
    start_mesh: "Mesh | None" = None,
    lrm_weights: Path | None = None,
    debug: Path | None = None,
    on_progress: ProgressFn | None = None,
) -> Reconstruction:
    """Turn a bundle image into a closed, textured mesh that looks like it from its cameras.

    The same bundle and settings give the same mesh on the CPU.

    Args:
        bundle: any layout; generated normals need not be unit, nor edges sharp, and views may be
            off by some pixels.
        settings: see `ReconstructSettings`.
        device: "cpu" or "cuda"; rasterizes and paints. Remeshing and clean-up stay on the CPU.
        start_mesh: start from this instead of `settings.init`; any triangles, in the frame of the
            bundle (`framed`).
        lrm_weights: start from what the large reconstruction model makes of the views.
        debug: a folder for pictures of every stage.
        on_progress: told (stage, share done); an exception raised in it cancels the work.

    Returns:
        The mesh in world units, its agreement with the bundle, and the seconds of each stage.

    Raises:
        InputError: the bundle shows nothing, the start cannot be used, or CUDA was asked for and is
            not there.
    """
    import torch

    from kiss3d_infer.reconstruct.albedo import without_shading
    from kiss3d_infer.reconstruct.cleanup import clean
    from kiss3d_infer.reconstruct.debug import DebugFolder
    from kiss3d_infer.reconstruct.target import Target
    from kiss3d_infer.reconstruct.unseen import with_film

    pictures = None if debug is None else DebugFolder(debug)
    stages = _Stages(on_progress)
    with stages.timed("target"):
        target = Target.of(bundle)
        coarse = target.resized(min(_COARSE_SIZE, target.size))
    with stages.timed("start"):
        start, warnings = _start(target, coarse, settings, start_mesh, lrm_weights, device)
    with stages.timed("coarse") as on_step:
        rough = _fit_coarse(start, coarse.to(device), settings, on_step, pictures is not None)
        target = without_shading(target) if settings.albedo else target
        believed = replace(target, confidence=rough.confidence).shifted(rough.shifts)
    with stages.timed("fine") as on_step:
        fine = believed.resized(min(_FINE_SIZE, target.size)).to(device)
        made = _fit_fine(rough, fine, settings, on_step, pictures is not None)
    with stages.timed("clean"):
        vertices = with_film(made.vertices, made.faces, fine)
        vertices, faces = clean(vertices, made.faces, settings.num_faces)
    with stages.timed("texture"), torch.no_grad():
        painted = _painted(vertices, faces, made, believed.to(device), settings)
    with stages.timed("measure"), torch.no_grad():
        measurements = _measured(painted, vertices, faces, target.to(device), rough)
    if pictures is not None:
        with stages.timed("debug"):
            pictures.write_targets(believed)
            pictures.write_stage("start", start.vertices, start.faces, fine)
            pictures.write_stage("coarse", rough.vertices, rough.faces, fine)
            pictures.write_stage("fine", made.vertices, made.faces, fine)
            pictures.write_stage("clean", vertices, faces, fine)
            pictures.write_losses({"coarse": rough.losses, "fine": made.losses})
            pictures.write_unseen(painted.seen_map)
            pictures.write_turntable(painted.mesh)
    warnings += _doubts(target, measurements)
    return Reconstruction(painted.mesh, measurements, stages.seconds, warnings)


def _start(
    target: "Target",
    coarse: "Target",
    settings: ReconstructSettings,
    start_mesh: "Mesh | None",
    lrm_weights: Path | None,
    device: str,
) -> tuple["Start", tuple[str, ...]]:
    from kiss3d_infer.reconstruct.lrm.start import lrm_start
    from kiss3d_infer.reconstruct.shell import closed_surface
    from kiss3d_infer.reconstruct.starts import Start, make_start

    if start_mesh is not None:
        return Start(*closed_surface(start_mesh), "mesh"), target.warnings
    if lrm_weights is not None:
        made = lrm_start(target, lrm_weights, device=device)
        return Start(made.vertices, made.faces, "lrm"), target.warnings + made.warnings
    start = make_start(settings.init, coarse)
    if start.name == settings.init:
        return start, target.warnings
    doubt = f"the views disagree too much for a {settings.init} start; began with a {start.name}"
    return start, (*target.warnings, doubt)


def _fit_coarse(
    start: "Start",
    target: "Target",
    settings: ReconstructSettings,
    on_step: Callable[[float], None],
    records_losses: bool,
) -> "Refined":
    from kiss3d_infer.reconstruct.refine import COARSE, COARSE_LOSS, refine
    from kiss3d_infer.reconstruct.volume import pixel_pitch

    # A start whose details shall survive has short edges from the first step on; but what is
    # shorter than two pixels, the views cannot tell, and it only folds.
    lengths = COARSE.edge_lengths if start.is_rough else _DETAILED_LENGTHS
    shortest = 2 * pixel_pitch(target.cameras, target.size)
    first, least = (max(length, shortest) for length in lengths)
    return refine(
        start.vertices,
        start.faces,
        target,
        replace(COARSE, edge_lengths=(first, least)),
        settings.coarse_steps,
        COARSE_LOSS,
        on_step=on_step,
        records_losses=records_losses,
    )


def _fit_fine(
    rough: "Refined",
    target: "Target",
    settings: ReconstructSettings,
    on_step: Callable[[float], None],
    records_losses: bool,
) -> "Refined":
    from kiss3d_infer.reconstruct.refine import FINE, FINE_LOSS, refine
    from kiss3d_infer.reconstruct.unseen import with_film

    return refine(
        with_film(rough.vertices, rough.faces, target),
        rough.faces,
        target,
        FINE,
        settings.fine_steps,
        FINE_LOSS,
        on_step=on_step,
        records_losses=records_losses,
    )


def _painted(
    vertices: "Float32",
    faces: "Int32",
    dense: "Refined",
    target: "Target",
    settings: ReconstructSettings,
) -> "Painted":
    from kiss3d_infer.reconstruct.detail import normal_map
    from kiss3d_infer.reconstruct.texture import textured

    painted = textured(vertices, faces, target, settings.texture_size)
    if not settings.normal_map:
        return painted
    details = normal_map(painted.mesh, dense.vertices, dense.faces, settings.texture_size)
    material = replace(painted.mesh.materials[0], normal_map=details)
    return replace(painted, mesh=replace(painted.mesh, materials=(material,)))


def _measured(
    painted: "Painted", vertices: "Float32", faces: "Int32", target: "Target", rough: "Refined"
) -> dict[str, float]:
    """What `Reconstruction.measurements` lists; `vertices` and `faces` are not yet unwrapped."""
    from kiss3d_infer.reconstruct.measure import agreement
    from kiss3d_infer.reconstruct.topology import is_closed_manifold
    from kiss3d_infer.scene.likeness import by_view

    return agreement(painted.mesh, target) | {
        "num_faces": float(len(faces)),
        "watertight": float(is_closed_manifold(faces, len(vertices))),
        "unseen_share": painted.unseen_share,
        **by_view("view_shift", rough.shifts.norm(dim=1), target.views),
        **by_view("view_confidence", rough.confidence, target.views),
    }


def _doubts(target: "Target", measurements: dict[str, float]) -> tuple[str, ...]:
    """Sentences about views that are not of the object the others show."""
    doubts = []
    for view, azimuth in zip(target.views, target.cameras.azimuths, strict=True):
        shift = measurements[f"view_shift/{view}"]
        confidence = measurements[f"view_confidence/{view}"]
        name = f"view {view} (azimuth {azimuth:g})"
        if shift > _NOTABLE_SHIFT:
            doubts.append(f"{name} was {shift:.1%} of its width off the others and was moved")
        if confidence < _NOTABLE_CONFIDENCE:
            doubts.append(f"{name} disagrees with the others and counted {confidence:.0%}")
        iou, error = (measurements[f"{n}/{view}"] for n in ("silhouette_iou", "normal_error"))
        if iou < _POOR_IOU or error > _POOR_NORMALS:
            doubts.append(
                f"the mesh does not fit {name}: silhouette IoU {iou:.2f}, "
                f"normals {error:.0f} degrees off"
            )
    return tuple(doubts)


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
    settings = ReconstructSettings(
        coarse_steps=4, fine_steps=4, num_faces=500, texture_size=64, normal_map=True
    )
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
