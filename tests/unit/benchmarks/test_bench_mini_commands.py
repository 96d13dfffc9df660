"""The commands of the benchmark of kiss3d-mini, on a tiny random model."""

import json
import resource
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.mini import __main__ as command
from benchmarks.mini import card, classifier, grid, judges
from benchmarks.mini.cost import kiss3d_cost
from kiss3d_infer.bundle import PUBLISHED, save_bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import create_random_base
from kiss3d_infer.flux.lora import LoraMetadata, save_lora
from kiss3d_infer.flux.pack import pack_base
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources.toybox import make

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
COST = {"command": "generate", "prompt": "a chair", "exit_code": 0}
COST |= {"seconds": 7.0, "peak_memory_bytes": 3 * 2**30}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    create_random_base(CONFIGS / "tiny", folder / "base", seed=0)
    pack_base(folder / "base", folder / "packed")
    layer = "transformer_blocks.0.attn.to_q"
    weights = {
        f"{layer}.lora_A.weight": torch.zeros(2, 64),
        f"{layer}.lora_B.weight": torch.zeros(64, 2),
    }
    save_lora(folder / "adapter", weights, metadata())
    return folder


def metadata():
    return LoraMetadata(rank=2, alpha=2, base="", data="", layout=PUBLISHED)


def test_prompts_are_measured_compared_and_shown_and_more_prompts_go_on(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier, "NUM_CLASSES", 4)
    monkeypatch.setattr(judges, "_PER_CLASS", 1)
    monkeypatch.setattr(judges, "_CHECKED_PER_CLASS", 1)
    monkeypatch.setattr(command, "commands_cost", lambda *arguments: [COST])
    out = tmp_path / "results.json"
    given = ["--model", str(tiny / "packed"), "--adapter", str(tiny / "adapter")]
    given += ["--reference", str(tiny / "base"), "--out", str(out)]
    given += ["--set", "tile=32", "--set", "steps=1"]
    command.main([*given, "--prompts", "1"])
    first = json.loads(out.read_bytes())
    monkeypatch.setattr(command, "commands_cost", None)  # measured once
    command.main([*given, "--prompts", "2"])
    report = json.loads(out.read_bytes())
    assert [row["index"] for row in report["rows"]] == [0, 1]
    assert report["rows"][0] == first["rows"][0]
    assert report["mean"]["drawn"]["valid"] == {"mean": 0.0, "of": 2}  # weights are random
    assert report["mean"]["exact"]["valid"] == {"mean": 1.0, "of": 2}
    assert [30 < row["psnr"] < 100 for row in report["packed"]] == [True, True]
    assert 1e6 < report["bytes"]["base"] < 2e6
    with Image.open(tmp_path / "results" / "sheet.png") as sheet:
        assert sheet.width == 2400
    written = card.table(report)
    assert "| prompt to bundle on 2 cores, seconds | <= 12 | 7.0 (1) |  |" in written
    assert "| prompt to bundle, peak memory in GiB |  | 3.0 |  |" in written
    assert "| passes `validate` |  | 0.000 (2) | 1.000 (2) |" in written
    with pytest.raises(InputError, match=r"another setup \(drawing differ\)"):
        command.main([*given, "--prompts", "2", "--set", "steps=2"])
    with pytest.raises(InputError, match=r"another setup \(drawings_only differ\)"):
        command.main([*given, "--prompts", "2", "--drawings-only"])


def test_drawings_alone_are_judged_of_some_classes_and_without_an_adapter(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier, "NUM_CLASSES", 4)
    monkeypatch.setattr(judges, "_PER_CLASS", 1)
    monkeypatch.setattr(judges, "_CHECKED_PER_CLASS", 1)
    out = tmp_path / "results.json"
    given = ["--model", str(tiny / "base"), "--set", "tile=32", "--set", "steps=1"]
    given += ["--out", str(out), "--prompts", "3", "--names", "robot", "car"]
    kept = tmp_path / "judges.safetensors"
    command.main([*given, "--drawings-only", "--judges", str(kept)])
    report = json.loads(out.read_bytes())
    assert [row["index"] for row in report["rows"]] == [1, 2, 59]
    assert report["mean"].keys() == {"drawn"}
    assert report["setup"]["adapter"] is None
    assert report["setup"]["prompts"].endswith("(robot, car)")
    assert (tmp_path / "results" / "sheet.png").is_file()
    with pytest.raises(SystemExit, match="--adapter"):
        command.main([*given, "--out", str(tmp_path / "whole.json")])
    with pytest.raises(InputError, match="the toybox has no spaceship"):
        command.main([*given, "--names", "spaceship"])
    again, accuracy = judges.learnt(kept)
    assert accuracy == report["judges"]
    views, classes = classifier.check_set(1)
    assert again.accuracy(views, classes) == accuracy["exact"]


