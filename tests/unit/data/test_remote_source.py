import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
import trimesh
from PIL import Image

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.load import load_mesh
from kiss3d_train.data.render import RenderJob, render_item
from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import make

OBJ = """mtllib my chair.mtl
v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1
vt 0 0\nvt 1 0\nvt 0 1
usemtl oak
f 1/1 2/2 3/3\nf 1/1 3/3 4/2
"""
MTL = "newmtl oak\nmap_Kd textures/oak.png\n"


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """A toy as GLB with a sidecar, and an OBJ with its material and texture in subfolders."""
    folder = tmp_path / "meshes"
    (folder / "chairs/textures").mkdir(parents=True)
    save_mesh(make(0).mesh(), folder / "toy.glb")
    sidecar = {"caption": "a toy", "licence": "CC0-1.0", "author": "Ada"}
    (folder / "toy.json").write_text(json.dumps(sidecar))
    (folder / "chairs/oak.obj").write_text(OBJ)
    (folder / "chairs/my chair.mtl").write_text(MTL)
    Image.new("RGB", (2, 2), (255, 0, 0)).save(folder / "chairs/textures/oak.png")
    (folder / "chairs/textures/notes.txt").write_text("nobody asks for it")
    return folder


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, meshes: Path) -> Iterator[str]:
    """The same meshes below a prefix of a store."""
    if request.param == "file":
        yield f"file://{meshes}"
        return
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    address = {"memory": "memory://bucket/meshes", "s3": "s3://bucket/meshes"}[request.param]
    store, root = fsspec.url_to_fs(address)
    store.makedirs("bucket" if request.param == "s3" else root, exist_ok=True)
    store.put(f"{meshes}/", f"{root}/", recursive=True)
    store.pipe_file(f"{root}-of-others/stray.glb", b"")
    yield address
    store.rm(root, recursive=True)
    store.rm(f"{root}-of-others", recursive=True)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_meshes_come_with_their_textures_and_sidecars(url: str, meshes: Path) -> None:
    source = open_source(url)
    oak, toy = (source.describe(item) for item in source.items())
    assert (oak.uid, oak.name, oak.category) == ("chairs/oak.obj", "oak", "chairs")
    assert (toy.uid, toy.caption, toy.licence, toy.author) == ("toy.glb", "a toy", "CC0-1.0", "Ada")
    assert oak.source == toy.source == url
    assert oak.sha256 == sha256_of(meshes / "chairs/oak.obj")
    assert toy.sha256 == sha256_of(meshes / "toy.glb")
    mesh = source.load(oak)
    assert mesh.materials[0].texture is not None
    assert mesh.materials[0].texture[0, 0].tolist() == [1, 0, 0]
    assert torch.equal(source.load(toy).vertices, load_mesh(meshes / "toy.glb").vertices)


def test_a_gltf_comes_with_its_buffers(tmp_path: Path) -> None:
    for name, data in trimesh.creation.box().export(file_type="gltf").items():
        (tmp_path / name).write_bytes(data)
    assert list(tmp_path.glob("*.bin"))
    source = open_source(f"file://{tmp_path}")
    (item,) = source.items()
    assert len(source.load(item).faces) == 12


