import dataclasses
import json
from pathlib import Path

import pytest
from test_checkpoint import IDENTITY, state_of
from tiny_training import tiny_config

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked
from kiss3d_train import checkpoint
from kiss3d_train.checkpoint import Identity
from kiss3d_train.config import TrainConfig
from kiss3d_train.resume import RUN_FILE, Start, decide_start

OTHER = dataclasses.replace(IDENTITY, data="another data set")


def config_of(run_dir: Path, resume: str = "auto") -> TrainConfig:
    return tiny_config({"run.dir": str(run_dir), "run.resume": resume})


def make_run(
    run_dir: Path,
    steps: tuple[int, ...],
    identity: Identity = IDENTITY,
    initial: Path | None = None,
) -> None:
    run_dir.mkdir()
    record = {
        "tracking_run": "run-1",
        "initial": initial and str(initial),
        "identity": dataclasses.asdict(identity),
    }
    (run_dir / RUN_FILE).write_text(json.dumps(record))
    for step in steps:
        checkpoint.save(run_dir / "checkpoints", step, state_of(step), identity, "run-1", keep=9)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_an_empty_or_missing_folder_starts_anew(tmp_path: Path, resume: str) -> None:
    assert decide_start(config_of(tmp_path, resume), IDENTITY) == Start()
    assert decide_start(config_of(tmp_path / "new", resume), IDENTITY) == Start()


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_the_jobs_own_lock_does_not_fill_the_folder(tmp_path: Path, resume: str) -> None:
    with locked(tmp_path):
        assert decide_start(config_of(tmp_path, resume), IDENTITY) == Start()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(InputError, match=r"run\.dir is not empty"):
        decide_start(config_of(tmp_path / "run"), IDENTITY)


def test_never_refuses_a_folder_that_holds_anything(tmp_path: Path) -> None:
    make_run(tmp_path / "run", (3,))
    with pytest.raises(InputError, match=r"run\.dir is not empty"):
        decide_start(config_of(tmp_path / "run", "never"), IDENTITY)


def test_auto_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(InputError, match=r"run\.dir is not empty"):
        decide_start(config_of(tmp_path), IDENTITY)


def test_auto_goes_on_from_the_newest_checkpoint_and_its_mlflow_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", (3, 6))
    start = decide_start(config_of(tmp_path / "run"), IDENTITY)
    assert start == Start(step=6, initial=None, tracking_run="run-1")


def test_a_run_without_checkpoints_keeps_its_mlflow_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ())
    assert decide_start(config_of(tmp_path / "run"), IDENTITY) == Start(tracking_run="run-1")


def test_auto_refuses_another_recipe(tmp_path: Path) -> None:
    make_run(tmp_path / "run", (3,))
    with pytest.raises(InputError, match="data was data and is now another data"):
        decide_start(config_of(tmp_path / "run"), OTHER)


def test_auto_does_not_start_over_when_every_checkpoint_is_broken(tmp_path: Path) -> None:
    make_run(tmp_path / "run", (3,))
    (tmp_path / "run/checkpoints/step-00000003/weights.safetensors").unlink()
    with pytest.raises(InputError, match="all checkpoints are broken"):
        decide_start(config_of(tmp_path / "run"), IDENTITY)


def test_a_given_checkpoint_starts_a_new_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", (3, 6))
    path = tmp_path / "run/checkpoints/step-00000003"
    start = decide_start(config_of(tmp_path / "branch", str(path)), IDENTITY)
    assert start == Start(step=3, initial=path, tracking_run=None)
    with pytest.raises(InputError, match="data was"):
        decide_start(config_of(tmp_path / "branch", str(path)), OTHER)
    with pytest.raises(InputError, match="not an intact checkpoint"):
        decide_start(config_of(tmp_path / "branch", str(path.parent)), IDENTITY)


def test_a_run_that_died_before_its_first_checkpoint_starts_from_the_given_one_again(
    tmp_path: Path,
) -> None:
    make_run(tmp_path / "run", (3,))
    path = tmp_path / "run/checkpoints/step-00000003"
    make_run(tmp_path / "branch", (), initial=path)
    start = decide_start(config_of(tmp_path / "branch"), IDENTITY)
    assert start == Start(step=3, initial=path, tracking_run="run-1")


def test_a_runs_own_checkpoint_goes_before_the_given_one(tmp_path: Path) -> None:
    make_run(tmp_path / "branch", (5,), initial=tmp_path / "step-00000003")
    start = decide_start(config_of(tmp_path / "branch"), IDENTITY)
    assert start == Start(step=5, initial=tmp_path / "step-00000003", tracking_run="run-1")


def test_a_checkpoint_that_began_with_another_lora_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", (3,), dataclasses.replace(IDENTITY, initial_adapter="one"))
    now = dataclasses.replace(IDENTITY, initial_adapter="two")
    with pytest.raises(InputError, match="initial_adapter was one and is now two"):
        decide_start(config_of(tmp_path / "run"), now)
