"""A run over Ray from recipe to adapter: tracked, interrupted, resumed, and used for sampling."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.encode import encode_shards
from kiss3d_train.ray_session import ray_session
from kiss3d_train.run import run_training
from kiss3d_train.summary import TrainSummary

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "train"))

from tiny_data import NUM_SAMPLES, make_base, make_shards  # noqa: E402

STEPS = 12


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    make_shards(folder)
    make_base(folder)
    return folder


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this file."""
    with ray_session(2):
        yield


def overrides_of(workspace: Path, run: str) -> list[str]:
    return [
        f"run.dir={workspace / run}",
        f"run.steps={STEPS}",
        "run.log_every=1",
        f"base.path={workspace / 'base'}",
        f"data.shards={workspace / 'shards'}",
        "data.global_batch=4",
        "adapter={rank: 4}",
        "optimizer.lr=1e-2",
        "optimizer.warmup_steps=0",
        "scaling.micro_batch=2",
        "checkpoint.every=5",
        "validation.every=6",
        f"tracking.uri=sqlite:///{workspace / 'mlruns.db'}",
    ]


def train(workspace: Path, run: str, *more: str) -> TrainSummary:
    recipe = ROOT / "configs" / "train" / "demo-mini.yaml"
    return run_training(load_config(TrainConfig, recipe, [*overrides_of(workspace, run), *more]))


@pytest.fixture(scope="module")
def straight(workspace: Path, ray_here: None) -> TrainSummary:
    return train(workspace, "straight")


