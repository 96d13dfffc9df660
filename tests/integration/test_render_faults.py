"""A render job that loses processes, a node and its driver, and runs out of disk."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_train.data.render import render_source
from kiss3d_train.data.rendering.schedule import task_options
from kiss3d_train.ray_session import ray_session

_COUNT = 30
_JOB = (
    "import sys; from pathlib import Path; from kiss3d_train.data.render import render_source; "
    f"print(render_source('toybox:{_COUNT}', Path(sys.argv[1]), tile=128))"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core, one with a GPU by its word; this process and its jobs find them."""
    # A process reads the token once: that of an earlier session, and of later ones, is this one's.
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        nodes.add_node(num_cpus=1, num_gpus=1)  # for Ray's accounts only
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield nodes
        nodes.shutdown()


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _num_samples(out: Path) -> int:
    return len(list(out.glob("[!.]*.json")))


def _kill_one(words: str) -> None:
    """Kill -9 one of the processes that this one started whose command line holds the words."""
    for process in psutil.Process().children(recursive=True):
        if words in " ".join(process.cmdline())[:200]:
            process.kill()
            return
    raise AssertionError(f"no {words} runs")


def _check_samples(out: Path, count: int) -> None:
    names = {f"toybox-0-{index:07d}" for index in range(count)}
    assert {path.stem for path in out.glob("*.json")} == names
    assert {path.name for path in out.glob("*.png")} == {f"{name}.bundle.png" for name in names}
    assert not [path.name for path in out.iterdir() if "partial" in path.name]
    for name in names:
        meta = json.loads((out / f"{name}.json").read_bytes())
        assert meta["bundle_sha256"] == sha256_of(out / f"{name}.bundle.png")
    assert (out / "quarantine.jsonl").read_text() == ""


@pytest.mark.usefixtures("cluster")
def test_a_process_on_a_gpu_renders_mesh_after_mesh() -> None:
    def process_id() -> int:
        return os.getpid()

    with ray_session():
        task = ray.remote(**task_options(share=0.5))(process_id)
        # Ray may have started some ahead, and take them in turn; but never one for each mesh.
        assert len({ray.get(task.remote()) for _ in range(8)}) < 8


def test_a_job_survives_its_workers_and_a_node_and_resumes_without_its_driver(
    cluster: Cluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = subprocess.Popen([sys.executable, "-c", _JOB, str(out)])
    for count, kill in (
        (2, lambda: _kill_one("-m kiss3d_train.data.rendering.child")),
        (4, lambda: _kill_one("ray::render_watched")),
        (6, lambda: cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)),
        (10, driver.kill),
    ):
        _until(lambda wanted=count: _num_samples(out) >= wanted or driver.poll() is not None)
        assert driver.poll() is None
        kill()
    assert driver.wait() == -signal.SIGKILL
    assert 10 <= _num_samples(out) < _COUNT
    summary = render_source(f"toybox:{_COUNT}", out, tile=128)
    assert summary.kept >= 10 and summary.quarantined == 0
    assert summary.kept + summary.rendered == _COUNT
    _check_samples(out, _COUNT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_a_job_which_goes_on_when_there_is_space(
    cluster: Cluster, small_disk: Path
) -> None:
    out = small_disk / "out"
    with ray_session():
        with pytest.raises(InputError, match="No space left"):
            render_source("toybox:12", out, tile=128)
        whole = _num_samples(out)
        assert 1 <= whole < 12
        assert not [path.name for path in out.iterdir() if "partial" in path.name]
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        assert render_source("toybox:12", out, tile=128).rendered == 12 - whole
    _check_samples(out, 12)
