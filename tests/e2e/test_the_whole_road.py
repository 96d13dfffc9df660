"""Meshes to a textured asset through the command line alone, on tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kiss3d_infer.bundle import load_bundle, validate
from kiss3d_infer.flux.base import create_random_base
from kiss3d_infer.scene.load import load_mesh

ROOT = Path(__file__).parents[2]


def kiss3d(*arguments: object, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, "-c", "from kiss3d_train.cli import main; main()"]
    command += [str(argument) for argument in arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert result.returncode == code, result.stderr[-3000:]
    return result.stdout if code == 0 else result.stderr


def test_meshes_become_an_adapter_and_a_bundle_becomes_an_asset(tmp_path: Path) -> None:
    create_random_base(ROOT / "configs" / "models" / "tiny", tmp_path / "base", seed=0)
    kiss3d(
        "data", "render", "--source", "toybox:6", "--out", "rendered", "--tile", 64, cwd=tmp_path
    )
    captions = kiss3d("data", "caption", "rendered", "--with", "metadata", cwd=tmp_path)
    assert "0 captioned, 6 kept" in captions
    kiss3d("data", "shard", "rendered", "--out", "shards", cwd=tmp_path)
    assert "6" in kiss3d("data", "verify", "shards", cwd=tmp_path)

    recipe = ROOT / "configs" / "train" / "demo-mini.yaml"
    sets = [
        *("--set", "base.path=base"),
        *("--set", "adapter.init_from=null"),
        *("--set", "data.shards=shards"),
        *("--set", "run.dir=run"),
        *("--set", "run.steps=4"),
        *("--set", "validation.samples=1"),
    ]
    assert "global batch" in kiss3d("train", "plan", recipe, *sets, cwd=tmp_path)
    kiss3d("train", "run", recipe, *sets, cwd=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["steps"] == 4
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    training = client.get_run(summary["run_id"])
    made_by = []
    while run_id := (made_by[-1] if made_by else training).data.tags.get("data.run_id"):
        made_by.append(client.get_run(run_id))
    assert [run.info.run_name for run in made_by] == ["shard", "caption", "render"]

    draw = ["--model", "base", "--lora", "run/adapter", "--tile", 64, "--steps", 2]
    kiss3d("generate", "a red chair", "-o", "drawn.png", *draw, cwd=tmp_path)
    assert load_bundle(tmp_path / "drawn.png").tile == 64
    refusal = kiss3d("reconstruct", "drawn.png", "-o", "drawn.glb", cwd=tmp_path, code=2)
    assert "fails validation" in refusal
    assert not (tmp_path / "drawn.glb").exists()

    rendered = sorted((tmp_path / "rendered").glob("*.bundle.png"))[0]
    assert validate(load_bundle(rendered)).ok
    kiss3d("reconstruct", rendered, "-o", "asset.glb", "--texture-size", 256, cwd=tmp_path)
    asset = load_mesh(tmp_path / "asset.glb")
    assert len(asset.faces) > 1000
    assert asset.uv is not None and asset.materials[0].texture is not None


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".stl"])
def test_assets_in_other_formats_hold_the_same_faces(tmp_path: Path, suffix: str) -> None:
    from kiss3d_infer.bundle import save_bundle
    from kiss3d_infer.scene.render import render_bundle
    from kiss3d_train.data.sources import open_source

    source = open_source("toybox:1")
    mesh = source.load(source.items()[0]).normalized()
    save_bundle(render_bundle(mesh, tile=64), tmp_path / "b.png")
    arguments = ["--init", "hull", "--faces", 2000, "--texture-size", 128]
    out = kiss3d("reconstruct", "b.png", "-o", f"a{suffix}", *arguments, cwd=tmp_path)
    faces = len(load_mesh(tmp_path / f"a{suffix}").faces)
    assert f"num_faces {faces}" in out
