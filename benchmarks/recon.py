"""Reconstruct exact bundles of toybox objects: seconds by stage, agreement, and a picture.

Writes results/recon-cpu-<date>.json and docs/images/reconstructions.png (`make bench`).
"""

import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import mean

from torch import Tensor

from benchmarks.machine import RESULTS, describe
from kiss3d_infer.bundle import PUBLISHED
from kiss3d_infer.files import writing
from kiss3d_infer.progress import track
from kiss3d_infer.reconstruct import reconstruct, warm_up
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.pictures import contact_sheet
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources import open_source

_SOURCE = "toybox:12?seed=2"
_TILE = 256
_PICTURE = Path(__file__).parents[1] / "docs" / "images" / "reconstructions.png"


def main() -> None:
    """Measure every object of the source and write the results."""
    warm_up()
    source, rows = open_source(_SOURCE), []
    cells: list[tuple[str, Tensor]] = []
    for item in track(source.items(), "reconstructing"):
        item = source.describe(item)
        caption = item.caption or item.name
        bundle = render_bundle(framed(source.load(item), PUBLISHED.cameras), tile=_TILE)
        began, cpu_began = time.perf_counter(), time.process_time()
        made = reconstruct(bundle)
        with tempfile.TemporaryDirectory() as folder:
            save_mesh(made.mesh, Path(folder) / "asset.glb")
            size = (Path(folder) / "asset.glb").stat().st_size
        rows.append(
            {
                "object": caption,
                "wall_s": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu_began,
                "glb_bytes": size,
                "stage_s": made.seconds,
                **{k: v for k, v in made.measurements.items() if "/" not in k},
            }
        )
        cells += [
            (caption, bundle.image),
            ("reconstructed", render_bundle(made.mesh, tile=_TILE).image),
        ]
    _write(rows)
    with writing(_PICTURE) as aside:
        contact_sheet(cells, columns=4, width=2000).save(aside)


def _write(rows: list[dict[str, object]]) -> None:
    names = ("wall_s", "cpu_s", "silhouette_iou", "normal_error", "color_psnr", "num_faces")
    means = {name: mean(float(str(row[name])) for row in rows) for name in names}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    machine = describe()
    report = {
        "command": "python -m benchmarks.recon",
        "machine": machine,
        "source": _SOURCE,
        "tile": _TILE,
        "peak_memory_bytes": peak,
        "mean": means,
        "objects": rows,
    }
    path = RESULTS / f"recon-cpu-{machine['date']}.json"
    with writing(path) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path, means)


if __name__ == "__main__":
    main()
