"""Everything end to end on one machine, through the code that a cluster run uses."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kiss3d_infer import mini
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writable_folder, writing
from kiss3d_infer.progress import show_stages

if TYPE_CHECKING:
    from torch import Tensor

    from kiss3d_infer.flux.models import ChosenModel
    from kiss3d_infer.tasks import Asset
    from kiss3d_train.summary import TrainSummary

_RECIPE = Path(__file__).parents[1] / "configs" / "train" / "demo-mini.yaml"
_SOURCE = "toybox:48"
_HELD_OUT = "toybox:3?seed=2"
"""The last object of another series; it was never trained on."""
_EXACT_TILE = 256
_SHEET_WIDTH = 1600


@dataclass
class _Log:
    """What the demo made, for the table and for summary.json."""

    rows: list[tuple[str, Path, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, what: str, path: Path) -> Iterator[None]:
        """Time a stage and note its product."""
        print(f"\n== {what}", flush=True)
        began = time.monotonic()
        yield
        self.rows.append((what, path, time.monotonic() - began))


def run_demo(out: Path) -> None:
    """Build data, train a LoRA, generate a bundle, reconstruct a mesh, and show what was made.

    kiss3d-mini's LoRA is trained further, on objects without shading, and draws a held-out prompt.

    Leaves bundle.png (the bundle that asset.glb was made from), generated.bundle.png, asset.glb,
    contact_sheet.png, turntable.gif and summary.json in `out`. An interrupted demo resumes.

    Raises:
        InputError: `out` cannot be written, or the recipe of the source tree is missing.
    """
    from kiss3d_infer.flux.models import choose_model

    if not _RECIPE.is_file():
        raise InputError("the demo's recipe is missing", where=_RECIPE, fix="run from a checkout")
    began = time.monotonic()
    out, log = writable_folder(out), _Log()
    model = choose_model(mini.NAME)
    with log.stage("meshes to bundles to shards", out / "shards"):
        _make_data(out, model.drawing.tile)
    with log.stage("train a LoRA (Ray Train, DeepSpeed)", out / "train"):
        training = _train(out, model.base)
    with log.stage("draw a bundle (FluxPipeline + LoRA)", out / "generated.bundle.png"):
        prompt, problems = _generate(out, model, Path(training.adapter))
    with log.stage("reconstruct a rendered bundle", out / "asset.glb"):
        caption, asset = _reconstruct_exact(out)
    if not problems:
        with log.stage("reconstruct the drawn bundle", out / "generated.glb"):
            _reconstruct(out / "generated.bundle.png", out / "generated.glb")
    with log.stage("pictures", out / "contact_sheet.png"):
        _make_pictures(out, prompt, caption)
    _write_summary(out, log, training, asset, problems, time.monotonic() - began)
    _show(log, asset)
    _show_drawing(training, problems)
    print(f"training: {Path(sys.prefix, 'bin')}/{training.how_to_open}")
    print(f"look at:  {out / 'contact_sheet.png'}, {out / 'turntable.gif'}, {out / 'asset.glb'}")


def _make_data(out: Path, tile: int) -> None:
    from kiss3d_train.data.render import render_source
    from kiss3d_train.data.rendering.settings import LightSettings
    from kiss3d_train.data.shards import load_index, write_shards

    light = LightSettings(kind="albedo")
    print(render_source(_SOURCE, out / "rendered", tile=tile, lighting=light))
    if (out / "shards" / "index.json").exists():
        print(load_index(out / "shards"))
    else:
        print(write_shards(out / "rendered", out / "shards"))


def _train(out: Path, base: Path) -> "TrainSummary":
    from kiss3d_infer.config import load_config
    from kiss3d_train.config import TrainConfig
    from kiss3d_train.run import run_training

    values = {"run.dir": out / "train", "base.path": base, "data.shards": out / "shards"}
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in values.items()]
    overrides += _continuing(mini.FOLDER / "adapter")
    summary = run_training(load_config(TrainConfig, _RECIPE, overrides))
    print(summary)
    if summary.status != "finished":
        sys.exit("kiss3d: stopped; the same command again goes on")
    return summary


def _continuing(lora: Path) -> list[str]:
    """What a recipe must say of the LoRA that it starts from: its place, rank and alpha."""
    from kiss3d_infer.flux.lora import read_lora

    weights, alpha = read_lora(lora)
    rank = next(len(matrix) for name, matrix in weights.items() if ".lora_A." in name)
    shape = {"rank": rank, "alpha": rank if alpha is None else alpha}
    return [
        f"adapter.init_from={json.dumps(str(lora))}",
        *(f"adapter.{name}={value}" for name, value in shape.items()),
    ]


def _generate(out: Path, model: "ChosenModel", adapter: Path) -> tuple[str, tuple[str, ...]]:
    """Draw the first held-out caption; returns it and what is wrong with the drawing."""
    from kiss3d_infer.bundle import save_bundle, validate
    from kiss3d_infer.flux.base import load_base
    from kiss3d_infer.flux.lora import apply_lora
    from kiss3d_infer.flux.sampling import generate_bundle
    from kiss3d_train.data.shards import ShardReader

    reader = ShardReader(out / "shards")
    prompt = str(reader.describe("val", 0)["caption"])
    pipeline = load_base(model.base, dtype="float32")
    bundle = generate_bundle(
        pipeline,
        prompt,
        layout=apply_lora(pipeline, adapter).layout,
        **model.drawing.model_dump(),
        on_progress=show_stages("generate"),
    )
    save_bundle(bundle, out / "generated.bundle.png")
    return prompt, validate(bundle).problems


def _reconstruct_exact(out: Path) -> tuple[str, "Asset"]:
    from kiss3d_infer.bundle import PUBLISHED, save_bundle
    from kiss3d_infer.scene.framing import framed
    from kiss3d_infer.scene.render import render_bundle
    from kiss3d_train.data.sources import open_source

    source = open_source(_HELD_OUT)
    item = source.describe(source.items()[-1])
    mesh = framed(source.load(item), PUBLISHED.cameras)
    bundle = render_bundle(mesh, tile=_EXACT_TILE)
    save_bundle(bundle, out / "bundle.png")
    return item.caption or item.name, _reconstruct(out / "bundle.png", out / "asset.glb")


def _reconstruct(bundle: Path, asset: Path) -> "Asset":
    from kiss3d_infer.tasks import bundle_to_mesh

    return bundle_to_mesh(bundle, asset, on_progress=show_stages("reconstruct"))


def _make_pictures(out: Path, prompt: str, caption: str) -> None:
    from PIL import Image

    from kiss3d_infer.bundle import PUBLISHED
    from kiss3d_infer.scene.load import load_mesh
    from kiss3d_infer.scene.pictures import contact_sheet, turntable
    from kiss3d_infer.scene.render import render_bundle
    from kiss3d_train.data.shards import inspect

    mesh = load_mesh(out / "asset.glb")
    turntable(mesh, out / "turntable.gif")
    turntable(mesh, out / "turntable.png")
    inspect(out / "shards", out / "data.png")
    made = contact_sheet(
        [
            (f"rendered bundle of a held-out mesh: {caption}", _bundle(out / "bundle.png")),
            (
                "its reconstruction, asset.glb, through the same cameras",
                render_bundle(mesh, PUBLISHED, _EXACT_TILE).image,
            ),
            (f"a held-out sample: {prompt}", _first_held_out(out)),
            (
                "the same prompt, drawn by kiss3d-mini after minutes of training",
                _bundle(out / "generated.bundle.png"),
            ),
        ],
        columns=2,
        width=_SHEET_WIDTH,
    )
    with Image.open(out / "data.png") as picture, Image.open(out / "turntable.png") as strip:
        rows = [
            ("made by kiss3d demo", made),
            ("asset.glb, once around", strip.copy()),
            ("training data, rendered from the toybox's meshes", picture.copy()),
        ]
        sheet = contact_sheet(rows, width=_SHEET_WIDTH)
    with writing(out / "contact_sheet.png") as aside:
        sheet.save(aside)


def _bundle(path: Path) -> "Tensor":
    from kiss3d_infer.bundle import load_bundle

    return load_bundle(path).image


def _first_held_out(out: Path) -> "Tensor":
    from kiss3d_train.data.shards import ShardReader, decode_sample

    reader = ShardReader(out / "shards")
    return decode_sample(reader.read("val", 0))[0].image


def _write_summary(
    out: Path,
    log: _Log,
    training: "TrainSummary",
    asset: "Asset",
    problems: tuple[str, ...],
    seconds: float,
) -> None:
    summary = {
        "seconds": seconds,
        "stages": [
            {"what": what, "path": str(path), "bytes": _num_bytes(path), "seconds": spent}
            for what, path, spent in log.rows
        ],
        "training": asdict(training),
        "asset": {"path": str(asset.path), "measurements": asset.measurements},
        "generated_bundle_problems": problems,
    }
    with writing(out / "summary.json") as aside:
        aside.write_text(json.dumps(summary, indent=2), encoding="utf-8")


def _show(log: _Log, asset: "Asset") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "result", "size", "seconds")
    for what, path, seconds in log.rows:
        table.add_row(what, str(path), _size(path), f"{seconds:.0f}")
    Console().print(table)
    measured = asset.measurements
    print(
        f"asset.glb against its bundle: silhouette IoU {measured['silhouette_iou']:.3f}, "
        f"normal error {measured['normal_error']:.1f} degrees, "
        f"{measured['num_faces']:.0f} faces"
    )


def _show_drawing(training: "TrainSummary", problems: tuple[str, ...]) -> None:
    before, after = training.validation_at_start, training.validation
    if before:
        print(f"held-out loss: {before['val/loss']:.4f} before, {after['val/loss']:.4f} after")
    if problems:
        print(f"The drawn bundle is rough and was not reconstructed: {'; '.join(problems)}")


def _num_bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _size(path: Path) -> str:
    size = _num_bytes(path)
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
