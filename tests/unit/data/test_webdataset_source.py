import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import webdataset

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.load import load_mesh
from kiss3d_train.data.render import RenderJob, render_item, render_source
from kiss3d_train.data.sources import MeshItem, MeshSource, absolute_spec, open_source
from kiss3d_train.data.sources.toybox import make

SAID = {"name": "chair", "license": "CC0-1.0", "author": "Ada", "tags": ["seat"], "views": 7}


@pytest.fixture(scope="module")
def glb(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("glb") / "toy.glb"
    save_mesh(make(0).mesh(), path)
    return path.read_bytes()


def _tar(path: Path, members: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for header, data in members:
            member = tarfile.TarInfo(header) if isinstance(header, str) else header
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return path


def _described(source: MeshSource) -> list[MeshItem]:
    return [source.describe(item) for item in source.items()]


def test_what_webdataset_writes_is_read(tmp_path: Path, glb: bytes) -> None:
    with webdataset.TarWriter(str(tmp_path / "000.tar")) as writer:
        for key in ("a", "sub/b"):
            writer.write({"__key__": key, "glb": glb, "json": SAID, "txt": "no mesh"})
    source = open_source(f"wds:{tmp_path}")
    a, b = _described(source)
    assert (a.uid, b.uid) == ("a", "sub/b")
    assert (a.name, a.licence, a.author, a.tags) == ("chair", "CC0-1.0", "Ada", ("seat",))
    assert a.sha256 == sha256_of(glb) and a.source == tmp_path.name
    assert torch.equal(source.load(b).vertices, load_mesh(glb, "glb").vertices)


def test_another_process_reads_by_offset_without_an_index(
    tmp_path: Path, glb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tar(tmp_path / "000.tar", [("a.glb", glb), ("b.json", b"{}"), ("b.glb", glb)])
    items = open_source(f"wds:{tmp_path}").items()
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("went through the tar"))
    other = open_source(f"wds:{tmp_path}")
    assert [other.describe(item).sha256 for item in items] == [sha256_of(glb)] * 2
    assert len(other.load(items[1]).faces) > 0


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("", ["a", "b", "c"]),
        ("0.tar", ["a"]),
        ("[01].tar", ["a", "b"]),
        ("{1..2}.tar", ["b", "c"]),
        ("*.tar", ["a", "b", "c"]),
    ],
)
def test_a_folder_a_tar_or_a_pattern(
    tmp_path: Path, glb: bytes, pattern: str, keys: list[str]
) -> None:
    for number, key in enumerate("abc"):
        _tar(tmp_path / f"{number}.tar", [(f"{key}.glb", glb)])
    whole = {item.uid: item for item in open_source(f"wds:{tmp_path}").items()}
    items = open_source(f"wds:{tmp_path}/{pattern}").items()
    assert [item.uid for item in items] == keys
    assert items == [whole[key] for key in keys]


def test_a_fingerprint_tells_an_edited_member(tmp_path: Path, glb: bytes) -> None:
    def fingerprints(*members: tuple[str, bytes]) -> list[str]:
        _tar(tmp_path / "0.tar", list(members))
        source = open_source(f"wds:{tmp_path}")
        return [source.fingerprint(item) for item in source.items()]

    before = fingerprints(("a.glb", glb), ("b.glb", glb))
    assert fingerprints(("a.glb", glb), ("a.json", b"{}"), ("b.glb", glb))[0] != before[0]
    assert fingerprints(("b.glb", glb), ("a.glb", glb + b"\0")) != before
    assert fingerprints(("c.glb", glb), ("a.glb", glb), ("b.glb", glb))[1:] == before


def test_members_that_escape_write_nothing_and_links_are_passed_over(
    tmp_path: Path, glb: bytes
) -> None:
    link = tarfile.TarInfo("link.glb")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [("../../up.glb", glb), ("/etc/abs.glb", glb), (link, b"")]
    _tar(tmp_path / "in/0.tar", members)
    before = {*tmp_path.rglob("*"), *tmp_path.parent.iterdir()}
    source = open_source(f"wds:{tmp_path}/in")
    items = source.items()
    assert [item.uid for item in items] == ["../../up", "/etc/abs"]
    assert all(len(source.load(item).faces) > 0 for item in items)
    assert all("/" not in item.key and "." not in item.key for item in items)
    assert before == {*tmp_path.rglob("*"), *tmp_path.parent.iterdir()}


