"""Renders a mesh source into a folder of bundle images over Ray: resumable and deterministic."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiss3d_infer import __version__
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked, sha256_of, writing
from kiss3d_infer.progress import track
from kiss3d_train.data.captions import caption_of
from kiss3d_train.data.sources import (
    MeshItem,
    MeshSource,
    absolute_spec,
    named_folder,
    open_source,
)
from kiss3d_train.data.tile import check_tile
from kiss3d_train.ray_session import ray_session, unwrapped

if TYPE_CHECKING:
    from kiss3d_infer.bundle.image import Bundle
    from kiss3d_infer.scene.mesh import Mesh

QUARANTINE_NAME = "quarantine.jsonl"
SOURCES_NAME = ".sources"
"""JSON: where the folders and libraries lie whose meshes were rendered into this one, by name."""
_MOST_PER_GPU = 16
"""Workers that share one; each holds some 2 GiB of its memory."""
_GRACE_SECONDS = 30.0
"""How long an interrupted job waits for the meshes that it had begun."""


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


@dataclass(frozen=True)
class RenderJob:
    """What a worker needs besides the item; see `render_source`."""

    spec: str
    out: Path
    tile: int
    layout: BundleLayout
    device: str = "cpu"


def render_source(
    spec: str,
    out: Path,
    *,
    tile: int = 512,
    layout: BundleLayout = PUBLISHED,
    limit: int | None = None,
    num_workers: int | None = None,
    device: str = "cpu",
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

    Raises:
        InputError: no such source, another tile size, `out` cannot be written, another job works
            in it, it holds samples of another source of the same name, or there is no such device.
    """
    check_tile(tile)
    if device not in ("cpu", "cuda"):
        raise InputError(f"cannot render on '{device}'", where="device", fix="use cpu or cuda")
    source = open_source(spec)
    items = source.items()
    _require_different_keys(items)
    with locked(out):
        job = RenderJob(absolute_spec(spec), out.resolve(), tile, layout, device)
        _claim_name(job)
        for left_by_a_kill in job.out.glob(".*.partial.*"):
            left_by_a_kill.unlink(missing_ok=True)
        return _render_missing(job, source, items[:limit], num_workers)


