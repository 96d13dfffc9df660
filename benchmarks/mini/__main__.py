"""Measure what kiss3d-mini draws on held-out prompts, beside exact renders of the same objects.

    python -m benchmarks.mini --prompts 200 --out benchmarks/results/mini.json
    python -m benchmarks.mini --model DIR --adapter DIR --out results.json --set cfg_scale=2
    python -m benchmarks.mini --model DIR --out results.json --drawings-only --device cuda

Writes the results as it goes; the same command goes on where it was stopped. The drawn bundles and
a contact sheet, exact renders above drawings, lie beside the results in a folder of their name.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.mini import judges
from benchmarks.mini.cost import commands_cost
from benchmarks.mini.held_out import NUM_CLASSES, PROMPTS_SEED, HeldOut, held_out, makers_of
from benchmarks.mini.judges import Judges, Row
from benchmarks.mini.results import Results
from benchmarks.mini.samples import Model, drawn_file, measured, measured_drawing
from kiss3d_infer import mini
from kiss3d_infer.bundle import load_bundle
from kiss3d_infer.config import load_config
from kiss3d_infer.evaluate import bundle_psnr
from kiss3d_infer.files import writing
from kiss3d_infer.flux.base import base_identity
from kiss3d_infer.flux.lora import lora_identity
from kiss3d_infer.flux.models import Drawing, choose_model
from kiss3d_infer.progress import track
from kiss3d_infer.scene.pictures import contact_sheet

_COMPARED, _TIMED, _SHOWN = 20, 3, 24
"""Prompts drawn by the reference too; those that commands are timed on; those on the sheet."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    given = _parsed(arguments)
    chosen = choose_model(given.model, given.adapter)
    drawing = load_config(Drawing, given.drawing, given.set).config
    makers = makers_of(given.names) if given.names else range(NUM_CLASSES)
    things = list(held_out(given.prompts, makers=makers, few_words=given.few_words))
    if chosen.lora is None and not given.drawings_only:
        raise SystemExit("give --adapter, the bundle LoRA of this model, or --drawings-only")
    if given.few_words and not given.drawings_only:
        raise SystemExit("give --drawings-only with --few-words")
    setup = _setup(chosen.base, chosen.lora, drawing, given)
    results, folder = Results(given.out, setup), given.out.with_suffix("")
    model = Model.load(chosen.base, chosen.lora, drawing, given.device)
    measure = measured_drawing if given.drawings_only else measured
    left = things[len(results.rows) :]
    _measure_prompts(left, results, given.judges, partial(measure, model=model, folder=folder))
    _draw_sheet(things[:_SHOWN], drawing.tile, folder)
    if chosen.lora is None or given.drawings_only:
        return
    results.note("bytes", {"base": _num_bytes(chosen.base), "adapter": _num_bytes(chosen.lora)})
    compared = things[:_COMPARED]
    if given.reference and len(results.noted("packed") or ()) < len(compared):
        reference = Model.load(given.reference, chosen.lora, drawing)
        results.note("packed", _compared(compared, reference, folder))
    if not results.noted("cost"):
        prompts = [thing.caption for thing in things[:_TIMED]]
        results.note("cost", commands_cost(chosen.base, chosen.lora, drawing, prompts))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=mini.NAME, help="base; default: the packaged one")
    parser.add_argument("--adapter", type=Path, help="its bundle LoRA; default: the packaged one")
    parser.add_argument("--prompts", type=int, default=200, help="how many")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--drawing",
        type=Path,
        default=mini.FOLDER / "mini.json",
        help="tile, steps and guidance; default: the packaged model's",
    )
    parser.add_argument(
        "--set", action="append", default=[], help="override one of these: --set steps=12"
    )
    parser.add_argument("--names", nargs="+", default=[], help="of the classes; default: all")
    parser.add_argument(
        "--few-words",
        action="store_true",
        help="ask for a name in a colour alone, such as 'a red sofa', instead of whole captions; "
        "needs --drawings-only, as the exact renders are of more than that",
    )
    parser.add_argument(
        "--drawings-only",
        action="store_true",
        help="judge what is drawn, and measure no mesh, no autoencoder and no command; a model "
        "without an adapter is taken to draw bundles by itself",
    )
    parser.add_argument("--device", default="cpu", help="to draw on")
    parser.add_argument(
        "--judges", type=Path, help="keep what tells the classes in this file, and take it from it"
    )
    parser.add_argument(
        "--reference", type=Path, help="the base that --model was packed from, to compare with"
    )
    return parser.parse_args(arguments)


def _setup(base: Path, lora: Path | None, drawing: Drawing, given: argparse.Namespace) -> Row:
    names = f" ({', '.join(given.names)})" if given.names else ""
    words = ", few words" if given.few_words else ""
    return {
        "base": base_identity(base),
        "adapter": lora_identity(lora) if lora else None,
        "drawing": drawing.model_dump(),
        "prompts": f"toybox:N?seed={PROMPTS_SEED}{names}{words}",
        "drawings_only": given.drawings_only,
        "judges": judges.learnt_from(),
    }


def _measure_prompts(
    left: list[HeldOut],
    results: Results,
    kept: Path | None,
    measure: Callable[[HeldOut, Judges], Row],
) -> None:
    if not left:
        return
    judging, accuracy = judges.learnt(kept)
    results.note("judges", accuracy)
    for thing in track(left, "measuring prompts"):
        results.add(measure(thing, judging))


def _num_bytes(path: Path) -> int:
    """Of a file, or of what lies in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def _compared(things: list[HeldOut], reference: Model, folder: Path) -> list[Row]:
    """PSNR of what was drawn against what the reference draws with the same seeds."""
    return [
        {"index": thing.index}
        | bundle_psnr(load_bundle(drawn_file(folder, thing.index)), reference.draw(thing))
        for thing in track(things, "drawing with the reference")
    ]


def _draw_sheet(things: list[HeldOut], tile: int, folder: Path, columns: int = 4) -> None:
    cells = []
    for first in range(0, len(things), columns):
        row = things[first : first + columns]
        cells += [(thing.caption, thing.bundle(tile).image) for thing in row]
        cells += [("", load_bundle(drawn_file(folder, thing.index)).image) for thing in row]
    with writing(folder / "sheet.png") as aside:
        contact_sheet(cells, columns=columns, width=2400).save(aside)


if __name__ == "__main__":
    main()
