"""One round: draw every prompt with an adapter, judge the bundles, and put them on one sheet."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kiss3d_infer.bundle import Bundle, save_bundle, silhouettes, validate
from kiss3d_infer.bundle.normals import decode
from kiss3d_infer.errors import InputError
from kiss3d_infer.evaluate import CompareOptions, bundle_psnr, compare, view_agreement
from kiss3d_infer.files import writing
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import apply_lora
from kiss3d_infer.flux.sampling import generate_bundle
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.likeness import likeness
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.pictures import contact_sheet
from kiss3d_train.config import SamplesSection, TrainConfig
from kiss3d_train.data.shards import ShardIndex, decode_sample, load_index
from kiss3d_train.data.shards.reader import read_members
from kiss3d_train.data.storage import Place, folder_at
from kiss3d_train.samples.rounds import Round

_SHEET_WIDTH = 2048
_POINTS_ALONE = CompareOptions(volume_resolution=None, view_size=None)
_MESH_METRICS = ("chamfer_mean", "f_score/0.1", "normal_consistency")


@dataclass(frozen=True)
class Subject:
    """What is drawn: a prompt, and the bundle that it belongs to if it is a held-out caption."""

    prompt: str
    seed: int
    truth: Bundle | None = None


@dataclass(frozen=True)
class Drawing:
    """A drawn bundle and how good it is.

    Attributes:
        measurements: those of `view_agreement`; with the truth those of `compared`; with a mesh
            `reconstruction_iou`, and with both those of `compared_meshes`.
        problems: sentences; none if the bundle is valid.
    """

    subject: Subject
    bundle: Bundle
    measurements: dict[str, float]
    problems: tuple[str, ...]


def draw_round(config: TrainConfig, what: Round) -> dict[str, float]:
    """Draw, measure and write a round; returns its metrics by MLflow name.

    Raises:
        InputError: the base, the adapter or the data set cannot be read.
    """
    began = time.perf_counter()
    index = load_index(config.data.shards)
    subjects = subjects_of(config.samples, config.data.shards, index)
    if not subjects:
        raise InputError(
            "there is nothing to draw: the validation split has no captions",
            where="samples.held_out",
            fix="give samples.prompts",
        )
    device = "cuda" if config.samples.gpus > 0 else "cpu"
    pipeline = load_base(config.base.path, dtype=config.base.dtype, device=device)
    adapter = apply_lora(pipeline, what.adapter)
    drawings = []
    for number, subject in enumerate(subjects):
        bundle = generate_bundle(
            pipeline,
            subject.prompt,
            layout=adapter.layout,
            domains=adapter.domains,
            tile=index.tile,
            steps=config.samples.steps,
            guidance=config.samples.guidance,
            seed=subject.seed,
        )
        save_bundle(bundle, what.folder / f"{number}.bundle.png")
        drawings.append(judged(subject, bundle))
    del pipeline  # its memory may be needed for the reconstruction
    if config.samples.reconstruct:
        drawings = [
            with_reconstruction(drawing, what.held_out_mesh(number), device)
            for number, drawing in enumerate(drawings)
        ]
    metrics = metrics_of(drawings) | {"samples/seconds": time.perf_counter() - began}
    _write(what, drawings, metrics)
    return metrics


def subjects_of(section: SamplesSection, shards: Place, index: ShardIndex) -> list[Subject]:
    """The first held-out captions, then the recipe's prompts, always with the same seeds.

    Blank captions, which data sets of others may have, ask for nothing and are left out.
    """
    held_out = [(shard.name, sample) for shard in index.of("val") for sample in shard.samples]
    folder = folder_at(shards)  # of which no other tar need be there
    truths = [
        decode_sample(read_members(folder, tar, sample))
        for tar, sample in held_out[: section.held_out]
    ]
    captioned = [(str(meta["caption"]), bundle) for bundle, meta in truths]
    known = [Subject(caption, 0, bundle) for caption, bundle in captioned if caption.strip()]
    subjects = [*known, *(Subject(prompt, 0) for prompt in section.prompts)]
    return [replace(s, seed=section.seed + number) for number, s in enumerate(subjects)]


def judged(subject: Subject, bundle: Bundle) -> Drawing:
    """Validate a drawing, and compare it with the truth where there is one."""
    measured = view_agreement(bundle)
    if subject.truth is not None:
        measured |= compared(bundle, subject.truth)
    return Drawing(subject, bundle, measured, validate(bundle).problems)


def compared(drawn: Bundle, truth: Bundle) -> dict[str, float]:
    """How near a drawing is to the bundle of its caption, of the same layout and tile.

    A caption does not tell everything, so that a perfect model is not near either.

    Returns:
        `psnr/rgb` of the RGB row in dB, at most 100; `truth_iou` of the silhouettes; `normal_error`
        in degrees where both show the object: see `likeness`.
    """
    found = likeness(_masks(drawn), _masks(truth), _normals(drawn), _normals(truth))
    return {
        "psnr/rgb": bundle_psnr(drawn, truth)["psnr/rgb"],
        "truth_iou": found["silhouette_iou"],
        "normal_error": found["normal_error"],
    }


def with_reconstruction(drawing: Drawing, held_out: Path, device: str) -> Drawing:
    """The drawing with how good its mesh is; as it is where it is not fit for one.

    Args:
        drawing: a judged one.
        held_out: where the mesh of its truth lies, or is left for the rounds that follow.
        device: "cpu" or "cuda".
    """
    from kiss3d_infer.reconstruct import reconstruct

    if drawing.problems:
        return drawing
    try:
        made = reconstruct(drawing.bundle, device=device)
    except InputError as error:
        return replace(drawing, problems=(f"it cannot be reconstructed: {error.what}",))
    measured = {"reconstruction_iou": made.measurements["silhouette_iou"]}
    truth = drawing.subject.truth
    if truth is not None and (mesh := _mesh_of_truth(truth, held_out, device)):
        measured |= compared_meshes(made.mesh, mesh)
    return replace(drawing, measurements=drawing.measurements | measured)


def compared_meshes(drawn: Mesh, truth: Mesh) -> dict[str, float]:
    """How near a drawing's mesh is to that of the held-out bundle, reconstructed the same way.

    Returns:
        By `PAPER_PROTOCOL`, as `vs_held_out_bundle_mesh/<name>`: `chamfer_mean`, in halves of the
        longest side; `f_score/0.1` and `normal_consistency`, 1 at best.
    """
    found = compare(drawn, truth, _POINTS_ALONE)
    return {f"vs_held_out_bundle_mesh/{name}": found[name] for name in _MESH_METRICS}


def _mesh_of_truth(truth: Bundle, path: Path, device: str) -> Mesh | None:
    """The mesh of a held-out bundle, made once in a run; None if it cannot be made.

    The samples of a run's validation split never change, so a file is that of the same bundle.
    """
    from kiss3d_infer.reconstruct import reconstruct

    if path.is_file():
        return load_mesh(path)
    try:
        mesh = reconstruct(truth, device=device).mesh
    except InputError as error:
        print(f"no mesh of held-out bundle {path.stem}: {error.what}", file=sys.stderr)
        return None
    save_mesh(mesh, path)
    return mesh


def metrics_of(drawings: Sequence[Drawing]) -> dict[str, float]:
    """The share of valid bundles, and the mean of each measurement over the drawings that have it.

    A figure of valid bundles alone, as `reconstruction_iou`, is missing where there is none.
    """
    valid = sum(not drawing.problems for drawing in drawings) / len(drawings)
    metrics = {"samples/valid_share": valid}
    for name in sorted({name for drawing in drawings for name in drawing.measurements}):
        values = [d.measurements[name] for d in drawings if name in d.measurements]
        metrics[f"samples/{name}"] = sum(values) / len(values)
    return metrics


def _write(what: Round, drawings: Sequence[Drawing], metrics: dict[str, float]) -> None:
    record = {"step": what.step, "metrics": metrics, "drawings": [_told(d) for d in drawings]}
    with writing(what.record) as aside:
        aside.write_text(json.dumps(record, indent=2), encoding="utf-8")
    # Cells at fixed places, so that two runs' sheets can be laid over each other.
    sheet = contact_sheet(list(_cells(drawings)), columns=2, width=_SHEET_WIDTH)
    with writing(what.sheet) as aside:
        sheet.save(aside)


def _told(drawing: Drawing) -> dict[str, Any]:
    return {
        "prompt": drawing.subject.prompt,
        "seed": drawing.subject.seed,
        "measurements": drawing.measurements,
        "problems": drawing.problems,
    }


def _cells(drawings: Sequence[Drawing]) -> Iterator[tuple[str, Tensor]]:
    for drawing in drawings:
        subject = drawing.subject
        yield f"seed {subject.seed}: {subject.prompt}", drawing.bundle.image
        if subject.truth is not None:
            yield "its held-out bundle", subject.truth.image


def _masks(bundle: Bundle) -> Tensor:
    return silhouettes(bundle)[:, 0] > 0.5


def _normals(bundle: Bundle) -> Tensor:
    return decode(bundle.normal_colors).movedim(1, -1)
