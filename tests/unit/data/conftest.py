import gzip
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from sample_folder import copied_samples

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.scene.export import save_mesh
from kiss3d_train.data.render import RenderJob, render_item
from kiss3d_train.data.sources import objaverse_v1, open_source
from kiss3d_train.data.sources.toybox import make

NUM_SAMPLES = 14


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 rendered toybox samples with 24-pixel tiles."""
    out = tmp_path_factory.mktemp("rendered")
    job = RenderJob(f"toybox:{NUM_SAMPLES}", out, 24, PUBLISHED)
    for item in open_source(job.spec).items():
        assert render_item(job, item) is None
    return out


HUB = "https://huggingface.co/datasets/allenai/objaverse/resolve/main/"
UIDS = ("0" * 32, "1" * 32, "2" * 32)
ANNOTATION = {
    "uid": UIDS[0],
    "name": "Oak Chair",
    "license": "by-nc",
    "user": {"username": "ada", "displayName": "Ada L."},
    "tags": [{"name": "seat", "slug": "seat", "uri": ""}],
    "categories": [{"name": "furniture-home"}, {"name": "art-abstract"}],
    "faceCount": 12,
}


def _fill_objaverse(folder: Path) -> None:
    """Lay a folder out as the package's cache, and as the data set itself, is."""
    paths = {uid: f"glbs/000-00{number // 2}/{uid}.glb" for number, uid in enumerate(UIDS)}
    for number, path in enumerate(paths.values()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save_mesh(make(number).mesh(), folder / path)
    metadata = {"000-000": {UIDS[0]: ANNOTATION, UIDS[1]: {"license": "cc0"}}, "000-001": {}}
    _write(folder / "object-paths.json.gz", paths)
    for name, annotations in metadata.items():
        _write(folder / f"metadata/{name}.json.gz", annotations)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(content, file)


@pytest.fixture
def empty_objaverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's cache, empty, and no network."""
    package = pytest.importorskip("objaverse")
    cache = tmp_path / ".objaverse"

    def offline(url: str, *_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(package, "BASE_PATH", str(cache))
    monkeypatch.setattr(package, "_VERSIONED_PATH", str(cache / "hf-objaverse-v1"))
    monkeypatch.setattr(package, "_load_object_paths", package._load_object_paths)
    monkeypatch.setattr(urllib.request, "urlretrieve", offline)
    objaverse_v1.package.cache_clear()
    objaverse_v1._annotations.cache_clear()
    return cache / "hf-objaverse-v1"


@pytest.fixture
def objaverse(empty_objaverse: Path) -> Path:
    _fill_objaverse(empty_objaverse)
    return empty_objaverse


@pytest.fixture
def hub(empty_objaverse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network that holds the data set; the names of the files asked for."""
    _fill_objaverse(tmp_path / "hub")
    asked: list[str] = []

    def retrieve(url: str, target: str) -> None:
        asked.append(url.removeprefix(HUB))
        shutil.copy(tmp_path / "hub" / asked[-1], target)

    monkeypatch.setattr(urllib.request, "urlretrieve", retrieve)
    return asked


@pytest.fixture
def samples(rendered: Path, tmp_path: Path) -> Path:
    """A folder of four rendered samples, none of which has an exact caption."""
    return copied_samples(rendered, tmp_path / "samples")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[None]:
    """An S3 server in this process, with a bucket called `bucket`."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir("bucket")
        yield
        S3FileSystem.clear_instance_cache()
        server.stop()
