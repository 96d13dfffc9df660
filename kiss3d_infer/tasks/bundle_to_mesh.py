"""A bundle image becomes a textured mesh."""

from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.bundle import load_bundle, validate
from kiss3d_infer.bundle.masks import require_shown
from kiss3d_infer.errors import InputError
from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.reconstruct import ReconstructSettings, reconstruct
from kiss3d_infer.scene.export import checked_export_type, save_mesh
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.load import load_mesh

OTHER_BUNDLE = "give another bundle"
"""What to do about a bundle that is of no use."""
_DEFAULTS = ReconstructSettings()


@dataclass(frozen=True)
class Asset:
    """A finished asset.

    Attributes:
        path: the mesh.
        bundle: the bundle image it was made from.
        measurements: of the bundle (as `bundle/<name>`) and of the mesh.
        seconds: wall time by stage.
        warnings: sentences about what was wrong with the bundle and how it was met.
    """

    path: Path
    bundle: Path
    measurements: dict[str, float]
    seconds: dict[str, float]
    warnings: tuple[str, ...]


def bundle_to_mesh(
    bundle: Path,
    out: Path,
    *,
    settings: ReconstructSettings = _DEFAULTS,
    device: str = "cpu",
    start_mesh: Path | None = None,
    lrm_weights: Path | None = None,
    height_m: float | None = None,
    debug: Path | None = None,
    force: bool = False,
    remedy: str = OTHER_BUNDLE,
    on_progress: ProgressFn | None = None,
) -> Asset:
    """Validate a bundle image, reconstruct it and write the mesh.

    Args:
        bundle: a .png or .webp; its layout is read from it, the published one if it names none.
        out: see `save_mesh` for the types; appears only when whole.
        settings: of the reconstruction.
        device: where to rasterize.
        start_mesh: a mesh file to start from, facing +Z; any triangles.
        lrm_weights: see `reconstruct`, as `debug`.
        height_m: see `save_mesh`.
        debug: see `reconstruct`.
        force: go on although the bundle fails validation.
        remedy: what to do about a bundle that is of no use, for the error.
        on_progress: told "validate", the reconstruction's stages and "export"; what it raises
            cancels the work.

    Raises:
        InputError: the bundle cannot be read, fails validation, or shows nothing.
    """
    report = on_progress or (lambda stage, fraction: None)
    check_output(out, device)
    report("validate", 0.0)
    image = load_bundle(bundle)
    start = None if start_mesh is None else framed(load_mesh(start_mesh), image.layout.cameras)
    verdict = validate(image)
    if not verdict.ok:  # of an empty bundle, only that it is empty
        require_shown(image, where=bundle, fix=remedy)
    if not verdict.ok and not force:
        raise InputError(
            f"the bundle fails validation: {'; '.join(verdict.problems)}",
            where=bundle,
            fix=f"{remedy}, or force it to go on regardless",
        )
    made = reconstruct(
        image,
        settings,
        device=device,
        start_mesh=start,
        lrm_weights=lrm_weights,
        debug=debug,
        on_progress=on_progress,
    )
    report("export", 0.0)
    # The mesh carries its own agreement with the bundle.
    save_mesh(made.mesh, out, height_m=height_m, extras=made.measurements)
    measured = {f"bundle/{name}": value for name, value in verdict.measurements.items()}
    return Asset(
        path=out,
        bundle=bundle,
        measurements=measured | made.measurements,
        seconds=made.seconds,
        warnings=(*verdict.problems, *made.warnings),
    )


def check_output(out: Path, device: str) -> None:
    """Refuse, before any work, an asset that could not be made or written at its end.

    Raises:
        InputError: an unknown type, a folder that cannot be written, or no rasterizer for `device`.
    """
    from kiss3d_infer.scene.raster import rasterizer_for

    checked_export_type(out)
    rasterizer_for(device)