def _render_missing(
    job: RenderJob, source: MeshSource, items: Sequence[MeshItem], num_workers: int | None
) -> RenderSummary:
    missing = [item for item in items if not _is_whole(job, source, item)]
    quarantine = _Quarantine(job.out / QUARANTINE_NAME)
    began = time.monotonic()
    try:
        if missing:
            with ray_session(num_workers or 1) as resources, unwrapped():
                workers = num_workers or int(resources["CPU"])
                share = _gpu_share(job.device, resources, workers)
                with closing(_outcomes(job, missing, workers, share)) as outcomes:
                    for key, record in track(outcomes, "rendering", len(missing)):
                        quarantine.note(key, record)
    finally:
        quarantine.save()
    return RenderSummary(
        out=job.out,
        rendered=len(missing) - quarantine.num_noted,
        kept=len(items) - len(missing),
        quarantined=quarantine.num_noted,
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
    picture, description = _paths(job, item)
    try:
        meta = json.loads(description.read_bytes())
        made_from = _made_from(job, source, item)
    except (OSError, ValueError, InputError):
        return False
    is_same = isinstance(meta, dict) and made_from.items() <= meta.items()
    return is_same and picture.is_file()


def _made_from(job: RenderJob, source: MeshSource, item: MeshItem) -> dict[str, Any]:
    """All that a sample depends on, as its description records it."""
    return {
        "fingerprint": source.fingerprint(item),
        "tile": job.tile,
        "layout": job.layout.model_dump(mode="json"),
    }


def _paths(job: RenderJob, item: MeshItem) -> tuple[Path, Path]:
    return job.out / f"{item.key}.bundle.png", job.out / f"{item.key}.json"


Record = dict[str, Any]
"""A line of the quarantine."""


class _Quarantine:
    """The meshes that could not be rendered, one line each, ordered by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_noted = 0
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._records: dict[str, Record] = {
            record["key"]: record for record in map(json.loads, lines)
        }

    def note(self, key: str, record: Record | None) -> None:
        """Note a mesh's failure, or with None that it could be rendered."""
        self._records.pop(key, None)
        if record is not None:
            self.num_noted += 1
            self._records[key] = record

    def save(self) -> None:
        """Write the file."""
        lines = [
            json.dumps(self._records[key], ensure_ascii=False) for key in sorted(self._records)
        ]
        with writing(self.path) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ---------------------------------------------------------------------------- over Ray


def _gpu_share(device: str, resources: Mapping[str, float], workers: int) -> float:
    """What of a GPU each worker gets: one alone would mostly wait for its own CPU."""
    if device == "cpu":
        return 0.0
    num_gpus = int(resources.get("GPU", 0))
    if num_gpus == 0:
        raise InputError("Ray has no GPU to render on", where="--device", fix="use --device cpu")
    return 1 / min(math.ceil(workers / num_gpus), _MOST_PER_GPU)


def _outcomes(
    job: RenderJob, items: Sequence[MeshItem], workers: int, gpu_share: float = 0.0
) -> Generator[tuple[str, Record | None]]:
    """Each item's key and, if it failed, its record, in the order in which they end.

    A mesh whose worker died is tried once more; one that took too much memory is not.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    # With retries of its own, Ray would repeat without end what its memory monitor has killed.
    task = ray.remote(num_cpus=1, num_gpus=gpu_share, max_retries=0)(render_item)
    running: dict[Any, MeshItem] = {}
    waiting, crashed = deque(items), set[str]()
    try:
        while waiting or running:
            # One more than there are workers, so that none waits for the driver.
            while waiting and len(running) < workers + 1:
                item = waiting.popleft()
                running[task.remote(job, item)] = item
            (reference, *_), _ = ray.wait(list(running))
            item = running.pop(reference)
            try:
                yield item.key, ray.get(reference)
            except (WorkerCrashedError, OutOfMemoryError) as error:
                if isinstance(error, WorkerCrashedError) and item.key not in crashed:
                    crashed.add(item.key)
                    waiting.append(item)
                    continue
                reason = f"the worker process died: {type(error).__name__}"
                yield item.key, _record(item, reason)
    finally:
        # Interrupted: what is being rendered becomes whole. Not ray.cancel: a task that ends while
        # it is cancelled makes Ray 2.60 abort this process ("complete task that was not pending").
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_GRACE_SECONDS)


def _record(item: MeshItem, reason: str) -> Record:
    return {"key": item.key, "reason": reason, "source": item.source, "locator": item.locator}


_source = lru_cache(maxsize=2)(open_source)


def render_item(job: RenderJob, item: MeshItem) -> Record | None:
    """Render one mesh and write its sample.

    Returns:
        None, or a record of the quarantine if the mesh is at fault.

    Raises:
        InputError: the sample cannot be written.
    """
    source: MeshSource = _source(job.spec)
    # From here on no description vouches for an older sample, even if the mesh is now at fault.
    _paths(job, item)[1].unlink(missing_ok=True)
    try:
        made_from = _made_from(job, source, item)
        item = source.describe(item)
        mesh, bundle, measurements = _rendered(source.load(item), job)
    except InputError as error:
        return _record(item, error.what)
    except Exception as error:
        return _record(item, f"{type(error).__name__}: {error}"[:500])
    _write_sample(job, item, mesh, bundle, made_from | {"measurements": measurements})
    return None


def _rendered(loaded: Mesh, job: RenderJob) -> tuple[Mesh, Bundle, dict[str, float]]:
    from kiss3d_infer.bundle.masks import normal_masks
    from kiss3d_infer.bundle.validate import validate
    from kiss3d_infer.scene.framing import framed
    from kiss3d_infer.scene.render import render_bundle

    mesh = framed(loaded, job.layout.cameras)
    bundle = render_bundle(mesh, job.layout, job.tile, device=job.device)
    if not normal_masks(bundle).any((1, 2)).all():
        raise InputError("the mesh is flat: one of the views does not see it")
    measurements = validate(bundle).measurements
    return mesh, bundle, {name: round(value, 6) for name, value in measurements.items()}


def _write_sample(
    job: RenderJob, item: MeshItem, mesh: Mesh, bundle: Bundle, made: dict[str, Any]
) -> None:
    from kiss3d_infer.bundle.image import encode_image

    picture, description = _paths(job, item)
    image = encode_image(bundle, "png")
    meta = {
        **asdict(item),
        "caption": caption_of(item),
        "mesh_sha256": mesh_sha256(mesh),
        "num_faces": len(mesh.faces),
        "bundle_sha256": sha256_of(image),
        **made,
        "kiss3d_version": __version__,
    }
    with writing(picture) as aside:
        aside.write_bytes(image)
    with writing(description) as aside:
        aside.write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


# ---------------------------------------------------------------------------- geometry


def mesh_sha256(mesh: Mesh) -> str:
    """A checksum of the mesh as rendered: geometry, colours and textures."""
    digest = hashlib.sha256()
    for name in ("vertices", "faces", "normals", "uv", "vertex_colors", "material_index"):
        tensor = getattr(mesh, name)
        if tensor is not None:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    for material in mesh.materials:
        digest.update(repr(material.base_color).encode())
        if material.texture is not None:
            digest.update(f"texture {tuple(material.texture.shape)}".encode())
            digest.update(material.texture.contiguous().numpy().tobytes())
    return digest.hexdigest()
