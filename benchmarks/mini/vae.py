"""How well an autoencoder of a small Flux keeps held-out bundles.

    python -m benchmarks.mini.vae                          # the packaged one
    python -m benchmarks.mini.vae runs/mini-vae/base       # one that was trained here

Writes results/mini-vae-<date>.json and docs/images/mini-vae.png: exact bundles, and what it makes
of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.machine import describe, write_report
from benchmarks.mini.held_out import held_out
from kiss3d_infer import mini
from kiss3d_infer.bundle import Bundle
from kiss3d_infer.evaluate import bundle_psnr
from kiss3d_infer.files import writing
from kiss3d_infer.flux.base import load_part
from kiss3d_infer.progress import track
from kiss3d_infer.scene.pictures import contact_sheet

_PICTURE = Path(__file__).parents[2] / "docs" / "images" / "mini-vae.png"
_TILE = 128
_SHOWN = 4


def through(vae: Any, bundle: Bundle) -> Bundle:
    """What an autoencoder makes of a bundle, without the noise of its posterior."""
    with torch.inference_mode():
        latents = vae.encode(2 * bundle.image[None] - 1).latent_dist.mode()
        image = vae.decode(latents).sample[0]
    return Bundle((image / 2 + 0.5).clamp(0, 1).clone(), bundle.layout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and show."""
    given = _parsed(arguments)
    vae = load_part(given.base / "vae", torch.float32)
    rows, cells = [], []
    for thing in track(list(held_out(given.count)), "bundles"):
        truth = thing.bundle(_TILE)
        made = through(vae, truth)
        rows.append({"caption": thing.caption, **bundle_psnr(made, truth)})
        cells.append((rows[-1]["psnr"], thing.caption, torch.cat([truth.image, made.image], -1)))
    names = [name for name in rows[0] if name != "caption"]
    means = {name: fmean(row[name] for row in rows) for name in names}
    print(", ".join(f"{name} {value:.2f} dB" for name, value in means.items()))
    report = {
        "command": f"python -m benchmarks.mini.vae --count {given.count}",
        "machine": describe("diffusers"),
        "means": means,
        "rows": rows,
    }
    write_report(report, "mini-vae", given.out)
    # From the worst to the best, at equal ranks.
    cells.sort(key=lambda cell: cell[0])
    ranks = [round(k * (len(cells) - 1) / (_SHOWN - 1)) for k in range(_SHOWN)]
    shown = [(f"{cells[k][1]} ({cells[k][0]:.1f} dB)", cells[k][2]) for k in ranks]
    with writing(given.picture) as aside:
        contact_sheet(shown, columns=1, width=1200).save(aside, format="PNG")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, nargs="?", default=mini.FOLDER / "base", help="a base")
    parser.add_argument("--count", type=int, default=200, help="held-out bundles")
    parser.add_argument("--out", type=Path, help="JSON file to write; results/ by default")
    parser.add_argument("--picture", type=Path, default=_PICTURE)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