def test_judges_of_other_bundles_and_what_is_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "NUM_CLASSES", 4)
    monkeypatch.setattr(judges, "_PER_CLASS", 1)
    monkeypatch.setattr(judges, "_CHECKED_PER_CLASS", 1)
    kept = tmp_path / "judges.safetensors"
    judges.learnt(kept)
    monkeypatch.setattr(judges, "_PER_CLASS", 2)
    with pytest.raises(InputError, match="learnt from other bundles"):
        judges.learnt(kept)
    kept.write_bytes(b"none")
    with pytest.raises(InputError, match="no judges"):
        judges.learnt(kept)


def test_the_card_is_filled_between_its_marks_again_and_again():
    text = f"before\n{card.BEGIN}\nold\n{card.END}\nafter\n"
    once = card.filled(text, "new")
    assert once == f"before\n{card.BEGIN}\n\nnew\n\n{card.END}\nafter\n"
    assert card.filled(once, "newer") == once.replace("new", "newer")
    with pytest.raises(InputError, match="no lines"):
        card.filled("a card", "new")


def test_the_cards_in_the_package_can_be_filled():
    packaged = (card.mini.FOLDER / "MODEL_CARD.md").read_text()
    assert card.filled(packaged, "|a|").count("|a|") == 1


def test_a_command_runs_apart_and_its_memory_is_its_own():
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # torch and all
    cost = kiss3d_cost(["--help"])
    assert cost["exit_code"] == 0 and cost["seconds"] > 0
    assert 2**23 < cost["peak_memory_bytes"] < ours / 2
    assert kiss3d_cost(["reconstruct", "absent.png", "-o", "/proc/a.glb"])["exit_code"] == 2


def test_the_grid_shows_the_front_and_two_sides_and_white_without_a_mesh(tmp_path):
    mesh = framed(make(1).mesh(), PUBLISHED.cameras)
    save_bundle(render_bundle(mesh, tile=64), tmp_path / "car.bundle.png")
    save_mesh(mesh, tmp_path / "car.glb")
    shown = grid.picture(tmp_path / "car.bundle.png", tmp_path / "car.glb")
    assert shown.shape == (3, 256, 640)
    assert (shown[:, :, :128] < 0.9).any() and (shown[:, :, 128:] < 0.9).any()
    bare = grid.picture(tmp_path / "car.bundle.png", tmp_path / "none.glb")
    assert (bare[:, :, 128:] == 1).all() and torch.equal(bare[:, :, :128], shown[:, :, :128])


def test_the_grid_is_made_of_every_prompt_even_of_one_without_a_mesh(tiny, tmp_path, monkeypatch):
    def draw(pipeline, prompt, out, *, layout, tile, seed, **settings):
        assert (tile, seed, settings["steps"], settings["force"]) == (32, 0, 1, True)
        mesh = framed(make(1).mesh(), layout.cameras)
        save_bundle(render_bundle(mesh, tile=tile), out.with_name(f"{out.stem}.bundle.png"))
        if "chair" in prompt:
            raise InputError("the bundle is empty")
        save_mesh(mesh, out)

    monkeypatch.setattr(grid, "text_to_3d", draw)
    monkeypatch.setattr(grid, "PROMPTS", grid.PROMPTS[:3])
    given = ["--model", str(tiny / "packed"), "--adapter", str(tiny / "adapter")]
    given += ["--set", "tile=32", "--set", "steps=1", "--assets", str(tmp_path)]
    grid.main([*given, "--out", str(tmp_path / "grid.png")])
    assert sorted(file.name for file in tmp_path.glob("*.glb")) == ["01.glb", "02.glb"]
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width == 2000
