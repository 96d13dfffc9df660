"""The demo with everything tiny: what it leaves, and that a second one resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kiss3d_infer import mini
from kiss3d_infer.bundle import PUBLISHED, load_bundle
from kiss3d_infer.flux.base import create_random_base, load_base
from kiss3d_infer.flux.lora import LoraMetadata, save_lora
from kiss3d_infer.flux.pack import pack_base
from kiss3d_infer.scene.load import load_mesh
from kiss3d_train import demo
from kiss3d_train.adapter import add_adapter, trainable_parameters
from kiss3d_train.config import AdapterSection

TINY_MODEL = Path(__file__).parents[2] / "configs" / "models" / "tiny"


def tiny_recipe(folder: Path) -> Path:
    """The demo's recipe, but for two small steps."""
    recipe = yaml.safe_load(demo._RECIPE.read_text())
    recipe["run"]["steps"] = 2
    recipe["data"]["global_batch"] = 4
    recipe["validation"]["samples"] = 1
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def package_a_tiny_model(folder: Path) -> None:
    base = create_random_base(TINY_MODEL, folder / "whole", seed=0)
    pack_base(base, folder / "base")
    transformer = load_base(base, dtype="float32", parts=("transformer",)).transformer
    add_adapter(transformer, AdapterSection(rank=3), seed=1)
    metadata = LoraMetadata(rank=3, alpha=3, base="", data="", layout=PUBLISHED)
    save_lora(folder / "adapter", trainable_parameters(transformer), metadata)
    drawing = {"tile": 32, "steps": 1, "guidance": 1.0, "cfg_scale": 2.0}
    (folder / "mini.json").write_text(json.dumps(drawing))


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_bytes()))


def test_the_demo_leaves_what_it_promises_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package_a_tiny_model(tmp_path / "package")
    monkeypatch.setattr(mini, "FOLDER", tmp_path / "package")
    tiny = {"_RECIPE": tiny_recipe(tmp_path), "_SOURCE": "toybox:6", "_EXACT_TILE": 64}
    for name, value in tiny.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)  # the recipe's MLflow database lies in the working folder
    out = tmp_path / "demo"
    demo.run_demo(out)

    assert load_bundle(out / "bundle.png").tile == 64
    assert load_bundle(out / "generated.bundle.png").tile == 32
    assert load_mesh(out / "asset.glb").uv is not None
    with Image.open(out / "contact_sheet.png") as sheet, Image.open(out / "turntable.gif") as gif:
        assert sheet.width == demo._SHEET_WIDTH
        assert getattr(gif, "n_frames", 1) > 8
    first = summary_of(out)
    training = first["training"]
    assert training["steps"] == 2 and training["run_id"]
    for stage in first["stages"]:
        assert Path(stage["path"]).exists()
        assert stage["bytes"] > 0 and stage["seconds"] >= 0
    before, after = (training[name]["val/loss"] for name in ("validation_at_start", "validation"))
    assert before != after  # the packaged LoRA was trained further
    assert f"held-out loss: {before:.4f} before, {after:.4f} after" in capsys.readouterr().out

    adapter = Path(training["adapter"])
    trained = adapter.stat().st_mtime_ns
    (out / "asset.glb").unlink()
    demo.run_demo(out)
    assert summary_of(out)["training"] == training
    assert adapter.stat().st_mtime_ns == trained
    assert (out / "asset.glb").is_file()
