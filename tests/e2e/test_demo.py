"""The demo with everything tiny: what it leaves, and that a second one resumes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kiss3d_infer.bundle import load_bundle
from kiss3d_infer.scene.load import load_mesh
from kiss3d_train import demo

TINY_MODEL = Path(__file__).parents[2] / "configs" / "models" / "tiny"


def tiny_recipe(folder: Path) -> Path:
    """The demo's recipe, but for two small steps."""
    recipe = yaml.safe_load(demo._RECIPE.read_text())
    recipe["run"]["steps"] = 2
    recipe["data"]["global_batch"] = 4
    recipe["adapter"]["rank"] = 2
    recipe["validation"]["samples"] = 1
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_bytes()))


def test_the_demo_leaves_what_it_promises_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {
        "_RECIPE": tiny_recipe(tmp_path),
        "_MODEL": TINY_MODEL,
        "_SOURCE": "toybox:6",
        "_TRAIN_TILE": 64,
        "_EXACT_TILE": 64,
        "_SAMPLING_STEPS": 1,
    }
    for name, value in tiny.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)  # the recipe's MLflow database lies in the working folder
    out = tmp_path / "demo"
    demo.run_demo(out)

    assert load_bundle(out / "bundle.png").tile == 64
    assert load_bundle(out / "generated.bundle.png").tile == 64
    assert load_mesh(out / "asset.glb").uv is not None
    with Image.open(out / "contact_sheet.png") as sheet, Image.open(out / "turntable.gif") as gif:
        assert sheet.width == demo._SHEET_WIDTH
        assert getattr(gif, "n_frames", 1) > 8
    first = summary_of(out)
    assert first["training"]["steps"] == 2 and first["training"]["run_id"]
    for stage in first["stages"]:
        assert Path(stage["path"]).exists()
        assert stage["bytes"] > 0 and stage["seconds"] >= 0

    adapter = Path(first["training"]["adapter"])
    trained = adapter.stat().st_mtime_ns
    (out / "asset.glb").unlink()
    demo.run_demo(out)
    assert summary_of(out)["training"] == first["training"]
    assert adapter.stat().st_mtime_ns == trained
    assert (out / "asset.glb").is_file()
