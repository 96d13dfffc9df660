"""A run over Ray that draws samples beside its steps and keeps its best adapter."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from kiss3d_infer.config import load_config
from kiss3d_train.checkpoint import best_at, checkpoints_of
from kiss3d_train.compare import compare_runs
from kiss3d_train.config import TrainConfig
from kiss3d_train.run import run_training

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "train"))

from tiny_data import caption_of, encode_here, make_base, make_shards  # noqa: E402

STEPS = 8


def test_samples_are_drawn_beside_a_run_and_its_best_adapter_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    shards, base, uri = make_shards(tmp_path), make_base(tmp_path), f"sqlite:///{tmp_path}/runs.db"
    overrides = [
        f"run.dir={tmp_path / 'run'}",
        f"run.steps={STEPS}",
        f"base.path={base}",
        f"data.shards={shards}",
        "validation.every=3",
        "checkpoint.every=100",
        "checkpoint.keep=1",
        "samples.every=4",
        "samples.held_out=1",
        "samples.prompts=[a lamp]",
        "samples.seed=5",
        "samples.steps=2",
        f"tracking.uri={uri}",
    ]
    encode_here(shards, base, tmp_path / "shards.latents")
    recipe = ROOT / "configs" / "train" / "tiny.yaml"
    resolved = load_config(TrainConfig, recipe, overrides)
    capfd.readouterr()
    summary = run_training(resolved)
    out, told = capfd.readouterr()
    assert summary.status == "finished"
    assert out == ""  # what libraries say is in files
    run_dir, client = tmp_path / "run", MlflowClient(uri)
    assert (run_dir / "logs" / "worker-0.log").read_text().startswith("worker-0 on ")
    assert list((run_dir / "logs" / "ray").glob("*controller*.log"))

    valid = client.get_metric_history(summary.run_id, "samples/valid_share")
    drawn = {point.step for point in valid}
    # One of the two rounds may have waited so long that newer weights took its turn.
    assert {STEPS} <= drawn <= {4, STEPS}
    assert (drawn == {4, STEPS}) != ("samples of step 4 are left out" in told)
    for name in (
        "rows_iou",
        "mirror_iou/0-180",
        "psnr/rgb",
        "normal_error",
        "truth_iou",
        "seconds",
    ):
        assert client.get_metric_history(summary.run_id, f"samples/{name}"), name
    files = {entry.path for entry in client.list_artifacts(summary.run_id, "samples")}
    assert "samples/step-00000008.png" in files
    record = json.loads((run_dir / "samples" / "step-00000008.json").read_text())
    assert [(d["seed"], d["prompt"]) for d in record["drawings"]][1] == (6, "a lamp")
    assert record["drawings"][0]["prompt"] in {caption_of(number) for number in range(12)}
    assert not list((run_dir / "samples").rglob("*.safetensors"))  # they are large
    with Image.open(run_dir / "samples" / "step-00000008.png") as sheet:
        assert sheet.width == 2048

    best = best_at(checkpoints_of(resolved.config), STEPS)
    losses = client.get_metric_history(summary.run_id, "val/loss")
    assert best is not None
    assert (best.loss, best.step) == min((point.value, point.step) for point in losses)
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {"step-00000008", f"step-{best.step:08}"}
    exported = load_file(run_dir / "adapter_best" / "pytorch_lora_weights.safetensors")
    saved = load_file(run_dir / "checkpoints" / f"step-{best.step:08}" / "weights.safetensors")
    assert all(exported[f"transformer.{name}"].equal(tensor) for name, tensor in saved.items())
    assert client.get_run(summary.run_id).data.tags["kiss3d.best_step"] == str(best.step)
    version = client.get_model_version_by_alias("run", "best")
    assert (version.run_id, version.tags["kiss3d.best_step"]) == (summary.run_id, str(best.step))

    page = tmp_path / "page.png"
    said = compare_runs(str(run_dir), summary.run_id, uri, page).pictures
    assert page.is_file() and "under the same name in both" in said
