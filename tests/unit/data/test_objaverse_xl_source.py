import json
import os
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_infer.scene.export import save_mesh
from kiss3d_train.data.render import RenderJob, render_item
from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import make

SITES = ("github", "sketchfab", "smithsonian", "thingiverse")
CHAIR = "https://3d-api.si.edu/content/chair-150k-4096-medium.glb"
THING = "https://www.thingiverse.com/thing:7/files?fileId=42"
SKETCHFAB = f"https://sketchfab.com/3d-models/{'0' * 32}"
GITHUB = "https://github.com/ada/shapes/blob/0123abc/models/cup.obj"
OBJ = "mtllib cup.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nusemtl a\nf 1 2 3\nf 1 3 4\n"


@pytest.fixture
def rows(objaverse: Path) -> list[dict[str, Any]]:
    """One object of each site, cached as the package caches them, and its annotation."""
    cache = objaverse.parent
    files = {
        GITHUB: cache / "github/repos/ada/shapes/models/cup.obj",
        SKETCHFAB: objaverse / f"glbs/000-000/{'0' * 32}.glb",
        CHAIR: cache / f"smithsonian/objects/{uuid.uuid5(uuid.NAMESPACE_DNS, CHAIR)}.glb",
        THING: cache / "thingiverse/thing-7-file-42.stl",
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    files[GITHUB].write_text(OBJ)
    files[GITHUB].with_suffix(".mtl").write_text("newmtl a\nKd 1 0 0\n")
    save_mesh(make(1).mesh(), files[CHAIR])
    save_mesh(make(2).mesh(), files[THING])
    metadata = {CHAIR: '{"title": "Arm Chair"}', THING: '{"filename": "gear.stl"}'}
    return [
        {
            "fileIdentifier": uid,
            "source": site,
            "license": None if site == "github" else "CC0",
            "fileType": file.suffix[1:],
            "sha256": sha256_of(file),
            "metadata": metadata.get(uid, "{}"),
        }
        for site, (uid, file) in zip(SITES, files.items(), strict=True)
    ]


def _spec(path: Path, rows: list[dict[str, Any]]) -> str:
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path)
    else:
        table.to_parquet(path)
    return f"objaverse-xl:{path}"


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_cached_objects_of_every_site_are_read(
    rows: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    source = open_source(_spec(tmp_path / name, [*rows, rows[0]]))
    items = [source.describe(item) for item in source.items()]
    assert [item.uid for item in items] == [GITHUB, SKETCHFAB, CHAIR, THING]
    assert [item.source for item in items] == [f"objaverse-xl/{site}" for site in SITES]
    assert [item.name for item in items] == ["cup", "Oak Chair", "Arm Chair", "gear"]
    assert [item.licence for item in items] == [None, "CC-BY-NC-4.0", "CC0", "CC0"]
    assert [item.sha256 for item in items] == [row["sha256"] for row in rows]
    assert items[1].author == "Ada L."
    meshes = [source.load(item) for item in items]
    assert [len(mesh.faces) for mesh in meshes[:2]] == [2, len(make(0).mesh().faces)]
    assert meshes[0].materials[0].base_color == pytest.approx((1, 0, 0), abs=0.01)
    assert len({item.key for item in items}) == 4


def test_a_list_is_looked_up_in_the_packages_annotations(
    rows: list[dict[str, Any]], objaverse: Path, tmp_path: Path
) -> None:
    for row in rows:
        folder = objaverse.parent / row["source"]
        folder.mkdir(exist_ok=True)
        pd.DataFrame([row]).to_parquet(folder / f"{row['source']}.parquet")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{THING}\n{rows[2]['sha256']}\nhttps://github.com/no/such.obj\n")
    source = open_source(f"objaverse-xl:{listed}")
    thing, chair, unknown = source.items()
    assert (thing.uid, chair.uid) == (THING, CHAIR)
    assert len(source.load(chair).faces) == len(make(1).mesh().faces)
    with pytest.raises(InputError, match="no such object"):
        source.load(unknown)


def test_another_file_than_the_annotated_one_is_quarantined(
    rows: list[dict[str, Any]], objaverse: Path, tmp_path: Path
) -> None:
    file = next((objaverse.parent / "smithsonian/objects").iterdir())
    file.write_bytes(file.read_bytes() + b"\0")
    spec = _spec(tmp_path / "a.csv", rows)
    job = RenderJob(spec, tmp_path / "out", 32, PUBLISHED)
    cup, _, chair, _ = open_source(spec).items()
    record = render_item(job, chair)
    assert record is not None and "not the one that was annotated" in record["reason"]
    assert render_item(job, cup) is None
    (description,) = (tmp_path / "out").glob("*.json")
    said = json.loads(description.read_bytes())
    assert (said["uid"], said["sha256"]) == (GITHUB, rows[0]["sha256"])


def test_a_repository_is_cloned_with_what_its_meshes_refer_to(
    empty_objaverse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = _repository(tmp_path / "hub/ada/shapes.git")
    # What the package clones from GitHub comes from the folder.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{tmp_path}/hub/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
    uid = f"https://github.com/ada/shapes/blob/{commit}/models/cup.obj"
    row = {"fileIdentifier": uid, "sha256": sha256_of(OBJ.encode())}
    gone = {**row, "fileIdentifier": uid.replace("cup", "gone")}
    source = open_source(_spec(tmp_path / "a.csv", [row, gone]))
    cup, missing = source.items()
    assert source.load(cup).materials[0].base_color == pytest.approx((0, 1, 0), abs=0.01)
    with pytest.raises(InputError, match="not hold the object any more"):
        source.load(missing)


def _repository(folder: Path) -> str:
    """A git repository with a mesh and its material; returns its commit."""
    (folder / "models").mkdir(parents=True)
    (folder / "models/cup.obj").write_text(OBJ)
    (folder / "models/cup.mtl").write_text("newmtl a\nKd 0 1 0\n")
    who = {f"GIT_{role}_{what}": "ada@b.c" for role in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}  # fmt: skip
    for command in (["init"], ["add", "."], ["commit", "-m", "shapes"]):
        subprocess.run(
            ["git", "-C", str(folder), *command], check=True, capture_output=True,
            env={**os.environ, **who},
        )  # fmt: skip
    found = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True
    )
    return found.stdout.decode().strip()


@pytest.mark.parametrize(
    ("uid", "message"),
    [
        (GITHUB.replace("cup.obj", "cup.blend"), r"\.blend"),
        (GITHUB.replace("models", "../.."), "no address"),
        ("https://nowhere.org/a.glb", "unknown"),
    ],
)
def test_what_is_not_read_is_not_downloaded(
    rows: list[dict[str, Any]], tmp_path: Path, uid: str, message: str
) -> None:
    source = open_source(_spec(tmp_path / "a.csv", [{"fileIdentifier": uid, "sha256": "0"}]))
    with pytest.raises(InputError, match=message):
        source.load(source.items()[0])


def test_a_fingerprint_tells_another_annotation(objaverse: Path, tmp_path: Path) -> None:
    row = {"fileIdentifier": CHAIR, "sha256": "0"}
    source = open_source(_spec(tmp_path / "a.csv", [row]))
    (item,) = source.items()
    assert source.fingerprint(item) == source.fingerprint(source.items()[0])
    assert source.fingerprint(replace(item, sha256="1")) != source.fingerprint(item)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "fileIdentifier\nx\n", "no sha256"),
        ("a.csv", "fileIdentifier,sha256\n", "empty"),
        ("a.csv", "", "cannot read"),
        ("a.parquet", "no parquet", "cannot read"),
        ("a.txt", "", "empty"),
        ("a.txt", "https://github.com/no/such.obj", "cannot be downloaded"),
        ("gone.csv", None, "cannot read"),
        ("gone.txt", None, "cannot read"),
    ],
)
def test_a_wrong_table_is_named(
    objaverse: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | None,
    message: str,
) -> None:
    def offline(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr("requests.get", offline)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        open_source(f"objaverse-xl:{tmp_path / name}").items()
