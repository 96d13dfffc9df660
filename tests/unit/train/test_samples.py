"""Drawings beside a run: what is drawn and measured, and in which order rounds come about."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import trimesh
from tiny_data import TILE, bundle_of, caption_of, make_rendered, make_shards
from tiny_training import tiny_config

from kiss3d_infer.bundle import PUBLISHED, Bundle
from kiss3d_infer.bundle.normals import encode
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.lora import FILE_NAME, LoraMetadata, save_lora
from kiss3d_infer.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle
from kiss3d_infer.tracking import Tracker
from kiss3d_train.config import SamplesSection, TrainConfig
from kiss3d_train.data.shards import ShardReader, load_index, write_shards
from kiss3d_train.samples import drawing as drawing_module
from kiss3d_train.samples.drawing import (
    Drawing,
    Subject,
    compared,
    compared_meshes,
    draw_round,
    judged,
    metrics_of,
    subjects_of,
    with_reconstruction,
)
from kiss3d_train.samples.painter import Easel, check_room
from kiss3d_train.samples.rounds import Round, waiting_rounds


def facing(vector: tuple[float, float, float]) -> Bundle:
    """Grey squares in every view, with one unit normal all over."""
    image = bundle_of(0).image.clone()
    color = encode(torch.tensor(vector).reshape(3, 1, 1))
    for left in range(8, 128, 32):
        image[:, 8:24, left : left + 16] = 0.5
        image[:, 40:56, left : left + 16] = color
    return Bundle(image, PUBLISHED)


def test_a_drawing_is_measured_against_the_truth() -> None:
    truth, turned = facing((0.0, 0.0, 1.0)), facing((0.6, 0.0, 0.8))
    same = compared(truth, truth)
    assert (same["psnr/rgb"], same["truth_iou"]) == (100.0, 1.0)
    assert same["normal_error"] == pytest.approx(0, abs=0.5)
    found = compared(turned, truth)
    assert found["normal_error"] == pytest.approx(36.87, abs=0.1)  # whose cosine is 0.8
    assert (found["psnr/rgb"], found["truth_iou"]) == (100.0, 1.0)
    darker = Bundle((truth.image - 0.1).clamp(0, 1), PUBLISHED)
    assert compared(darker, truth)["psnr/rgb"] == pytest.approx(20, abs=0.01)  # -20 log10(0.1)


def test_figures_are_means_over_the_drawings_that_have_them() -> None:
    bundle = bundle_of(0)
    made = [
        Drawing(Subject("a", 0), bundle, {"psnr/rgb": 10.0, "rows_iou": 0.5}, ()),
        Drawing(Subject("b", 1), bundle, {"psnr/rgb": 20.0, "rows_iou": 0.7}, ("bad",)),
        Drawing(Subject("c", 2), bundle, {"rows_iou": 0.9}, ("bad",)),
    ]
    assert metrics_of(made) == {
        "samples/valid_share": pytest.approx(1 / 3),
        "samples/psnr/rgb": 15.0,
        "samples/rows_iou": pytest.approx(0.7),
    }


def test_only_valid_drawings_are_reconstructed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    valid = judged(Subject("a", 0), facing((0.0, 0.0, 1.0)))
    assert valid.problems == () and valid.measurements["rows_iou"] == 1.0
    noise = judged(Subject("b", 1), Bundle(torch.rand(3, 64, 128), PUBLISHED))
    assert noise.problems and with_reconstruction(noise, tmp_path / "1.glb", "cpu") is noise

    def fail(*_: object, **__: object) -> None:
        raise InputError("the bundle is empty")

    monkeypatch.setattr("kiss3d_infer.reconstruct.reconstruct", fail)
    failed = with_reconstruction(valid, tmp_path / "0.glb", "cpu")
    assert "the bundle is empty" in failed.problems[0]


def shape(mesh: trimesh.Trimesh) -> Mesh:
    return Mesh(torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces).int())


BALL, BOX = shape(trimesh.creation.icosphere(4)), shape(trimesh.creation.box((2, 2, 2)))


def test_meshes_are_compared_by_the_papers_protocol() -> None:
    same, other = compared_meshes(BALL, BALL), compared_meshes(BOX, BALL)
    chamfer, f_score = (f"vs_held_out_bundle_mesh/{n}" for n in ("chamfer_mean", "f_score/0.1"))
    assert same.keys() == {chamfer, f_score, "vs_held_out_bundle_mesh/normal_consistency"}
    # Points of two samplings are 0.5 sqrt(4 pi / 16384) apart: see docs/metrics.md.
    assert (same[chamfer], same[f_score]) == (pytest.approx(0.0139, abs=5e-4), 1.0)
    assert other[chamfer] > 0.1 and other[f_score] < 0.5


class Workshop:
    """In place of `reconstruct`: a ball of one bundle, a box of all others.

    Attributes:
        made: the bundles it was asked for.
        fails_at: the bundle that it can make nothing of.
    """

    def __init__(self, ball: Bundle, fails_at: Bundle | None = None) -> None:
        self.made: list[Bundle] = []
        self._ball, self._fails_at = ball, fails_at

    def __call__(self, bundle: Bundle, *, device: str) -> SimpleNamespace:
        self.made.append(bundle)
        if bundle is self._fails_at:
            raise InputError("the bundle is empty")
        mesh = BALL if bundle is self._ball else BOX
        return SimpleNamespace(mesh=mesh, measurements={"silhouette_iou": 0.9})


def test_the_mesh_of_a_held_out_bundle_is_made_once_and_compared_with_each_drawings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn, truth = facing((0.0, 0.0, 1.0)), facing((0.6, 0.0, 0.8))
    drawing = judged(Subject("a", 0, truth), drawn)
    monkeypatch.setattr("kiss3d_infer.reconstruct.reconstruct", shop := Workshop(truth))
    kept = Round(tmp_path, 100).held_out_mesh(0)
    first = with_reconstruction(drawing, kept, "cpu").measurements
    assert [bundle is truth for bundle in shop.made] == [False, True]
    expected = drawing.measurements | {"reconstruction_iou": 0.9} | compared_meshes(BOX, BALL)
    assert first == expected
    assert Round(tmp_path, 200).held_out_mesh(0) == kept and kept.is_file()
    assert with_reconstruction(drawing, kept, "cpu").measurements == first
    assert [bundle is truth for bundle in shop.made] == [False, True, False]


def test_a_held_out_bundle_without_a_mesh_is_no_fault_of_the_drawing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, truth = facing((0.0, 0.0, 1.0)), facing((0.6, 0.0, 0.8))
    monkeypatch.setattr("kiss3d_infer.reconstruct.reconstruct", Workshop(drawn, fails_at=truth))
    drawing = judged(Subject("a", 0, truth), drawn)
    made = with_reconstruction(drawing, tmp_path / "3.glb", "cpu")
    assert made.problems == ()
    assert made.measurements == drawing.measurements | {"reconstruction_iou": 0.9}
    assert "no mesh of held-out bundle 3: the bundle is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prompts_follow_the_held_out_captions_with_seeds_of_their_own(shards: Path) -> None:
    reader = ShardReader(shards)
    section = SamplesSection(held_out=99, prompts=("a lamp", "a boat"), seed=7)
    subjects = subjects_of(section, shards, reader.index)
    held_out = reader.num_samples("val")
    assert [subject.truth is not None for subject in subjects] == [True] * held_out + [False] * 2
    assert [subject.seed for subject in subjects] == [7 + n for n in range(held_out + 2)]
    assert [subject.prompt for subject in subjects[-2:]] == ["a lamp", "a boat"]


def test_held_out_samples_without_a_caption_are_left_out(tmp_path: Path) -> None:
    make_rendered(tmp_path / "rendered", range(4))
    for number in range(3):
        description = tmp_path / "rendered" / f"square-{number:02}.json"
        blank = json.loads(description.read_text()) | {"caption": " "}
        description.write_text(json.dumps(blank))
    write_shards(tmp_path / "rendered", tmp_path / "shards", val_share=1)
    made = tmp_path / "shards"
    subjects = subjects_of(SamplesSection(held_out=4), made, load_index(made))
    assert [(subject.prompt, subject.seed) for subject in subjects] == [(caption_of(3), 0)]


def adapter_for(base: Path, value: float, folder: Path) -> None:
    """A LoRA of rank 1 on one linear, whose update is the outer product of constants."""
    from kiss3d_infer.flux.base import load_base

    transformer = load_base(base, dtype="float32", parts=("transformer",)).transformer
    name = "transformer_blocks.0.attn.to_q"
    rows, columns = transformer.get_submodule(name).weight.shape
    weights = {
        f"{name}.lora_A.weight": torch.full((1, columns), value),
        f"{name}.lora_B.weight": torch.full((rows, 1), value),
    }
    metadata = LoraMetadata(rank=1, alpha=1.0, base="b", data="d", layout=PUBLISHED)
    save_lora(folder, weights, metadata)


def test_a_round_draws_the_same_noise_with_other_weights(
    shards: Path, base: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"run.dir": str(tmp_path), "base.path": str(base)}
    changes |= {"data.shards": str(shards), "samples.held_out": 1, "samples.steps": 1}
    config = tiny_config(changes)
    for step, value in ((1, 0.3), (2, 0.3), (3, -2.0)):
        adapter_for(base, value, Round(tmp_path, step).adapter)
        metrics = draw_round(config, Round(tmp_path, step))
    assert metrics.keys() >= {"samples/valid_share", "samples/psnr/rgb", "samples/normal_error"}
    pictures = [(Round(tmp_path, step).folder / "0.bundle.png").read_bytes() for step in (1, 2, 3)]
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]
    record = json.loads(Round(tmp_path, 3).record.read_text())
    assert record["step"] == 3 and record["drawings"][0]["prompt"].startswith("a chair")
    assert Round(tmp_path, 3).sheet.is_file()


def test_rounds_reconstruct_what_they_drew_and_the_held_out_bundle_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def squashed(height: float) -> Bundle:
        vertices = BALL.vertices * torch.tensor([0.8, height, 0.8])
        return render_bundle(replace(BALL, vertices=vertices), tile=TILE)

    made: list[Reconstruction] = []

    def quickly(bundle: Bundle, *, device: str) -> Reconstruction:
        settings = ReconstructSettings(coarse_steps=4, fine_steps=4, num_faces=500, texture_size=64)
        made.append(reconstruct(bundle, settings, device=device))
        return made[-1]

    truth = squashed(0.8)
    monkeypatch.setattr("tiny_data.bundle_of", lambda *_: truth)
    monkeypatch.setattr("kiss3d_infer.reconstruct.reconstruct", quickly)
    changes: dict[str, Any] = {"run.dir": str(tmp_path / "run"), "base.path": str(base)}
    changes |= {"data.shards": str(make_shards(tmp_path)), "samples.held_out": 1}
    config = tiny_config(changes | {"samples.reconstruct": True})
    found = []
    for step, drawn in ((1, truth), (2, squashed(0.4))):
        monkeypatch.setattr(drawing_module, "generate_bundle", lambda *_, it=drawn, **__: it)
        adapter_for(base, 0.1, Round(tmp_path / "run", step).adapter)
        metrics = draw_round(config, Round(tmp_path / "run", step))
        found.append(metrics["samples/vs_held_out_bundle_mesh/chamfer_mean"])
    assert len(made) == 3  # two drawings, and the truth at the first of them
    assert found[0] < 0.05 and found[1] > 0.15  # the second one is half as tall
    names = [path.name for path in (tmp_path / "run" / "samples" / "held_out").iterdir()]
    assert names == ["0.glb"]


class FakeTracker:
    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self.files: list[str] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.points[step] = metrics

    def log_artifact(self, path: Path, folder: str) -> None:
        self.files.append(f"{folder}/{path.name}")


class Scripted:
    """Rounds that are drawn when the test says so.

    Attributes:
        begun: their steps, in order.
        outcome: of the one that goes on; None until it has ended.
        num_killed: processes that were ended.
    """

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.outcome: dict[str, float] | Exception | None = None
        self.num_killed = 0

    def __call__(self, config: TrainConfig, what: Round) -> "Scripted":
        self.begun.append(what.step)
        self.outcome = None
        return self

    def metrics(self) -> dict[str, float] | None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def kill(self) -> None:
        self.num_killed += 1


@pytest.fixture
def drawing() -> Scripted:
    return Scripted()


@pytest.fixture
def tracker() -> FakeTracker:
    return FakeTracker()


@pytest.fixture
def easel(drawing: Scripted, tracker: FakeTracker, tmp_path: Path) -> Easel:
    config = tiny_config({"run.dir": str(tmp_path), "samples.held_out": 1})
    return Easel(config, cast(Tracker, tracker), drawing)


def request(run_dir: Path, step: int) -> None:
    adapter = Round(run_dir, step).adapter
    adapter.mkdir(parents=True)
    (adapter / FILE_NAME).touch()


def test_while_a_round_is_drawn_only_the_newest_weights_wait(
    easel: Easel,
    drawing: Scripted,
    tracker: FakeTracker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not easel.poll()
    request(tmp_path, 100)
    assert easel.poll() and drawing.begun == [100]
    for step in (200, 300):
        request(tmp_path, step)
        assert easel.poll() and drawing.begun == [100]
    drawing.outcome = {"samples/valid_share": 0.5}
    assert easel.poll() and drawing.begun == [100, 300]
    assert tracker.points == {100: {"samples/valid_share": 0.5}}
    assert tracker.files == ["samples/step-00000100.png", "samples/step-00000100.json"]
    assert "step 200 are left out" in capsys.readouterr().err
    assert [what.step for what in waiting_rounds(tmp_path)] == [300]
    drawing.outcome = {"samples/valid_share": 1.0}
    assert not easel.poll()
    assert (drawing.num_killed, waiting_rounds(tmp_path)) == (2, [])
    assert list(tracker.points) == [100, 300]


def test_a_round_that_fails_is_a_warning_and_the_next_one_is_drawn(
    easel: Easel,
    drawing: Scripted,
    tracker: FakeTracker,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request(tmp_path, 100)
    easel.poll()
    drawing.outcome = RuntimeError("out of memory")
    assert not easel.poll()
    assert "samples of step 100 failed: out of memory" in capsys.readouterr().err
    request(tmp_path, 200)
    assert easel.poll() and drawing.begun == [100, 200]
    assert tracker.points == {}


def test_drawings_that_cannot_begin_do_no_harm(
    tracker: FakeTracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(config: TrainConfig, what: Round) -> Scripted:
        raise RuntimeError("Ray is gone")

    config = tiny_config({"run.dir": str(tmp_path), "samples.prompts": ["a lamp"]})
    easel = Easel(config, cast(Tracker, tracker), begin)
    request(tmp_path, 100)
    assert not easel.poll() and not easel.poll()
    easel.finish(lambda: False)
    assert capsys.readouterr().err.count("Ray is gone") == 1


def test_the_round_of_a_run_that_is_stopped_waits_for_its_next_start(
    easel: Easel, drawing: Scripted, tmp_path: Path
) -> None:
    request(tmp_path, 100)
    easel.poll()
    easel.finish(lambda: True)
    easel.close()
    assert drawing.num_killed == 1
    assert [what.step for what in waiting_rounds(tmp_path)] == [100]


@pytest.mark.parametrize(
    ("samples", "key"),
    [({"held_out": 1, "cpus": 8}, "cpus"), ({"prompts": ("a lamp",), "gpus": 0.5}, "gpus")],
)
def test_drawings_that_no_machine_has_room_for_are_refused(
    samples: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError, match=f"samples.{key}"):
        check_room(SamplesSection(**samples), {"CPU": 4.0})
    check_room(SamplesSection(**samples | {"held_out": 0, "prompts": ()}), {"CPU": 4.0})
    check_room(SamplesSection(**samples), {"CPU": 8.0, "GPU": 1.0})