@pytest.mark.parametrize("damage", ["cut off", "garbage", "gzip", "no tar"])
def test_a_damaged_tar_is_an_item_that_fails_and_the_rest_is_read(
    tmp_path: Path, glb: bytes, damage: str
) -> None:
    _tar(tmp_path / "good.tar", [("good.glb", glb)])
    path = _tar(tmp_path / "bad.tar", [("first.glb", glb), ("second.glb", glb)])
    whole, second = path.read_bytes(), -(-len(glb) // 512) * 512 + 512
    if damage == "cut off":
        path.write_bytes(whole[: second + 1024])
    elif damage == "garbage":
        path.write_bytes(whole[:second] + b"x" * 512 + whole[second + 512 :])
    elif damage == "gzip":
        path.unlink()
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tmp_path / "good.tar", "first.glb")
    else:
        path.write_bytes(b"no tar")
    source = open_source(f"wds:{tmp_path}")
    *_, broken, good = source.items()
    with pytest.raises(InputError, match="damaged"):
        source.describe(broken)
    assert source.describe(good).sha256 == sha256_of(glb)


def test_a_member_that_is_cut_off_is_refused(tmp_path: Path, glb: bytes) -> None:
    path = _tar(tmp_path / "0.tar", [("a.glb", glb)])
    path.write_bytes(path.read_bytes()[:1000])
    source = open_source(f"wds:{path}")
    item, _ = source.items()
    with pytest.raises(InputError, match="cut off"):
        source.load(item)


@pytest.mark.parametrize("text", [b"[", b"[1]", b"7", b'{"tags": 7}', b"\xff"])
def test_a_wrong_description_is_named(tmp_path: Path, glb: bytes, text: bytes) -> None:
    _tar(tmp_path / "0.tar", [("a.glb", glb), ("a.json", text)])
    source = open_source(f"wds:{tmp_path}")
    with pytest.raises(InputError, match="description"):
        _described(source)


def test_a_member_that_claims_too_much_is_refused(tmp_path: Path, glb: bytes) -> None:
    _tar(tmp_path / "0.tar", [("a.glb", glb)])
    source = open_source(f"wds:{tmp_path}")
    (item,) = source.items()
    huge = MeshItem(**{**vars(item), "locator": f"0.tar@512+{1 << 40}"})
    with pytest.raises(InputError, match="at most"):
        source.load(huge)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wds:", "not named"),
        ("wds:nowhere", "no tar"),
        ("wds:x{.tar", "braces"),
        ("wds:pipe:cat a.tar", "cannot be read from there"),
        ("wds:http://bucket/a.tar", "cannot be read from there"),
    ],
)
def test_a_wrong_pattern_is_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec).items()


def test_tars_without_a_mesh_are_refused(tmp_path: Path) -> None:
    _tar(tmp_path / "0.tar", [("a.jpg", b"picture")])
    with pytest.raises(InputError, match="no GLB"):
        open_source(f"wds:{tmp_path}").items()


@pytest.mark.parametrize("pattern", ["tars", "tars/*.tar", "link/0.tar"])
def test_a_relative_pattern_is_understood_from_another_folder(
    tmp_path: Path, glb: bytes, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    _tar(tmp_path / "tars/0.tar", [("a.glb", glb)])
    (tmp_path / "link").symlink_to(tmp_path / "tars")
    monkeypatch.chdir(tmp_path)
    (item,) = open_source(f"wds:{pattern}").items()
    spec = absolute_spec(f"wds:{pattern}")
    monkeypatch.chdir("/")
    assert open_source(spec).items() == [item]
    assert open_source(spec).describe(item).sha256 == sha256_of(glb)


def test_tars_of_another_folder_of_the_same_name_replace_nothing(
    tmp_path: Path, glb: bytes
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for place in ("first/A", "second/A"):
        _tar(tmp_path / place / "0.tar", [("a.glb", glb)])
    spec = f"wds:{tmp_path}/first/A"
    job = RenderJob(spec, out, 32, PUBLISHED)
    assert render_item(job, open_source(spec).items()[0]) is None
    assert render_source(spec, out, tile=32).kept == 1
    with pytest.raises(InputError, match="rendered from"):
        render_source(f"wds:{tmp_path}/second/A", out, tile=32)
    (description,) = out.glob("*.json")
    assert json.loads(description.read_bytes())["sha256"] == sha256_of(glb)
