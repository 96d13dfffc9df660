"""One sample: a mesh of a source rendered to a bundle, and what is written about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiss3d_infer import __version__
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writing
from kiss3d_train.data.captions.captioner import CaptionSource
from kiss3d_train.data.captions.names import caption_of
from kiss3d_train.data.curation.orientation import load_estimator, oriented
from kiss3d_train.data.descriptions import picture_of
from kiss3d_train.data.quarantine import Record
from kiss3d_train.data.rendering.light import STUDIO_LIGHTS, Lights
from kiss3d_train.data.rendering.record import record_of
from kiss3d_train.data.rendering.settings import (
    DEFAULT_LIMITS,
    FILES,
    NO_EXTRAS,
    ExtraName,
    ExtraSettings,
    RenderLimits,
)
from kiss3d_train.data.sources import MeshItem, MeshSource, open_source

if TYPE_CHECKING:
    from kiss3d_infer.bundle.image import Bundle
    from kiss3d_infer.scene.lighting import Light
    from kiss3d_infer.scene.mesh import Mesh


@dataclass(frozen=True)
class RenderJob:
    """What a worker needs besides the item; see `render_source`."""

    spec: str
    out: Path
    tile: int
    layout: BundleLayout
    device: str = "cpu"
    limits: RenderLimits = DEFAULT_LIMITS
    lights: Lights = STUDIO_LIGHTS
    extras: ExtraSettings = NO_EXTRAS
    estimator: str | None = None


@dataclass(frozen=True)
class RenderRequest:
    """What a process that renders is asked for."""

    job: RenderJob
    item: MeshItem


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
    paths_of(job, item)[1].unlink(missing_ok=True)
    for kind in FILES:
        extra_path(job, item, kind).unlink(missing_ok=True)
    light = job.lights.light(item.key)
    try:
        made = made_from(job, source, item)
        described = source.describe(item)
        item = described if item.front is None else replace(described, front=item.front)
        estimator = load_estimator(job.estimator) if job.estimator else None
        item, loaded = oriented(item, source.load(item), estimator)
        rendered = _rendered(loaded, job, item.key, light)
    except InputError as error:
        return record_of(asdict(item), error.what)
    except Exception as error:
        return record_of(asdict(item), f"{type(error).__name__}: {error}"[:500])
    _write_sample(job, item, rendered, made)
    return None


def made_from(job: RenderJob, source: MeshSource, item: MeshItem) -> dict[str, Any]:
    """All that a sample depends on, as its description records it."""
    return {
        "fingerprint": source.fingerprint(item),
        "annotated_front": item.front,
        "front_estimator": job.estimator,
        "tile": job.tile,
        "layout": job.layout.model_dump(mode="json"),
        "lighting": job.lights.described(item.key),
        "extra_settings": job.extras.described(),
    }


def paths_of(job: RenderJob, item: MeshItem) -> tuple[Path, Path]:
    """A sample's picture and its description."""
    description = job.out / f"{item.key}.json"
    return picture_of(description), description


def extra_path(job: RenderJob, item: MeshItem, kind: ExtraName) -> Path:
    """Where a sample's extra of a kind lies."""
    return job.out / f"{item.key}.{FILES[kind]}"


@dataclass(frozen=True)
class _Rendered:
    mesh: Mesh
    bundle: Bundle
    extras: dict[ExtraName, bytes]
    said: dict[str, Any]


def _rendered(loaded: Mesh, job: RenderJob, key: str, light: Light) -> _Rendered:
    from kiss3d_infer.bundle.masks import normal_masks
    from kiss3d_infer.bundle.validate import validate
    from kiss3d_infer.scene.framing import framed
    from kiss3d_infer.scene.render import draw

    mesh = framed(loaded, job.layout.cameras)
    drawing = draw(mesh, job.layout.cameras, job.tile, lighting=light, device=job.device)
    bundle = drawing.bundle(job.layout)
    if not normal_masks(bundle).any((1, 2)).all():
        raise InputError("the mesh is flat: one of the views does not see it")
    measurements = validate(bundle).measurements
    said: dict[str, Any] = {
        "measurements": {name: round(value, 6) for name, value in measurements.items()}
    }
    if not job.extras.kinds:
        return _Rendered(mesh, bundle, {}, said)
    from kiss3d_train.data.rendering.extras import extra_files

    views = drawing.views()
    extras, about = extra_files(job.extras, key, mesh, views, job.layout, light, job.device)
    described = {
        kind: {"sha256": sha256_of(data), **about.get(kind, {})} for kind, data in extras.items()
    }
    return _Rendered(mesh, bundle, extras, said | {"extras": described})


def _write_sample(
    job: RenderJob, item: MeshItem, rendered: _Rendered, made: dict[str, Any]
) -> None:
    from kiss3d_infer.bundle.image import encode_image
    from kiss3d_train.data.curation.statistics import statistics_of

    picture, description = paths_of(job, item)
    image = encode_image(rendered.bundle, "png")
    meta = {
        **asdict(item),
        "caption": caption_of(item),
        "caption_source": CaptionSource.of_item(item).to_json(),
        "mesh_sha256": mesh_sha256(rendered.mesh),
        "num_faces": len(rendered.mesh.faces),
        "bundle_sha256": sha256_of(image),
        "statistics": statistics_of(rendered.mesh, rendered.bundle).model_dump(mode="json"),
        **made,
        **rendered.said,
        "device": job.device,
        "kiss3d_version": __version__,
    }
    files = {extra_path(job, item, kind): data for kind, data in rendered.extras.items()}
    for path, data in (files | {picture: image}).items():
        with writing(path) as aside:
            aside.write_bytes(data)
    with writing(description) as aside:
        aside.write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")


def mesh_sha256(mesh: Mesh) -> str:
    """A checksum of the mesh as rendered: geometry, colours, textures, gloss."""
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
        if not material.is_matt:
            digest.update(f"gloss {material.metallic} {material.roughness}".encode())
        if material.gloss_map is not None:
            digest.update(material.gloss_map.contiguous().numpy().tobytes())
    return digest.hexdigest()
