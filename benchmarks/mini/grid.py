"""The picture at the head of the README: prompts, what is drawn, and what is reconstructed.

    python -m benchmarks.mini.grid

Writes docs/images/mini.png and, in data/mini-grid, the bundles and the assets it shows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.mini.held_out import held_out
from kiss3d_infer import mini
from kiss3d_infer.bundle import load_bundle
from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import apply_lora
from kiss3d_infer.flux.models import Drawing, choose_model
from kiss3d_infer.progress import track
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.pictures import contact_sheet
from kiss3d_infer.scene.render import ALBEDO, render_views
from kiss3d_infer.tasks import text_to_3d

PROMPTS = tuple(thing.caption for thing in held_out(12))
"""The first ones; none is picked."""
_TURNED = Cameras((35.0, 215.0), (20.0, 20.0))
_SIZE = 256
_PICTURE = Path(__file__).parents[2] / "docs" / "images" / "mini.png"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, reconstruct and show every prompt."""
    given = _parsed(arguments)
    chosen = choose_model(given.model, given.adapter)
    if chosen.lora is None:
        raise SystemExit("give --adapter, the bundle LoRA of this model")
    drawing = load_config(Drawing, mini.FOLDER / "mini.json", given.set).config
    pipeline = load_base(chosen.base, dtype="float32")
    info = apply_lora(pipeline, chosen.lora)
    how = {**drawing.model_dump(), "layout": info.layout, "domains": info.domains}
    cells = []
    for index, prompt in enumerate(track(PROMPTS, "making assets")):
        out = given.assets / f"{index:02d}.glb"
        # One seed for all: nothing is picked.
        try:
            text_to_3d(pipeline, prompt, out, force=True, seed=given.seed, **how)
        except InputError as error:
            print(f"{prompt}: {error}")
            out.unlink(missing_ok=True)
        cells.append((prompt, picture(out.with_name(f"{out.stem}.bundle.png"), out)))
    with writing(given.out) as aside:
        contact_sheet(cells, columns=3, width=2000).save(aside)


def picture(bundle: Path, asset: Path) -> Tensor:
    """The bundle's front view above its normals, then the mesh from two other sides.

    Args:
        bundle: a bundle image.
        asset: its mesh; white where there is none.

    Returns:
        [3, 256, 640].
    """
    drawn = load_bundle(bundle)
    front = torch.cat([drawn.rgb[0], drawn.normal_colors[0]], dim=1)
    front = torch.nn.functional.interpolate(front[None], size=(_SIZE, _SIZE // 2), mode="area")[0]
    sides = torch.ones(3, _SIZE, 2 * _SIZE)
    if asset.is_file():
        mesh = framed(load_mesh(asset), _TURNED)
        views = render_views(mesh, _TURNED, _SIZE, lighting=ALBEDO)
        sides = views.rgb.permute(1, 2, 0, 3).flatten(2)
    return torch.cat([front, sides], dim=2)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=mini.NAME, help="base; default: the packaged one")
    parser.add_argument("--adapter", type=Path, help="its bundle LoRA; default: the packaged one")
    parser.add_argument("--set", action="append", default=[], help="override: --set steps=12")
    parser.add_argument("--seed", type=int, default=0, help="of every drawing")
    parser.add_argument("--assets", type=Path, default=Path("data/mini-grid"))
    parser.add_argument("--out", type=Path, default=_PICTURE)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
