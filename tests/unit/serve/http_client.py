"""What tests of the HTTP API say to it, and stand-ins for the models behind it."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from fastapi.testclient import TestClient

from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.serve.assets import BUNDLE, MESH, AssetStore
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


def refusal(response: httpx.Response, status: int = 422) -> tuple[str, str]:
    assert response.status_code == status, response.text
    (problem,) = response.json()["problems"]
    assert problem["field"] in response.json()["error"]
    return problem["field"], problem["problem"]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
