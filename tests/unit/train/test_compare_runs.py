import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_infer.logged_run import find_run
from kiss3d_infer.tracking import Tracker
from kiss3d_train.compare import compare_runs


def log(uri: str, folder: Path, name: str, lr: float, **more: Any) -> str:
    """A run as training leaves it: losses of ten steps that halve with the rate."""
    with Tracker.open(uri, more.get("experiment", "lora"), name) as tracker:
        tracker.log_params({"optimizer.lr": lr, "adapter.rank": 4, **more.get("params", {})})
        for step in range(1, more.get("steps", 10) + 1):
            tracker.log_metrics({"train/loss": 100 * lr / step, "perf/step_s": 2.0}, step)
        tracker.log_metrics({"val/loss": lr}, more.get("validated_at", 8))
        tracker.log_metrics(more.get("metrics", {}), 1)
        if "data" in more:
            identity = {"base": "b" * 64, "data": more["data"], "encoder": "e" * 64}
            tracker.log_text(json.dumps({"identity": identity}), "run.json")
        for picture in more.get("pictures", ()):
            path = folder / picture
            Image.new("RGB", (64, 32), "red").save(path)
            tracker.log_artifact(path, "samples")
    return tracker.run_id


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/runs.db"


@pytest.fixture(scope="module")
def slow(uri: str, folder: Path) -> str:
    return log(uri, folder, "slow", 0.01, data="d" * 64, pictures=("seed-0.png", "seed-1.png"))


@pytest.fixture(scope="module")
def fast(uri: str, folder: Path) -> str:
    extra = {"engine.compile": True}
    return log(
        uri,
        folder,
        "fast",
        0.02,
        data="f" * 64,
        steps=12,
        params=extra,
        metrics={"perf/mfu": 0.5},
        pictures=("seed-0.png", "seed-2.png"),
    )


def test_it_tells_what_differs_and_by_how_much_at_equal_steps(
    uri: str, slow: str, fast: str
) -> None:
    found = compare_runs(slow, fast, uri)
    assert found.recipe == (
        ("optimizer.lr", "0.01", "0.02"),
        ("engine.compile", "not logged", "True"),
    )
    assert found.inputs == (
        ("data", "d" * 12, "f" * 12, "differs"),
        ("base", "b" * 12, "b" * 12, "same"),
        ("encoder", "e" * 12, "e" * 12, "same"),
    )
    losses = [row for row in found.metrics if row[0] == "train/loss"]
    assert [row[1] for row in losses] == ["2", "5", "7", "10"]
    assert losses[-1] == ("train/loss", "10", "0.1", "0.2", "+0.1", "+100.0%")
    assert ("val/loss", "8", "0.01", "0.02", "+0.01", "+100.0%") in found.metrics
    assert ("perf/step_s", "10", "2", "2", "+0", "+0.0%") in found.metrics
    assert found.unshared == ("only B has logged: perf/mfu",)
    text = str(found)
    assert f"A  slow  {slow}  FINISHED" in text
    assert "optimizer.lr    0.01        0.02" in text


def test_a_run_agrees_with_itself(uri: str, slow: str) -> None:
    found = compare_runs(slow, slow[:12], uri)
    assert found.recipe == ()
    assert {verdict for *_, verdict in found.inputs} == {"same"}
    assert {change for *_, change, _ in found.metrics} == {"+0"}
    assert "recipe: the same" in str(found)


def test_pictures_of_one_name_are_set_side_by_side(
    uri: str, slow: str, fast: str, tmp_path: Path
) -> None:
    found = compare_runs(slow, fast, uri, tmp_path / "page.png")
    assert found.pictures == f"1 of 1 under the same name in both: {tmp_path / 'page.png'}"
    with Image.open(tmp_path / "page.png") as sheet:
        colors = [sheet.getpixel((x, sheet.height - 100)) for x in (100, 1100)]
    assert colors == [(255, 0, 0), (255, 0, 0)]


def test_pictures_that_were_not_drawn_alike_are_told(uri: str, folder: Path, slow: str) -> None:
    seed = {"samples.seed": 7, "samples.every": 100}  # how often does not matter
    other = log(uri, folder, "other", 0.01, params=seed, pictures=("seed-0.png",))
    said = "1 under the same name in both; --out page.png sets them side by side"
    said += "; their cells were drawn with different samples.seed"
    assert compare_runs(slow, other, uri).pictures == said


def test_runs_without_pictures_say_so(uri: str, folder: Path, slow: str, tmp_path: Path) -> None:
    bare = log(uri, folder, "bare", 0.01)
    page = tmp_path / "page.png"
    found = compare_runs(bare, bare, uri, page)
    assert found.pictures == f"neither run has logged any; {page} was not written"
    assert not page.exists()
    assert found.inputs == ()
    mixed = compare_runs(slow, bare, uri)
    assert mixed.pictures == "A has logged 2, B 0, none under the same name"
    assert ("base", "b" * 12, "not logged", "differs") in mixed.inputs


def test_metrics_without_a_common_step_are_named(uri: str, folder: Path, slow: str) -> None:
    late = log(uri, folder, "late", 0.01, validated_at=9)
    assert compare_runs(slow, late, uri).unshared == ("at no common step: val/loss",)


def test_a_value_that_changed_on_the_way_is_told(uri: str, folder: Path, slow: str) -> None:
    run = log(uri, folder, "changed", 0.01)
    with Tracker.open(uri, "lora", "changed", run_id=run) as tracker:
        tracker.log_params({"optimizer.lr": 0.005})
    assert ("optimizer.lr", "0.01", "0.01, later 0.005") in compare_runs(slow, run, uri).recipe


@pytest.mark.parametrize(
    ("name", "key"), [("summary.json", "run_id"), ("run.json", "tracking_run")]
)
def test_a_folder_names_its_run(uri: str, slow: str, tmp_path: Path, name: str, key: str) -> None:
    (tmp_path / name).write_text(json.dumps({key: slow}))
    assert compare_runs(str(tmp_path), slow, uri).runs[0].run_id == slow


def test_a_folder_without_a_run_is_refused(uri: str, slow: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run, neither summary\.json nor run\.json"):
        compare_runs(str(tmp_path), slow, uri)


def test_an_unknown_run_is_refused(uri: str, slow: str) -> None:
    for unknown in ("0" * 32, "runs/misspelt", "%"):
        with pytest.raises(InputError, match=f"MLflow has no run {unknown}"):
            compare_runs(slow, unknown, uri)


def test_a_beginning_of_several_runs_is_refused(uri: str, folder: Path) -> None:
    # Of 17 runs two begin with the same of 16 digits.
    ids = [log(uri, folder, "short", 0.01, steps=0) for _ in range(17)]
    digit = next(d for d in "0123456789abcdef" if sum(run.startswith(d) for run in ids) > 1)
    with pytest.raises(InputError, match=f"several runs begin with {digit}: .*more of the id"):
        find_run(uri, digit)


def test_runs_of_different_experiments_are_refused(uri: str, folder: Path, slow: str) -> None:
    other = log(uri, folder, "other", 0.01, experiment="another")
    with pytest.raises(InputError, match="different experiments, 'lora' and 'another'"):
        compare_runs(slow, other, uri)


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such database"):
        find_run(f"sqlite:///{tmp_path}/none/runs.db", "abc")
    assert not list(tmp_path.iterdir())
