from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from http_client import Engines

from kiss3d_infer.serve.assets import AssetStore
from kiss3d_infer.serve.config import GeneratorConfig, HttpConfig, QueueConfig, ServeConfig
from kiss3d_infer.serve.dispatch import Dispatcher
from kiss3d_infer.serve.ingress import create_app
from kiss3d_infer.serve.store import TaskStore


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return TaskStore(tmp_path / "tasks.sqlite3")


@pytest.fixture
def assets(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path / "assets")


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return ServeConfig(
        data=tmp_path,
        http=HttpConfig(max_body_mib=1),
        queue=QueueConfig(max_queued=2),
        generator=GeneratorConfig(base=str(tmp_path), tile=128),
    )


@pytest.fixture
def engines(store: TaskStore, assets: AssetStore) -> Engines:
    return Engines(store, assets)


@pytest.fixture
def client(
    config: ServeConfig, store: TaskStore, engines: Engines, assets: AssetStore
) -> Iterator[TestClient]:
    """Of a server whose models are `engines`."""
    work = {"generate": engines.generate, "mesh": engines.mesh}
    dispatcher = Dispatcher(store, assets, work, 1, config.queue)
    app = create_app(config, store, assets, dispatcher)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
        engines.gate.set()
