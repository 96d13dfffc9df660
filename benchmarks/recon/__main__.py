"""Reconstruct 24 objects: accuracy, robustness, texture and seconds, beside ISOMER's settings.

    python -m benchmarks.recon [--ours]

Writes results/recon-cpu-<date>.json as it goes, and docs/images/reconstructions.png at the end.
With --ours nothing else is measured, and the results are recon-cpu-ours-<date>.json.
"""

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe, write_report
from benchmarks.recon.isomer import isomer, vertex_colored
from benchmarks.recon.objects import Object, objects
from benchmarks.recon.perturb import perturbed
from kiss3d_infer.bundle import Bundle, BundleLayout
from kiss3d_infer.evaluate import CompareOptions, compare
from kiss3d_infer.evaluate.geometry import point_metrics
from kiss3d_infer.evaluate.points import sample_points
from kiss3d_infer.files import writing
from kiss3d_infer.progress import track
from kiss3d_infer.reconstruct import reconstruct, warm_up
from kiss3d_infer.reconstruct.measure import agreement
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.pictures import contact_sheet
from kiss3d_infer.scene.render import ALBEDO, render_bundle, render_views

_TILE = 512
_PERTURBATIONS = ((8.0, 1.0), (15.0, 2.5))
_ALTERNATING = BundleLayout(elevations=(20.0, -10.0, 20.0, -10.0))
_NOVEL = Cameras((45.0, 135.0, 225.0, 315.0), (20.0, 20.0, 20.0, 20.0))
_POINTS = CompareOptions(
    normalization="none", only_visible=True, view_size=None, pictures=False, volume_resolution=None
)
"""Chamfer and F-score of surface that can be seen from outside, where the object stands."""
_PICTURE = Path(__file__).parents[2] / "docs" / "images" / "reconstructions.png"
Row = dict[str, Any]


def main() -> None:
    """Measure every object and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", action="store_true", help="leave everything else out")
    only_ours: bool = parser.parse_args().ours
    warm_up()
    rows: list[Row] = []
    cells: list[tuple[str, Tensor]] = []
    for index, thing in enumerate(track(list(objects()), "reconstructing")):
        row, made = _measured(thing, index, only_ours)
        rows.append(row)
        _write(rows, only_ours)
        for label, mesh in ((thing.name, thing.mesh), ("reconstructed", made)):
            cells.append((label, render_bundle(mesh, tile=192).image))
    with writing(_PICTURE) as aside:
        contact_sheet(cells, columns=4, width=2000).save(aside)


def _measured(thing: Object, index: int, only_ours: bool) -> tuple[Row, Mesh]:
    bundle = render_bundle(thing.mesh, tile=_TILE)
    row: Row = {"object": thing.name, "floor": _floor(thing.mesh)}
    row["ours"], made = _ours(bundle, thing.mesh)
    row["ours"] |= _texture(made, bundle, thing.mesh)
    if (
        only_ours or index % 4
    ):  # the rest for three pieces of furniture and three toys: it takes long
        return row, made
    began = time.perf_counter()
    baseline = isomer(bundle)
    row["isomer"] = {"wall_s": time.perf_counter() - began} | _accuracy(baseline, thing.mesh)
    row["isomer"] |= agreement(baseline, Target.of(bundle))
    for degrees, pixels in _PERTURBATIONS:
        wrong = perturbed(bundle, degrees, pixels, seed=index)
        row[f"ours, {degrees:g} degrees and {pixels:g} px"] = _ours(wrong, thing.mesh)[0]
    alternating = render_bundle(thing.mesh, _ALTERNATING, _TILE)
    row["ours, elevations +20/-10"] = _ours(alternating, thing.mesh)[0]
    return row, made


def _ours(bundle: Bundle, truth: Mesh) -> tuple[Row, Mesh]:
    began, cpu_began = time.perf_counter(), time.process_time()
    made = reconstruct(bundle)
    with tempfile.TemporaryDirectory() as folder:
        save_mesh(made.mesh, Path(folder) / "asset.glb")
        size = (Path(folder) / "asset.glb").stat().st_size
    row: Row = {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_began,
        "glb_bytes": size,
        "stage_s": made.seconds,
        "warnings": made.warnings,
    }
    row |= {name: value for name, value in made.measurements.items() if "/" not in name}
    return row | _accuracy(made.mesh, truth), made.mesh


def _accuracy(made: Mesh, truth: Mesh) -> Row:
    figures = compare(made, truth, _POINTS)
    wanted = ("chamfer_mean", "normal_consistency", "f_score/0.02", "f_score/0.05", "f_score/0.1")
    return {name: figures[name] for name in wanted} | {
        "watertight": figures["health/watertight"],
        "num_debris": figures["health/num_debris"],
    }


def _floor(truth: Mesh) -> Row:
    """What the truth measures against itself: two samplings of one surface never coincide."""
    points = [sample_points(truth, seed=(0, k), only_visible=True) for k in range(2)]
    figures = point_metrics(*points)
    return {name: figures[name] for name in ("chamfer_mean", "normal_consistency", "f_score/0.05")}


def _texture(made: Mesh, bundle: Bundle, truth: Mesh) -> Row:
    """PSNR in dB of the texture, and of vertex colours on the same triangles, on the truth."""
    target = Target.of(bundle)
    plain = vertex_colored(made.vertices.numpy(), made.faces.numpy(), target)
    row: Row = {}
    for name, cameras in (("input", bundle.layout.cameras), ("novel", _NOVEL)):
        wanted = render_views(truth, cameras, 256)
        for kind, mesh in (("texture", made), ("vertex_colors", plain)):
            row[f"psnr_{name}/{kind}"] = _psnr(mesh, wanted.rgb, wanted.alpha, cameras)
    return row


def _psnr(mesh: Mesh, wanted: Tensor, alpha: Tensor, cameras: Cameras) -> float:
    """Of the shown colours, which hold the light of the bundle already, where both meshes are."""
    drawn = render_views(mesh, cameras, 256, lighting=ALBEDO)
    both = ((drawn.alpha > 0.99) & (alpha > 0.99)).expand_as(wanted)
    return float(-10 * torch.log10((drawn.rgb[both] - wanted[both]).square().mean()))


def _means(rows: list[Row]) -> Row:
    totals: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for what, figures in row.items():
            if isinstance(figures, dict):
                for name, value in figures.items():
                    if isinstance(value, float | int):
                        totals[what][name].append(value)
    return {what: {k: mean(v) for k, v in names.items()} for what, names in totals.items()}


def _write(rows: list[Row], only_ours: bool) -> None:
    compared = [row for row in rows if "isomer" in row]
    report = {
        "command": "python -m benchmarks.recon",
        "machine": describe(),
        "tile": _TILE,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "mean": {name: value for name, value in _means(rows).items() if name in ("floor", "ours")},
        f"mean of the {len(compared)} objects measured in every way": _means(compared),
        "objects": rows,
    }
    write_report(report, f"recon-cpu{'-ours' * only_ours}")


if __name__ == "__main__":
    main()
