import asyncio
import base64
import io
import json
import re
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from kiss3d_infer.bundle import Bundle, BundleLayout, encode_image, load_bundle
from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.serve.assets import BUNDLE, MESH, AssetStore
from kiss3d_infer.serve.config import GeneratorConfig, HttpConfig, QueueConfig, ServeConfig
from kiss3d_infer.serve.dispatch import Dispatcher
from kiss3d_infer.serve.ingress import create_app
from kiss3d_infer.serve.stages import StageResult, run_stage
from kiss3d_infer.serve.store import Task, TaskStore

GLB = b"glTF" + bytes(100)
TEXT = {"type": "text_to_3d", "prompt": "a red chair"}


class Engines:
    """Stand-ins for the two models: they write a file, or wait at a gate between two steps."""

    def __init__(self, store: TaskStore, assets: AssetStore) -> None:
        self._store, self._assets = store, assets
        self.gate = threading.Event()
        self.gate.set()

    async def generate(self, task: Task) -> StageResult:
        return await asyncio.to_thread(run_stage, self._store, task, self._writes(BUNDLE))

    async def mesh(self, task: Task) -> StageResult:
        return await asyncio.to_thread(run_stage, self._store, task, self._writes(MESH))

    def _writes(self, name: str) -> Callable[[Task, ProgressFn], StageResult]:
        def work(task: Task, report: ProgressFn) -> StageResult:
            report(name, 0.5)
            self.gate.wait(10)
            report(name, 0.9)
            path = self._assets.path(task.id, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(GLB if name == MESH else b"png")
            return StageResult({"iou": 0.99}, {"fit": 1.5})

        return work


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return ServeConfig(
        data=tmp_path,
        http=HttpConfig(max_body_mib=1),
        queue=QueueConfig(max_queued=2),
        generator=GeneratorConfig(base=tmp_path, tile=128),
    )


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return TaskStore(tmp_path / "tasks.sqlite3")


@pytest.fixture
def engines(tmp_path: Path, store: TaskStore) -> Engines:
    return Engines(store, AssetStore(tmp_path / "assets"))


@pytest.fixture
def client(
    config: ServeConfig, store: TaskStore, engines: Engines, tmp_path: Path
) -> Iterator[TestClient]:
    assets = AssetStore(tmp_path / "assets")
    work = {"generate": engines.generate, "mesh": engines.mesh}
    dispatcher = Dispatcher(store, assets, work, 1, config.queue)
    app = create_app(config, store, assets, dispatcher)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
        engines.gate.set()


def submit(client: TestClient, **content: Any) -> dict[str, Any]:
    response = client.post("/v1/tasks", json=content)
    assert response.status_code == 202, response.text
    task: dict[str, Any] = response.json()
    return task


def until(client: TestClient, task_id: str, *statuses: str) -> dict[str, Any]:
    for _ in range(1000):
        task: dict[str, Any] = client.get(f"/v1/tasks/{task_id}").json()
        if task["status"] in statuses:
            return task
        time.sleep(0.01)
    raise AssertionError(f"still {task['status']}, wanted {statuses}")


def sphere_bundle(tile: int = 64) -> Bundle:
    """A grey ball seen from four sides."""
    axis = (torch.arange(tile) + 0.5) / tile * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    inside = (x**2 + y**2 < 0.6).float()
    facing = torch.stack([x, y, (1 - x**2 - y**2).clamp(min=0).sqrt()]) / 0.8
    alpha = inside.expand(4, 1, tile, tile)
    normals = torch.nn.functional.normalize(facing, dim=0).expand(4, 3, tile, tile)
    return Bundle.from_views(torch.full((4, 3, tile, tile), 0.5), normals, alpha)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(width: int, height: int, color: str = "white", image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, image_format)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(chunk: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    png = picture(512, 256, "red")
    return png[:_IHDR_END] + chunk + png[_IHDR_END:]


def layout_in_exif(layout: BundleLayout) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = layout.model_dump_json()
    return exif.tobytes().removeprefix(b"Exif\0\0")


_IHDR_END = 33
INFLATING = b"name\0\0" + zlib.compress(bytes(2 * 2**20))
BOMB = picture(1, 1)[:8] + png_chunk(b"IHDR", struct.pack(">2L5B", 40_000, 20_000, 8, 2, 0, 0, 0))
BOMB += png_chunk(b"IDAT", b"")
THREE_VIEWS = layout_in_exif(BundleLayout(azimuths=(0, 90, 180), elevations=(5, 5, 5)))
SHORT_HEADER = picture(512, 256)[:8] + png_chunk(b"IHDR", struct.pack(">I", 512))


def refusal(response: httpx.Response, status: int = 422) -> tuple[str, str]:
    assert response.status_code == status, response.text
    (problem,) = response.json()["problems"]
    assert problem["field"] in response.json()["error"]
    return problem["field"], problem["problem"]


def test_a_prompt_becomes_a_mesh_that_can_be_fetched(client: TestClient) -> None:
    response = client.post("/v1/tasks", json=TEXT)
    assert response.status_code == 202
    task = response.json()
    assert response.headers["Location"] == task["links"]["self"] == f"/v1/tasks/{task['id']}"
    assert task["request"]["tile"] == 128
    assert task["request"]["steps"] == 20
    done = until(client, task["id"], "succeeded", "failed")
    assert done["status"] == "succeeded"
    assert done["result"]["measurements"] == {"iou": 0.99}
    assert done["result"]["seconds"] == {"fit": 1.5}
    assert done["finished"] >= done["started"] >= done["created"]
    mesh = client.get(done["links"]["mesh"])
    assert mesh.content == GLB
    assert mesh.headers["Content-Type"] == "model/gltf-binary"
    assert mesh.headers["X-Content-Type-Options"] == "nosniff"
    assert client.get(done["links"]["bundle"]).headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_an_uploaded_bundle_is_stored_as_a_png_with_its_layout(
    client: TestClient, image_format: Any
) -> None:
    bundle = sphere_bundle()
    data = encode_image(bundle, image_format)
    task = submit(client, type="bundle_to_mesh", bundle=encoded(data))
    assert "bundle" not in task["request"]
    stored = load_bundle(client.get(task["links"]["bundle"]).content)
    assert stored.layout == bundle.layout
    assert torch.allclose(stored.image, bundle.image, atol=0.5 / 255)
    until(client, task["id"], "succeeded")


def test_an_earlier_bundle_can_be_meshed_again(client: TestClient) -> None:
    first = submit(client, **TEXT)
    until(client, first["id"], "succeeded")
    again = submit(client, type="bundle_to_mesh", bundle_of=first["id"])
    done = until(client, again["id"], "succeeded")
    assert client.get(done["links"]["bundle"]).content == b"png"


def test_progress_is_seen_while_a_task_runs(client: TestClient, engines: Engines) -> None:
    engines.gate.clear()
    task_id = submit(client, **TEXT)["id"]
    while (task := until(client, task_id, "running"))["stage"] != BUNDLE:
        pass
    assert task["progress"] == 0.5
    assert "mesh" not in task["links"]


def test_cancelling_a_running_task_stops_it_and_frees_the_engine(
    client: TestClient, engines: Engines
) -> None:
    engines.gate.clear()
    first, second = submit(client, **TEXT)["id"], submit(client, **TEXT)["id"]
    until(client, first, "running")
    assert client.delete(f"/v1/tasks/{first}").json()["status"] == "cancelled"
    assert client.delete(f"/v1/tasks/{first}").status_code == 200
    engines.gate.set()
    until(client, second, "succeeded")
    cancelled = client.get(f"/v1/tasks/{first}").json()
    assert cancelled["status"] == "cancelled"
    assert "mesh" not in cancelled["links"]


def test_a_finished_task_cannot_be_cancelled(client: TestClient) -> None:
    task_id = submit(client, **TEXT)["id"]
    until(client, task_id, "succeeded")
    response = client.delete(f"/v1/tasks/{task_id}")
    assert response.status_code == 409
    assert response.json()["error"] == "the task has succeeded already"


def test_a_full_queue_answers_429_with_retry_after(client: TestClient, engines: Engines) -> None:
    engines.gate.clear()
    until(client, submit(client, **TEXT)["id"], "running")
    submit(client, **TEXT)
    submit(client, **TEXT)
    response = client.post("/v1/tasks", json=TEXT)
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert response.json()["error"] == "2 tasks are waiting already"


def test_the_list_is_newest_first_and_filtered(client: TestClient) -> None:
    ids = [submit(client, **TEXT)["id"] for _ in range(2)]
    for task_id in ids:
        until(client, task_id, "succeeded")
    listed = client.get("/v1/tasks").json()["tasks"]
    assert [task["id"] for task in listed] == ids[::-1]
    assert client.get("/v1/tasks?status=failed").json() == {"tasks": []}
    assert client.get("/v1/tasks?limit=1").json()["tasks"] == listed[:1]
    field, problem = refusal(client.get("/v1/tasks?status=done"))
    assert (field, "'succeeded'" in problem) == ("status", True)


def test_an_unknown_field_is_named(client: TestClient) -> None:
    response = client.post("/v1/tasks", json=TEXT | {"promt": "x"})
    assert refusal(response) == ("promt", "unknown field; did you mean 'prompt'?")


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/tasks", content=b'{"type": ', headers=headers)
    assert refusal(response)[0] == "body"
    for content in (b'{"type": "\xff"}', b"[" * 100_000, b"9" * 5000):
        response = client.post("/v1/tasks", content=content, headers=headers)
        assert refusal(response) == ("body", "not valid JSON"), content[:20]


def test_json_without_its_content_type_is_explained(client: TestClient) -> None:
    explained = ("body", "must be a JSON object (send Content-Type: application/json)")
    for content, headers in (
        (json.dumps(TEXT), {}),
        (json.dumps(TEXT), {"Content-Type": "application/x-www-form-urlencoded"}),  # curl's default
        ("[]", {"Content-Type": "application/json"}),
        ("null", {"Content-Type": "application/json"}),
    ):
        response = client.post("/v1/tasks", content=content, headers=headers)
        assert refusal(response) == explained


def test_a_white_object_is_not_taken_for_nothing(client: TestClient) -> None:
    image = torch.ones(3, 64, 128)
    image[:, 40:56, :] = torch.tensor([0.5, 0.5, 1.0])[:, None, None]  # normals, on white RGB
    response = client.post(
        "/v1/tasks",
        json={"type": "bundle_to_mesh", "bundle": encoded(encode_image(Bundle(image), "png"))},
    )
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (picture(512, 256), "the bundle is empty: every view is white"),
        (picture(300, 300), "300x300 image is no 4x2 grid"),
        (picture(8192, 4096, "red"), "8192x4096: tiles may have 1024 pixels"),
        (picture(512, 256, image_format="BMP"), "no readable image"),
        (picture(512, 256)[:60], "no readable image"),
        (b"", "no readable image"),
        (with_chunk(png_chunk(b"zTXt", INFLATING)), "no readable image"),
        (with_chunk(png_chunk(b"iCCP", INFLATING)), "no readable image"),
        (with_chunk(png_chunk(b"eXIf", b"II*\0")), ""),
        (SHORT_HEADER, "no readable image"),
        (BOMB, "larger than 67108864 pixels"),
        (with_chunk(png_chunk(b"eXIf", THREE_VIEWS)), "3x2 grid .* 3 : 2, e.g. 1536x1024"),
    ],
    ids=[
        *("white", "wrong aspect", "too large", "bmp", "truncated", "nothing"),
        *("inflating text", "inflating profile", "short exif", "short header"),
        *("bomb", "wrong aspect for its layout"),
    ],
)
def test_an_unusable_bundle_is_refused_at_submission(
    client: TestClient, tmp_path: Path, data: bytes, words: str
) -> None:
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle": encoded(data)})
    field, problem = refusal(response)
    assert field == "bundle"
    assert re.search(words, problem)
    assert list((tmp_path / "assets").iterdir()) == []


