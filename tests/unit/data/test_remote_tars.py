import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.load import load_mesh
from kiss3d_train.data.render import RenderJob, render_item
from kiss3d_train.data.sources import absolute_spec, named_folder, open_source
from kiss3d_train.data.sources.toybox import make

SAID = json.dumps({"name": "chair", "license": "CC0-1.0", "author": "Ada"}).encode()


@pytest.fixture(scope="module")
def glb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("glb") / "toy.glb"
    save_mesh(make(0).mesh(), path)
    return path.read_bytes()


def _tar(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, glb: bytes) -> Iterator[str]:
    """A prefix with three tars, one of them in a subfolder, and what is no tar."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    folder = f"/{tmp_path}" if request.param == "file" else "bucket"
    store, root = fsspec.url_to_fs(f"{request.param}://{folder}/tars")
    store.makedirs("bucket" if request.param == "s3" else f"{root}/sub", exist_ok=True)
    store.pipe_file(f"{root}/0.tar", _tar(("a.glb", glb), ("a.json", SAID), ("a.txt", b"no mesh")))
    store.pipe_file(f"{root}/1.tar", _tar(("b.json", b""), ("b.glb", glb)))
    store.pipe_file(f"{root}/sub/2.tar", _tar(("c.glb", glb)))
    store.pipe_file(f"{root}/notes.txt", b"nobody asks for it")
    yield f"{request.param}://{folder}/tars"
    store.rm(root, recursive=True)


def test_tars_of_a_store_are_read_by_offset(url: str, glb: bytes) -> None:
    items = open_source(f"wds:{url}").items()
    assert [item.uid for item in items] == ["a", "b", "c"]
    other = open_source(f"wds:{url}")  # as in another process, which has not listed the tars
    a, b, _ = (other.describe(item) for item in items)
    assert (a.name, a.licence, a.author, a.source) == ("chair", "CC0-1.0", "Ada", url)
    assert (b.name, a.sha256, b.sha256) == ("b", sha256_of(glb), sha256_of(glb))
    assert torch.equal(other.load(items[2]).vertices, load_mesh(glb, "glb").vertices)


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [("0.tar", ["a"]), ("{0..1}.tar", ["a", "b"]), ("*.tar", ["a", "b"]), ("s*/*.tar", ["c"])],
)
def test_a_pattern_names_some_of_the_items(url: str, pattern: str, keys: list[str]) -> None:
    whole = {item.uid: item.key for item in open_source(f"wds:{url}").items()}
    some = [item.key for item in open_source(f"wds:{url}/{pattern}").items()]
    assert some == [whole[key] for key in keys]


def test_a_tar_that_was_made_anew_changes_its_fingerprints_alone(url: str, glb: bytes) -> None:
    def fingerprints() -> list[str]:
        source = open_source(f"wds:{url}")
        return [source.fingerprint(item) for item in source.items()]

    before = fingerprints()
    assert fingerprints() == before
    store, root = fsspec.url_to_fs(url)
    store.pipe_file(f"{root}/1.tar", _tar(("b.json", b""), ("b.glb", glb), ("b.txt", b"more")))
    after = fingerprints()
    assert after[1] != before[1]
    assert (after[0], after[2]) == (before[0], before[2])


def test_a_tar_that_is_gone_or_damaged_fails_alone(url: str, glb: bytes) -> None:
    store, root = fsspec.url_to_fs(url)
    store.pipe_file(f"{root}/1.tar", _tar(("b.glb", glb), ("d.glb", glb))[: len(glb) // 2])
    source = open_source(f"wds:{url}")
    a, b, damaged, c = source.items()
    store.rm_file(f"{root}/sub/2.tar")
    for item, message in ((b, "cut off"), (damaged, "damaged"), (c, "cannot be read")):
        with pytest.raises(InputError, match=message):
            source.load(item)
    assert len(source.load(a).faces) > 0


def test_a_sample_is_rendered_from_a_store(tmp_path: Path, url: str) -> None:
    spec = absolute_spec(f"wds:{url}")
    assert (spec, named_folder(spec)) == (f"wds:{url}", None)
    out = tmp_path / "out"
    out.mkdir()
    item = open_source(spec).items()[0]
    assert render_item(RenderJob(spec, out, 32, PUBLISHED), item) is None
    meta = json.loads((out / f"{item.key}.json").read_bytes())
    assert (meta["uid"], meta["licence"]) == ("a", "CC0-1.0")


def test_a_prefix_without_tars_is_refused() -> None:
    with pytest.raises(InputError, match="no tar"):
        open_source("wds:memory://empty").items()
