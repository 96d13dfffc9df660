import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiss3d_infer.bundle.image import load_bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.bundle.validate import validate
from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct import ReconstructSettings, reconstruct
from kiss3d_infer.scene.export import save_mesh
from kiss3d_train.data.render import RenderSummary, render_source
from kiss3d_train.data.shards import ShardReader, decode_sample, verify, write_shards
from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import make
from kiss3d_train.ray_session import ray_session


@pytest.fixture(scope="module", autouse=True)
def ray_on_two_cores() -> Iterator[None]:
    with ray_session(2):
        yield


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _counts(summary: RenderSummary) -> tuple[int, int, int]:
    return summary.rendered, summary.kept, summary.quarantined


def test_renders_are_the_same_for_any_number_of_workers_and_resume(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert _counts(render_source("toybox:6", one, tile=32, num_workers=1)) == (6, 0, 0)
    assert _counts(render_source("toybox:6", two, tile=32, limit=2)) == (2, 0, 0)
    # Neither a description without its picture nor a picture without description is a sample.
    (two / "toybox-0-0000000.bundle.png").unlink()
    (two / "toybox-0-0000001.json").unlink()
    assert _counts(render_source("toybox:6", two, tile=32, num_workers=2)) == (6, 0, 0)
    assert _contents(one) == _contents(two)
    times = {path.name: path.stat().st_mtime_ns for path in one.glob("*.png")}
    assert _counts(render_source("toybox:6", one, tile=32)) == (0, 6, 0)
    assert times == {path.name: path.stat().st_mtime_ns for path in one.glob("*.png")}
    assert _counts(render_source("toybox:6", one, tile=16)) == (6, 0, 0)


def test_from_meshes_to_samples(tmp_path: Path) -> None:
    render_source("toybox:12", tmp_path / "rendered", tile=64)
    for path in (tmp_path / "rendered").glob("*.png"):
        report = validate(load_bundle(path))
        assert report.ok, (path.name, report.problems)
    write_shards(tmp_path / "rendered", tmp_path / "shards", max_samples=5)
    verify(tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    bundle, meta = decode_sample(reader.read("train", 0))
    assert reader.num_samples("train") + reader.num_samples("val") == 12
    toybox = open_source("toybox:12")
    item = toybox.items()[int(meta["locator"])]
    assert meta["caption"] == toybox.describe(item).caption
    assert bundle.tile == meta["tile"] == 64


@pytest.mark.parametrize("name", ["alternating", "top-and-bottom"])
def test_another_layout_goes_from_meshes_to_a_mesh(name: str, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "configs" / "layouts" / f"{name}.yaml"
    layout = load_config(BundleLayout, recipe).config
    render_source("toybox:2", tmp_path / "rendered", tile=96, layout=layout)
    write_shards(tmp_path / "rendered", tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    assert reader.index.layout == layout
    bundle, _ = decode_sample(reader.read("train", 0))
    assert bundle.layout == layout and validate(bundle).ok
    made = reconstruct(bundle, ReconstructSettings(num_faces=5000, texture_size=256))
    assert made.measurements["silhouette_iou"] > 0.93
    assert made.measurements["normal_error"] < 15
    assert made.measurements["watertight"] == 1


def _bad_meshes(folder: Path) -> None:
    """Five meshes that cannot be rendered beside one that can."""
    folder.mkdir()
    save_mesh(make(0).mesh(), folder / "chair.glb")
    (folder / "empty.glb").write_bytes(b"")
    (folder / "noise.obj").write_bytes(b"\x00\xff no mesh")
    (folder / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "bomb.glb").write_bytes(_bomb(30_000_000))


def _bomb(num_vertices: int) -> bytes:
    """A GLB of a few hundred bytes that declares many vertices."""
    accessor = {"componentType": 5126, "count": num_vertices, "type": "VEC3"}
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [accessor],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    header = b"glTF" + (2).to_bytes(4, "little") + (20 + len(text)).to_bytes(4, "little")
    return header + len(text).to_bytes(4, "little") + b"JSON" + text


def test_bad_meshes_are_quarantined_once_and_the_job_goes_on(tmp_path: Path) -> None:
    source, out = tmp_path / "meshes", tmp_path / "out"
    _bad_meshes(source)
    for expected in ((1, 0, 5), (0, 1, 5)):
        assert _counts(render_source(str(source), out, tile=32)) == expected
        lines = (out / "quarantine.jsonl").read_text().splitlines()
        records = {record["locator"]: record for record in map(json.loads, lines)}
        assert len(lines) == 5
        assert set(records) == {"empty.glb", "noise.obj", "nan.obj", "flat.obj", "bomb.glb"}
        assert "30000000 vertices" in records["bomb.glb"]["reason"]
        assert "empty" in records["empty.glb"]["reason"]
        assert "flat" in records["flat.obj"]["reason"]
        assert all(record["key"] and record["source"] == "meshes" for record in records.values())
    save_mesh(make(1).mesh(), source / "nan.obj")
    assert _counts(render_source(str(source), out, tile=32)) == (1, 1, 4)
    assert "nan.obj" not in (out / "quarantine.jsonl").read_text()


def test_a_broken_library_or_sidecar_stops_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "meshes", tmp_path / "out"
    source.mkdir()
    (source / "a.sh3f").write_bytes(b"no zip")
    for name in ("b", "c"):
        save_mesh(make(0).mesh(), source / f"{name}.glb")
    (source / "b.json").write_text('{"caption": 3}')
    assert _counts(render_source(str(source), out, tile=32)) == (1, 0, 2)
    records = (json.loads(line) for line in (out / "quarantine.jsonl").open())
    reasons = {record["locator"]: record["reason"] for record in records}
    assert set(reasons) == {"a.sh3f#", "b.glb"}
    assert "not a Sweet Home 3D furniture library" in reasons["a.sh3f#"]
    assert "'caption'" in reasons["b.glb"]


def test_two_folders_share_an_output_without_loss(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for index, name in enumerate(("A", "B")):
        (tmp_path / name).mkdir()
        save_mesh(make(index).mesh(), tmp_path / name / "chair.glb")
        assert _counts(render_source(str(tmp_path / name), out, tile=32)) == (1, 0, 0)
    descriptions = [json.loads(path.read_bytes()) for path in out.glob("*.json")]
    assert {meta["source"] for meta in descriptions} == {"A", "B"}
    assert len({meta["bundle_sha256"] for meta in descriptions}) == 2


def test_an_edited_mesh_or_sidecar_is_rendered_again(tmp_path: Path) -> None:
    source, out = tmp_path / "meshes", tmp_path / "out"
    source.mkdir()
    save_mesh(make(0).mesh(), source / "a.glb")
    save_mesh(make(1).mesh(), source / "b.glb")
    assert _counts(render_source(str(source), out, tile=32)) == (2, 0, 0)
    save_mesh(make(2).mesh(), source / "a.glb")
    assert _counts(render_source(str(source), out, tile=32)) == (1, 1, 0)
    (source / "a.json").write_text('{"caption": "something else"}')
    assert _counts(render_source(str(source), out, tile=32)) == (1, 1, 0)
    captions = {json.loads(path.read_bytes())["caption"] for path in out.glob("*.json")}
    assert captions == {"something else", "a b"}
    (source / "a.glb").write_bytes(b"")
    assert _counts(render_source(str(source), out, tile=32)) == (0, 1, 1)
    # What was rendered from the mesh before it broke is no sample any more.
    assert len(write_shards(out, tmp_path / "shards").shards) == 1


def test_what_a_kill_left_is_cleared_away_and_never_packed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    render_source("toybox:2", out, tile=32)
    (out / ".toybox-0-0000001.7.abc.partial.json").write_text("{")
    (out / ".toybox-0-0000001.bundle.7.abc.partial.png").write_bytes(b"half")
    assert sum(write_shards(out, tmp_path / "shards").counts("train")) == 1
    assert _counts(render_source("toybox:2", out, tile=32)) == (0, 2, 0)
    assert not [path.name for path in out.iterdir() if "partial" in path.name]


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        render_source("toybox:2", tmp_path / "file" / "out", tile=32)


def test_ctrl_c_leaves_only_whole_samples_and_the_job_resumes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = (
        "from pathlib import Path; from kiss3d_train.data.render import render_source; "
        f"render_source('toybox:400', Path({str(out)!r}), tile=96, num_workers=2)"
    )
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT  # not an abort of Ray's
    done = {path.stem for path in out.glob("*.json")}
    assert 3 <= len(done) < 400
    assert not [path.name for path in out.iterdir() if "partial" in path.name]
    for key in done:
        load_bundle(out / f"{key}.bundle.png")
    assert (out / "quarantine.jsonl").read_text() == ""
    limit = len(done) + 4
    summary = render_source("toybox:400", out, tile=96, limit=limit)
    assert summary.quarantined == 0 and summary.kept >= 1
    assert {f"toybox-0-{index:07d}" for index in range(limit)} <= {
        p.stem for p in out.glob("*.json")
    }