def test_a_server_that_cannot_store_a_bundle_does_not_blame_the_client(
    client: TestClient, tmp_path: Path
) -> None:
    assets = tmp_path / "assets"
    assets.rmdir()
    assets.touch()
    data = encoded(encode_image(sphere_bundle(), "png"))
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle": data})
    assert response.status_code == 500
    assert response.json()["error"] == "internal error; the server's log tells more"


def test_a_bundle_whose_task_cannot_be_written_is_not_kept(
    client: TestClient, tmp_path: Path, store: TaskStore
) -> None:
    with sqlite3.connect(tmp_path / "tasks.sqlite3") as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT raise(FAIL, 'full'); END"
        )
    data = encoded(encode_image(sphere_bundle(), "png"))
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle": data})
    assert response.status_code == 500
    assert list((tmp_path / "assets").iterdir()) == []


def test_a_bundle_of_an_unknown_task_is_refused(client: TestClient) -> None:
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle_of": "0" * 32})
    assert refusal(response) == ("bundle_of", "no task of this id has a bundle")


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_beyond_the_limit_is_refused(client: TestClient, declared: bool) -> None:
    data = b"x" * (2**20 + 1)
    content: Any = data if declared else (data[i : i + 4096] for i in range(0, len(data), 4096))
    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/tasks", content=content, headers=headers)
    assert response.status_code == 413
    assert response.json()["error"] == "the request is larger than 1 MiB"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks/nope",
        "/v1/tasks/" + "0" * 32,
        "/v1/assets/" + "0" * 32 + "/asset.glb",
        "/v1/assets/" + "0" * 32 + "/tasks.sqlite3",
        "/v1/assets/..%2f..%2f/tasks.sqlite3",
        "/v1/assets/%2e%2e/tasks.sqlite3",
        "/nothing",
    ],
)
def test_what_does_not_exist_is_404_in_the_common_form(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert set(response.json()) == {"error", "problems"}


def test_a_method_that_an_address_does_not_take_is_405_in_the_common_form(
    client: TestClient,
) -> None:
    response = client.put("/v1/tasks")
    assert response.status_code == 405
    assert set(response.json()) == {"error", "problems"}


def test_without_a_generator_prompts_are_refused(
    config: ServeConfig, store: TaskStore, engines: Engines, tmp_path: Path
) -> None:
    assets = AssetStore(tmp_path / "assets")
    dispatcher = Dispatcher(store, assets, {"mesh": engines.mesh}, 1, config.queue)
    meshes_only = config.model_copy(update={"generator": None})
    with TestClient(create_app(meshes_only, store, assets, dispatcher)) as client:
        assert client.get("/healthz").json()["types"] == ["bundle_to_mesh"]
        response = client.post("/v1/tasks", json=TEXT)
        assert refusal(response) == ("type", "this server has no generator: send bundle_to_mesh")


def test_health_tells_how_busy_the_server_is(client: TestClient) -> None:
    health = client.get("/healthz")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert health.json()["tasks"]["queued"] == 0
    assert health.json()["max_queued"] == 2


def test_the_published_description_names_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/tasks",
        "/v1/tasks/{task_id}",
        "/v1/assets/{task_id}/{name}",
        "/healthz",
    }
