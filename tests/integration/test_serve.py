"""The server as a user starts it: a process of its own, spoken to over HTTP."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import trimesh
import yaml

from kiss3d_infer.bundle import encode_image, load_bundle
from kiss3d_infer.flux.base import create_random_base
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle
from kiss3d_infer.serve.store import TaskStore

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from kiss3d_train.cli import main; main()", "serve"]
START_SECONDS = 180
TASK_SECONDS = 120


@dataclass
class Server:
    process: subprocess.Popen[str]
    config: Path
    client: httpx.Client

    def submit(self, **content: Any) -> dict[str, Any]:
        response = self.client.post("/v1/tasks", json=content)
        assert response.status_code == 202, response.text
        task: dict[str, Any] = response.json()
        return task

    def finished(self, task_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + TASK_SECONDS
        while time.monotonic() < deadline:
            task: dict[str, Any] = self.client.get(f"/v1/tasks/{task_id}").json()
            if task["finished"]:
                return task
            time.sleep(0.2)
        raise AssertionError(f"unfinished: {task}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    base = create_random_base(ROOT / "configs/models/tiny", folder / "base", seed=0)
    port = _free_port()
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(_recipe(folder, base, port)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with _started(config, env=environment) as process:
        try:
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
            _wait_until_healthy(process, client)
            yield Server(process, config, client)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@contextmanager
def _started(config: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A server that does not outlive the block, whatever fails in it."""
    with subprocess.Popen([*COMMAND, str(config)], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def _recipe(folder: Path, base: Path, port: int) -> dict[str, Any]:
    few_steps = {"coarse_steps": 30, "fine_steps": 10, "num_faces": 2000, "texture_size": 256}
    return {
        "data": str(folder / "data"),
        "http": {"port": port},
        "queue": {"drain_seconds": 600},
        "generator": {"base": str(base), "tile": 64, "steps": 2, "num_cpus": 0.5},
        "reconstructor": {"settings": few_steps, "num_cpus": 0.5},
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(process: subprocess.Popen[str], client: httpx.Client) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended while it started"
        try:
            if client.get("/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise AssertionError("the server did not start")


def _mushroom() -> Mesh:
    stem = trimesh.creation.cylinder(0.25, 1.0, sections=32)
    stem.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], [0, 1, 0]))
    cap = trimesh.creation.icosphere(3, 0.6).apply_scale((1, 0.7, 1)).apply_translation((0, 0.5, 0))
    parts = [
        Mesh(
            torch.tensor(part.vertices, dtype=torch.float32),
            torch.tensor(part.faces, dtype=torch.int32),
            vertex_colors=torch.tensor(color).expand(len(part.vertices), 3),
        )
        for part, color in ((stem, (0.9, 0.85, 0.7)), (cap, (0.8, 0.1, 0.1)))
    ]
    return Mesh.concatenated(parts).normalized()


@pytest.fixture(scope="module")
def rendered() -> str:
    return base64.b64encode(encode_image(render_bundle(_mushroom(), tile=128), "png")).decode()


def test_a_rendered_bundle_becomes_a_textured_mesh(server: Server, rendered: str) -> None:
    task = server.finished(server.submit(type="bundle_to_mesh", bundle=rendered)["id"])
    assert task["status"] == "succeeded", task["error"]
    assert task["result"]["measurements"]["silhouette_iou"] > 0.9
    glb = server.client.get(task["links"]["mesh"])
    assert glb.headers["Content-Type"] == "model/gltf-binary"
    mesh = trimesh.load(io.BytesIO(glb.content), file_type="glb", force="mesh")
    assert 500 < len(mesh.faces) < 5000
    assert mesh.visual.uv is not None
    # The mushroom stands upright and is as wide as its cap.
    assert mesh.extents == pytest.approx(_mushroom_extents(), rel=0.1)
    again = server.submit(type="bundle_to_mesh", bundle_of=task["id"], settings={"init": "hull"})
    assert server.finished(again["id"])["status"] == "succeeded"


def _mushroom_extents() -> list[float]:
    vertices = _mushroom().vertices
    extents: list[float] = (vertices.amax(0) - vertices.amin(0)).tolist()
    return extents


def test_noise_from_an_untrained_model_fails_validation_and_keeps_its_bundle(
    server: Server,
) -> None:
    task = server.finished(server.submit(type="text_to_3d", prompt="a red chair")["id"])
    assert (task["status"], task["stage"]) == ("failed", "validate")
    assert task["error"].startswith("the bundle fails validation: ")
    assert "mesh" not in task["links"]
    bundle = load_bundle(server.client.get(task["links"]["bundle"]).content)
    assert bundle.tile == 64


def test_a_wrong_field_and_an_unknown_task_are_refused(server: Server) -> None:
    wrong = server.client.post(
        "/v1/tasks", json={"type": "text_to_3d", "prompt": "a chair", "step": 3}
    )
    assert wrong.status_code == 422
    assert wrong.json()["error"] == "step: unknown field; did you mean 'steps'?"
    assert server.client.get("/v1/tasks/" + "0" * 32).status_code == 404


def test_a_second_server_on_the_same_port_is_refused_at_once(server: Server) -> None:
    second = subprocess.run([*COMMAND, str(server.config)], capture_output=True, text=True)
    assert second.returncode == 2
    assert f"port {server.client.base_url.port} is in use" in second.stderr
    assert second.stdout == ""


def test_ctrl_c_while_the_models_load_is_no_success(server: Server, tmp_path: Path) -> None:
    config = yaml.safe_load(server.config.read_text())
    config |= {"data": str(tmp_path), "http": {"port": _free_port()}}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with _started(path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while "Loading" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) not in (0, 2)


def test_ctrl_c_twice_puts_a_running_task_back_unharmed(server: Server) -> None:
    """The last test of this file: it stops the server."""
    task = server.submit(type="text_to_3d", prompt="a red chair", steps=100, tile=512)
    while server.client.get(task["links"]["self"]).json()["status"] != "running":
        time.sleep(0.1)
    server.process.send_signal(signal.SIGINT)
    while server.client.get("/healthz").status_code != 503:
        time.sleep(0.1)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    store = TaskStore(server.config.parent / "data" / "tasks.sqlite3")
    assert store.recover() == []
    after = store.get(task["id"])
    assert after and after.status == "queued"
