from fastapi.testclient import TestClient
from http_client import GLB, TEXT, Engines, refusal, submit, until

from kiss3d_infer.serve.assets import BUNDLE, AssetStore
from kiss3d_infer.serve.config import ServeConfig
from kiss3d_infer.serve.dispatch import Dispatcher
from kiss3d_infer.serve.ingress import create_app
from kiss3d_infer.serve.store import TaskStore


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


def test_without_a_generator_prompts_are_refused(
    config: ServeConfig, store: TaskStore, engines: Engines, assets: AssetStore
) -> None:
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
