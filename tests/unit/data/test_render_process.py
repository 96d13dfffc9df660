"""The process that renders, with meshes that hang, eat memory and crash."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from pydantic import TypeAdapter

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.export import save_mesh
from kiss3d_train.data.rendering import process
from kiss3d_train.data.rendering.process import render_watched
from kiss3d_train.data.rendering.sample import RenderJob, RenderRequest
from kiss3d_train.data.rendering.settings import RenderLimits
from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import make

_QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 1\nv 0 1 1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
_SIDE = 9000


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good mesh, one that never ends, one of 80 million texels."""
    folder = tmp_path_factory.mktemp("meshes")
    save_mesh(make(0).mesh(), folder / "good.ply")
    os.mkfifo(folder / "hangs.obj")
    text = f"mtllib heavy.mtl\nusemtl m\n{_QUAD}f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"
    (folder / "heavy.obj").write_text(text)
    (folder / "heavy.mtl").write_text("newmtl m\nmap_Kd heavy.png\n")
    Image.new("RGB", (_SIDE, _SIDE)).save(folder / "heavy.png", compress_level=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _end_children() -> Iterator[None]:
    yield
    while process._children:
        process._children.popitem()[1].close()


def _request(folder: Path, name: str, out: Path, **limits: float) -> str:
    job = RenderJob(str(folder), out, 32, PUBLISHED, limits=RenderLimits(**limits))
    (item,) = [item for item in open_source(str(folder)).items() if item.locator == name]
    return TypeAdapter(RenderRequest).dump_json(RenderRequest(job, item)).decode()


def _names(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in folder.iterdir())


def test_a_mesh_that_hangs_is_ended_and_the_next_one_is_rendered(
    meshes: Path, tmp_path: Path
) -> None:
    record = render_watched(_request(meshes, "hangs.obj", tmp_path, seconds=0.3))
    assert record is not None
    assert record["reason"] == "it took longer than 0.3 s" and record["locator"] == "hangs.obj"
    assert render_watched(_request(meshes, "good.ply", tmp_path)) is None
    assert _names(tmp_path) == ["bundle.png", "json"]


def test_a_mesh_that_takes_too_much_memory_is_ended(meshes: Path, tmp_path: Path) -> None:
    record = render_watched(_request(meshes, "heavy.obj", tmp_path, memory_gib=0.6))
    assert record is not None and record["reason"] == "it took more than 0.6 GiB of memory"
    assert _names(tmp_path) == []


def test_a_process_that_is_killed_gets_one_more_try(meshes: Path, tmp_path: Path) -> None:
    assert render_watched(_request(meshes, "good.ply", tmp_path)) is None
    done = threading.Event()

    def kill_what_renders() -> None:
        while not done.wait(0.2):
            for child in process._children.values():  # those that have started
                if child.is_alive:
                    os.kill(child.pid, signal.SIGSEGV)

    killer = threading.Thread(target=kill_what_renders)
    killer.start()
    try:
        record = render_watched(_request(meshes, "hangs.obj", tmp_path))
    finally:
        done.set()
        killer.join()
    assert record is not None
    assert record["reason"] == "it crashed twice (SIGSEGV, then SIGSEGV)"


def test_a_process_that_cannot_start_is_no_fault_of_the_mesh() -> None:
    with pytest.raises(RuntimeError, match="Invalid device string"):
        process._child("no such device")


def test_a_full_disk_leaves_nothing_and_is_no_fault_of_the_mesh(
    meshes: Path, tmp_path: Path
) -> None:
    request = _request(meshes, "good.ply", tmp_path)
    assert render_watched(request) is None
    pid = process._child("cpu").pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, before[1]))
    with pytest.raises(InputError, match="the disk is full"):
        render_watched(request)
    # The picture from before still stands; without its description it is no sample.
    assert _names(tmp_path) == ["bundle.png"]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert render_watched(request) is None
    assert _names(tmp_path) == ["bundle.png", "json"]


def _until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_it_ends_with_its_parent_even_while_it_hangs(meshes: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from kiss3d_train.data.rendering.process import render_watched; "
        "render_watched(sys.argv[1])"
    )
    request = _request(meshes, "hangs.obj", tmp_path)
    parent = subprocess.Popen([sys.executable, "-c", script, request])
    try:
        (child,) = _until(psutil.Process(parent.pid).children)
        parent.kill()
        parent.wait()
        _until(lambda: not psutil.pid_exists(child.pid) or child.status() == "zombie")
    finally:
        parent.kill()


def test_the_watching_side_stays_light() -> None:
    script = (
        "import sys, json, kiss3d_train.data.rendering.process; "
        "print(json.dumps([name for name in ('torch', 'numpy', 'ray') if name in sys.modules]))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert json.loads(output.stdout) == []