def test_a_run_leaves_what_it_promises(straight: TrainSummary, workspace: Path) -> None:
    run_dir = workspace / "straight"
    assert straight.status == "finished"
    assert (run_dir / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["step-00000010", "step-00000012"]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["run_id"] == straight.run_id
    assert summary["steps"] == STEPS == len(summary["losses"])
    assert summary["peak_memory_bytes"] > 0
    assert summary["seconds"] > 0
    assert f"step {STEPS}/{STEPS}" in (run_dir / "train.log").read_text()


def test_the_loss_falls(straight: TrainSummary) -> None:
    first, last = straight.losses[:3], straight.losses[-3:]
    assert sum(last) < 0.95 * sum(first)


def test_mlflow_has_the_curves_and_the_adapter(straight: TrainSummary, workspace: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlruns.db'}")
    run = client.get_run(straight.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["adapter.rank"] == "4"
    loss = client.get_metric_history(straight.run_id, "train/loss")
    assert sorted(point.step for point in loss) == list(range(1, STEPS + 1))
    for name in ("train/grad_norm", "train/lr", "perf/step_s", "perf/samples_per_s"):
        assert client.get_metric_history(straight.run_id, name), name
    held_out = client.get_metric_history(straight.run_id, "val/loss")
    assert sorted(point.step for point in held_out) == [6, 12]
    artifacts = {item.path for item in client.list_artifacts(straight.run_id)}
    assert {"adapter", "config.yaml", "data", "run.json", "summary.json"} <= artifacts
    assert run.inputs.dataset_inputs[0].dataset.name == "shards"


def test_the_adapter_changes_what_the_pipeline_draws(
    straight: TrainSummary, workspace: Path
) -> None:
    from kiss3d_infer.flux.base import load_base

    pipeline = load_base(workspace / "base", dtype="float32")

    def drawn() -> torch.Tensor:
        images: torch.Tensor = pipeline(
            prompt="a chair",
            width=64,
            height=32,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            max_sequence_length=16,
        ).images
        return images

    before = drawn()
    pipeline.load_lora_weights(str(Path(straight.adapter).parent))
    assert (drawn() - before).abs().max() > 1e-3
    pipeline.unload_lora_weights()
    assert torch.allclose(drawn(), before, atol=1e-6)


def test_an_ended_run_is_not_run_again(
    straight: TrainSummary, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(workspace, "straight") == straight
    assert "finished already; nothing was done" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"optimizer.lr was .* and is now 1e-05"):
        train(workspace, "straight", "optimizer.lr=1e-5")


def test_a_run_that_died_after_its_last_step_is_concluded(
    straight: TrainSummary, workspace: Path
) -> None:
    shutil.copytree(workspace / "straight", workspace / "died")
    shutil.rmtree(workspace / "died" / "adapter")
    (workspace / "died" / "summary.json").unlink()
    concluded = train(workspace, "died")
    assert (concluded.status, concluded.steps, concluded.losses) == ("finished", STEPS, ())
    expected, found = load_file(straight.adapter), load_file(concluded.adapter)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_runs_folder_is_not_overwritten(straight: TrainSummary, workspace: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        train(workspace, "straight", "run.resume=never")
    with pytest.raises(InputError, match="rank was 4 and is now 8"):
        train(workspace, "straight", "adapter.rank=8")


def started(workspace: Path, run: str, *more: str) -> subprocess.Popen[str]:
    """The same run as a command of its own, which starts its own Ray."""
    arguments = [f"--set={override}" for override in [*overrides_of(workspace, run), *more]]
    command = "from kiss3d_train.cli import main; main()"
    recipe = str(ROOT / "configs" / "train" / "demo-mini.yaml")
    return subprocess.Popen(
        [sys.executable, "-c", command, "train", "run", recipe, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
    )


@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_a_checkpoint_and_the_resumed_one_ends_as_a_straight_one(
    straight: TrainSummary, workspace: Path, request_to_stop: signal.Signals
) -> None:
    from mlflow import MlflowClient

    name = f"stopped by {request_to_stop.name}"
    with started(workspace, name) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "step 2/" in line:
                process.send_signal(request_to_stop)
            if "stopping: " in line:
                process.send_signal(request_to_stop)  # as timeout(1) does, to the group
    assert process.returncode == 1, output
    assert "stopped; the same command with --set run.resume=auto goes on" in output
    stopped = json.loads((workspace / name / "summary.json").read_text())
    assert stopped["status"] == "stopped"
    assert 2 <= stopped["steps"] < STEPS
    client = MlflowClient(f"sqlite:///{workspace / 'mlruns.db'}")
    assert client.get_run(stopped["run_id"]).info.status == "KILLED"

    resumed = train(workspace, name)
    assert resumed.run_id == stopped["run_id"]
    assert client.get_run(resumed.run_id).info.status == "FINISHED"
    assert tuple(stopped["losses"]) + resumed.losses == straight.losses
    steps = [point.step for point in client.get_metric_history(resumed.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, STEPS + 1))
    expected = load_file(straight.adapter)
    found = load_file(resumed.adapter)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def workers_below(process: psutil.Process) -> list[psutil.Process]:
    """The training workers that a driver has started through its own Ray."""
    return [
        child
        for child in process.children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]


def kill_a_worker_after(checkpoint: Path) -> None:
    """Kill a training worker the hard way as soon as the checkpoint is there."""
    while not checkpoint.exists():
        time.sleep(0.01)
    worker, *_ = workers_below(psutil.Process())
    worker.kill()


def test_a_killed_worker_costs_no_step(straight: TrainSummary, workspace: Path) -> None:
    from mlflow import MlflowClient

    checkpoints = workspace / "killed" / "checkpoints"
    killer = threading.Thread(target=kill_a_worker_after, args=[checkpoints / "step-00000005"])
    killer.start()
    steps = 60  # enough of them that the run is still going when the worker dies
    summary = train(workspace, "killed", f"run.steps={steps}", "checkpoint.keep=99")
    killer.join()
    first = steps - len(summary.losses)  # step of the checkpoint that the new workers took over
    assert (summary.status, first % 5) == ("finished", 0)
    assert 5 <= first < STEPS
    assert summary.losses[: STEPS - first] == straight.losses[first:]
    client = MlflowClient(f"sqlite:///{workspace / 'mlruns.db'}")
    logged = [point.step for point in client.get_metric_history(summary.run_id, "train/loss")]
    assert sorted(logged) == list(range(1, steps + 1))  # none is missing, none is there twice
    assert client.get_run(summary.run_id).info.status == "FINISHED"


def has_ended(process: psutil.Process) -> bool:
    """Whether a process that need not be a child of this one is gone, or waits to be collected."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_driver_of_an_elastic_run_takes_its_workers_along_and_costs_no_step(
    straight: TrainSummary, workspace: Path
) -> None:
    from mlflow import MlflowClient

    steps, run_dir = 60, workspace / "driverless"
    elastic = [f"run.steps={steps}", "checkpoint.keep=99", "engine.kind=ddp"]
    elastic += ["scaling.workers=2", "scaling.min_workers=1"]
    with started(workspace, "driverless", *elastic) as driver:
        assert driver.stdout is not None
        output = ""
        for line in driver.stdout:
            output += line
            if "step 8/" in line:
                workers = workers_below(psutil.Process(driver.pid))
                driver.kill()
    assert driver.returncode == -signal.SIGKILL, output
    assert len(workers) == 2
    ended_by = time.monotonic() + 30
    while not all(map(has_ended, workers)):
        assert time.monotonic() < ended_by, "the workers of the dead driver go on"
        time.sleep(0.1)

    run_id = json.loads((run_dir / "run.json").read_text())["tracking_run"]
    kept = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    before = {step: values["train/loss"] for step, _, values in kept if "train/loss" in values}
    assert 8 <= max(before) < steps
    # The workers may have gone on for a moment; the steps after this checkpoint are done again.
    for newer in (run_dir / "checkpoints").glob("step-*"):
        if newer.name > "step-00000005":
            shutil.rmtree(newer)
    resumed = train(workspace, "driverless", *elastic)
    assert (resumed.status, resumed.run_id) == ("finished", run_id)
    after = dict(enumerate(resumed.losses, 6))
    assert list(after) == list(range(6, steps + 1))
    again = before.keys() & after.keys()
    assert {6, 7, 8} <= again and all(after[step] == before[step] for step in again)
    client = MlflowClient(f"sqlite:///{workspace / 'mlruns.db'}")
    assert client.get_run(run_id).info.status == "FINISHED"
    logged = client.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in logged) == list(range(1, steps + 1))
    assert {point.step: point.value for point in logged} == before | after


def test_the_data_set_is_encoded_once(straight: TrainSummary, workspace: Path) -> None:
    (folder,) = (workspace / "shards.latents").iterdir()
    records = [json.loads(p.read_text()) for p in folder.glob("*.json") if p.name != "encoder.json"]
    assert sum(len(record["samples"]) for record in records) == NUM_SAMPLES


def test_an_encoders_bad_input_is_told_in_one_sentence(ray_here: None, workspace: Path) -> None:
    base = Path(shutil.copytree(workspace / "base", workspace / "without text encoder"))
    (base / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights here .*text_encoder"):
        encode_shards(workspace / "shards", base, workspace / "latents")


def test_a_workers_bad_input_is_told_in_one_sentence(
    straight: TrainSummary, workspace: Path
) -> None:
    (folder,) = (workspace / "shards.latents").iterdir()
    tars = {path: path.read_bytes() for path in folder.glob("*.tar")}
    try:
        for path, content in tars.items():
            path.write_bytes(bytes([content[700] ^ 1]).join((content[:700], content[701:])))
        with pytest.raises(InputError, match="differ from the index"):
            train(workspace, "damaged", "scaling.max_failures=-1")  # it would never end
    finally:
        for path, content in tars.items():
            path.write_bytes(content)