def test_one_listing_is_all_that_items_ask_for(meshes: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{meshes}/", "/listed/", recursive=True)
    source = open_source("memory://listed")
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("info", "cat_file", "open", "exists", "get_file"):
            patch.setattr(memory, verb, lambda *_, **__: pytest.fail("a request for one file"))
        items = source.items()
        assert [source.fingerprint(item) for item in items] == [
            source.fingerprint(item) for item in source.items()
        ]
    memory.rm("/listed", recursive=True)


@pytest.mark.parametrize(
    ("edited", "changes"),
    [
        ("toy.glb", {"toy.glb"}),
        ("toy.json", {"toy.glb"}),
        ("chairs/textures/oak.png", {"chairs/oak.obj"}),
        ("other.glb", set()),
    ],
)
def test_a_fingerprint_tells_what_the_listing_tells(
    meshes: Path, edited: str, changes: set[str]
) -> None:
    def fingerprints() -> dict[str, str]:
        source = open_source(f"file://{meshes}")
        return {item.uid: source.fingerprint(item) for item in source.items()}

    before = fingerprints()
    (meshes / edited).write_bytes(b"something else")
    after = fingerprints()
    assert {uid for uid in before if after[uid] != before[uid]} == changes


def test_one_mesh_is_held_at_a_time_and_none_once_it_is_loaded(
    meshes: Path, temporary: Path
) -> None:
    source = open_source(f"file://{meshes}")
    oak, toy = source.items()
    source.describe(toy)
    source.describe(oak)
    held = {path.name for path in temporary.rglob("*") if path.is_file()}
    assert held == {"oak.obj", "my chair.mtl", "oak.png"}
    source.load(oak)
    assert not list(temporary.iterdir())


def test_a_mesh_with_too_many_bytes_is_refused(
    meshes: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiss3d_train.data.sources.remote.MAX_MODEL_BYTES", len(OBJ) + 10)
    source = open_source(f"file://{meshes}")
    with pytest.raises(InputError, match="too large"):
        source.load(source.items()[0])
    assert not list(temporary.iterdir())


def test_nothing_is_fetched_from_outside_the_meshs_folder(meshes: Path, temporary: Path) -> None:
    (meshes / "secret.mtl").write_text(MTL)
    (meshes / "chairs/oak.obj").write_text(OBJ.replace("my chair.mtl", "../secret.mtl"))
    source = open_source(f"file://{meshes}")
    source.describe(source.items()[0])
    assert [path.name for path in temporary.rglob("*.*")] == ["oak.obj"]


def test_a_store_that_fails_is_not_taken_for_one_without_the_texture(
    meshes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = type(fsspec.filesystem("file"))
    read = store.cat_file

    def failing(self: object, path: str, **options: object) -> bytes:
        if path.endswith(".png"):
            raise ConnectionError("reset by peer")
        data: bytes = read(self, path, **options)
        return data

    monkeypatch.setattr(store, "cat_file", failing)
    source = open_source(f"file://{meshes}")
    with pytest.raises(InputError, match="reset by peer"):
        source.load(source.items()[0])


def test_what_cannot_be_used_is_quarantined_and_the_rest_rendered(
    meshes: Path, tmp_path: Path, temporary: Path
) -> None:
    (meshes / "set.sh3f").write_bytes(b"a library")
    (meshes / "toy.json").write_text('{"caption": 3}')
    job = RenderJob(f"file://{meshes}", tmp_path / "out", 32, PUBLISHED)
    items = open_source(job.spec).items()
    (meshes / "gone.ply").write_bytes(b"")
    items = [*items, *(i for i in open_source(job.spec).items() if i.uid == "gone.ply")]
    (meshes / "gone.ply").unlink()
    records = {item.uid: render_item(job, item) for item in items}
    assert records.pop("chairs/oak.obj") is None
    reasons = {uid: record["reason"] for uid, record in records.items() if record}
    assert "only read from a disk" in reasons["set.sh3f"]
    assert "caption" in reasons["toy.glb"]
    assert "gone since it was listed" in reasons["gone.ply"]
    (description,) = (tmp_path / "out").glob("*.json")
    said = json.loads(description.read_bytes())
    assert (said["uid"], said["sha256"]) == ("chairs/oak.obj", sha256_of(OBJ.encode()))
    assert not list(temporary.glob("kiss3d-remote-*"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pipe:cat meshes", "s3://BUCKET/PREFIX"),
        ("ftp://host/meshes", "s3://BUCKET/PREFIX"),
        ("simplecache::s3://bucket/meshes", "s3://BUCKET/PREFIX"),
        ("s3:bucket", "s3://"),
        ("s3://", "s3://"),
        ("file://meshes", "relative"),
        ("memory://empty", "no meshes"),
    ],
)
def test_other_addresses_are_refused_with_the_known_ones(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec).items()


def test_a_bucket_that_is_not_there_is_an_input_error(s3_server: None) -> None:
    with pytest.raises(InputError, match="s3://nowhere/meshes"):
        open_source("s3://nowhere/meshes").items()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def url_to_fs(url: str, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", url_to_fs)
    with pytest.raises(InputError, match=r"s3fs.*pip install 'kiss3d\[cloud\]'"):
        open_source("s3://bucket/meshes").items()
