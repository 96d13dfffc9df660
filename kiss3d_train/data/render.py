"""Renders a mesh source into a folder of bundle images over Ray: resumable and deterministic."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked, sweep, writing
from kiss3d_infer.progress import track
from kiss3d_train.data.curation.orientation import annotated, load_estimator
from kiss3d_train.data.descriptions import QUARANTINE_NAME
from kiss3d_train.data.quarantine import Quarantine
from kiss3d_train.data.rendering.light import Lights
from kiss3d_train.data.rendering.sample import (
    RenderJob,
    extra_path,
    made_from,
    mesh_sha256,
    paths_of,
    render_item,
)
from kiss3d_train.data.rendering.schedule import gpu_share, outcomes
from kiss3d_train.data.rendering.settings import (
    DEFAULT_LIMITS,
    NO_EXTRAS,
    STUDIO_LIGHT,
    ExtraSettings,
    LightSettings,
    RenderLimits,
    RenderSettings,
)
from kiss3d_train.data.sources import (
    MeshItem,
    MeshSource,
    absolute_spec,
    named_folder,
    open_source,
)
from kiss3d_train.data.tile import check_tile
from kiss3d_train.ray_session import ray_session, unwrapped

__all__ = [
    "RenderJob",
    "RenderSummary",
    "mesh_sha256",
    "render_item",
    "render_source",
]

SOURCES_NAME = ".sources"
"""JSON: where the folders and libraries lie whose meshes were rendered into this one, by name."""


@dataclass(frozen=True)
class RenderSummary:
    """What a render job did.

    Attributes:
        rendered: samples made now.
        kept: samples that were whole already.
        quarantined: meshes that cannot be rendered; reasons are in `quarantine.jsonl`.
        seconds: of rendering, Ray's start included.
    """

    out: Path
    rendered: int
    kept: int
    quarantined: int
    seconds: float

    def __str__(self) -> str:
        """One line."""
        rate = self.rendered / self.seconds if self.seconds else 0.0
        return (
            f"{self.rendered} rendered, {self.kept} kept, {self.quarantined} quarantined "
            f"in {self.seconds:.0f} s ({rate:.1f}/s): {self.out}"
        )


def render_source(
    spec: str,
    out: Path,
    *,
    tile: int = 512,
    layout: BundleLayout = PUBLISHED,
    limit: int | None = None,
    num_workers: int | None = None,
    device: str = "cpu",
    limits: RenderLimits = DEFAULT_LIMITS,
    lighting: LightSettings = STUDIO_LIGHT,
    extras: ExtraSettings = NO_EXTRAS,
    orientation: Path | None = None,
    estimator: str | None = None,
) -> RenderSummary:
    """Render every mesh of a source to `<key>.bundle.png` and `<key>.json`.

    The description is written last: where it stands, the sample is whole. A run over the same
    folder keeps whole samples of the same settings and unchanged meshes, and tries quarantined
    meshes again. The bytes do not depend on the number of workers, and Ctrl-C leaves nothing that a
    later run would mistake. Several sources of different names may share a folder, one job after
    the other.

    Args:
        spec: see `open_source`.
        out: folder, shared by all nodes of a cluster.
        tile: side of a tile in pixels, a multiple of 16.
        layout: views and rows.
        limit: only the first so many meshes.
        num_workers: meshes rendered at a time, one CPU each; None = every CPU Ray has.
        device: "cpu", or "cuda": the workers share Ray's GPUs, and the bytes may differ slightly
            from the CPU's and from one run to the next.
        limits: of each mesh; one that goes beyond them is quarantined.
        lighting: what light the objects stand in.
        extras: what else is written for each.
        orientation: file of annotated fronts, see `read_fronts`; it overrules the source.
        estimator: asked for the fronts that neither the file nor the source gives, see
            `load_estimator`.

    Raises:
        InputError: no such source or device, no environment maps, another tile size, `out` cannot
            be written, another job works in it, or it holds samples of another source of the same
            name.
    """
    check_tile(tile)
    if device not in ("cpu", "cuda"):
        raise InputError(f"cannot render on '{device}'", where="device", fix="use cpu or cuda")
    source = open_source(spec)
    items = source.items()
    if orientation is not None:
        items = annotated(items, orientation)
    if estimator is not None:
        load_estimator(estimator)
    _require_different_keys(items)
    with locked(out):
        where, lights = absolute_spec(spec), Lights.of(lighting)
        job = RenderJob(
            where, out.resolve(), tile, layout, device, limits, lights, extras, estimator
        )
        _claim_name(job)
        sweep(job.out)
        summary = _render_missing(job, source, items[:limit], num_workers)
        sweep(job.out)
        return summary


def render_with(
    settings: RenderSettings, spec: str, out: Path, limit: int | None, orientation: Path | None
) -> RenderSummary:
    """Render as a recipe says; see `render_source`."""
    return render_source(
        spec,
        out,
        tile=settings.tile,
        layout=settings.layout,
        limit=limit,
        num_workers=settings.workers,
        device=settings.device,
        limits=settings.limits,
        lighting=settings.lighting,
        extras=settings.extras,
        orientation=orientation,
        estimator=settings.front_estimator,
    )


def _render_missing(
    job: RenderJob, source: MeshSource, items: Sequence[MeshItem], num_workers: int | None
) -> RenderSummary:
    missing = [item for item in items if not _is_whole(job, source, item)]
    quarantine = Quarantine(job.out / QUARANTINE_NAME)
    began, num_failed = time.monotonic(), 0
    try:
        if missing:
            with ray_session(num_workers or 1) as resources, unwrapped():
                workers = num_workers or int(resources["CPU"])
                share = gpu_share(job.device, resources, workers)
                with closing(outcomes(job, missing, workers, share)) as ended:
                    for key, record in track(ended, "rendering", len(missing)):
                        quarantine.note(key, record)
                        num_failed += record is not None
    finally:
        quarantine.save()
    return RenderSummary(
        out=job.out,
        rendered=len(missing) - num_failed,
        kept=len(items) - len(missing),
        quarantined=num_failed,
        seconds=time.monotonic() - began,
    )


def _require_different_keys(items: Sequence[MeshItem]) -> None:
    locators: dict[str, str] = {}
    for item in items:
        other = locators.setdefault(item.key, item.locator)
        if other != item.locator:
            raise InputError(
                f"{other} and {item.locator} get the same key, {item.key}",
                where=item.source,
                fix="rename one of them",
            )


def _claim_name(job: RenderJob) -> None:
    """Refuse a folder or library of another place and the same name: their keys may be the same.

    One that was moved is welcome: nothing lies where it was.
    """
    path = named_folder(job.spec)
    if path is None:
        return
    record = job.out / SOURCES_NAME
    known = json.loads(record.read_bytes()) if record.is_file() else {}
    before = known.get(path.name)
    if before == str(path):
        return
    if before is not None and Path(before).exists():
        raise InputError(
            f"the samples of {path.name} here were rendered from {before}, not from {path}",
            where=job.out,
            fix="render into another folder, or rename one of the two",
        )
    with writing(record) as aside:
        aside.write_text(json.dumps(known | {path.name: str(path)}, indent=1), encoding="utf-8")


def _is_whole(job: RenderJob, source: MeshSource, item: MeshItem) -> bool:
    """Whether the sample exists, made from this very mesh with the job's settings."""
    picture, description = paths_of(job, item)
    try:
        meta = json.loads(description.read_bytes())
        made = made_from(job, source, item)
    except (OSError, ValueError, InputError):
        return False
    is_same = isinstance(meta, dict) and made.items() <= meta.items() and "statistics" in meta
    extras = [extra_path(job, item, kind) for kind in job.extras.kinds]
    return is_same and all(path.is_file() for path in (picture, *extras))
