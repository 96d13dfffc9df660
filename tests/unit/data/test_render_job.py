import json
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked
from kiss3d_infer.scene.export import save_mesh
from kiss3d_train.data.render import RenderJob, render_item, render_source
from kiss3d_train.data.rendering.schedule import outcomes
from kiss3d_train.data.sources import MeshItem, open_source
from kiss3d_train.data.sources.toybox import make

TILE = 32


def _meshes(folder: Path, index: int) -> Path:
    folder.mkdir(parents=True)
    save_mesh(make(index).mesh(), folder / "chair.ply")
    return folder


def _render_here(folder: Path, out: Path) -> None:
    """What `render_source` has workers do."""
    for item in open_source(str(folder)).items():
        assert render_item(RenderJob(str(folder), out, TILE, PUBLISHED), item) is None


@pytest.mark.parametrize("tile", [0, 8, 24, 100])
def test_a_tile_that_cannot_be_trained_on_is_refused(tmp_path: Path, tile: int) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        render_source("toybox:2", tmp_path / "out", tile=tile)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_same_name_replaces_nothing(tmp_path: Path) -> None:
    first, second = _meshes(tmp_path / "c1" / "A", 0), _meshes(tmp_path / "c2" / "A", 1)
    out = tmp_path / "out"
    out.mkdir()
    _render_here(first, out)
    assert render_source(str(first), out, tile=TILE).kept == 1
    samples = {path: path.read_bytes() for path in out.glob("*.bundle.png")}
    with pytest.raises(InputError, match=rf"rendered from {first}, not from {second}"):
        render_source(str(second), out, tile=TILE)
    assert samples == {path: path.read_bytes() for path in out.glob("*.bundle.png")}


def test_samples_rendered_before_items_had_a_checksum_are_kept(tmp_path: Path) -> None:
    meshes, out = _meshes(tmp_path / "A", 0), tmp_path / "out"
    out.mkdir()
    _render_here(meshes, out)
    (description,) = out.glob("*.json")
    meta = json.loads(description.read_bytes())
    assert meta.pop("sha256") and meta.pop("uid") == "chair.ply"
    description.write_text(json.dumps(meta))
    assert render_source(str(meshes), out, tile=TILE).kept == 1


def test_a_folder_that_was_moved_goes_on(tmp_path: Path) -> None:
    before, out = _meshes(tmp_path / "here" / "A", 0), tmp_path / "out"
    out.mkdir()
    _render_here(before, out)
    render_source(str(before), out, tile=TILE)
    after = Path(shutil.move(before, tmp_path / "A"))
    assert render_source(str(after), out, tile=TILE).kept == 1


def test_equal_keys_within_a_source_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.ply", "b.ply"):
        save_mesh(make(0).mesh(), tmp_path / name)
    monkeypatch.setattr("kiss3d_train.data.sources.folder.make_key", lambda *_, unique: "same")
    with pytest.raises(InputError, match=r"a\.ply and b\.ply get the same key, same"):
        render_source(str(tmp_path), tmp_path / "out", tile=TILE, limit=1)


def test_a_folder_in_which_another_job_renders_is_left_alone(tmp_path: Path) -> None:
    with locked(tmp_path):
        being_written = tmp_path / ".toybox-0-0000000.7.abc.partial.json"
        being_written.write_text("{")
        with pytest.raises(InputError, match="another job is working here"):
            render_source("toybox:1", tmp_path, tile=TILE)
        assert being_written.exists()


def _item(key: str) -> MeshItem:
    return MeshItem(key, key, None, "", (), "test", None, None, key)


def test_a_mesh_whose_worker_or_node_dies_is_tried_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: dict[str, list[Any]] = {
        "good": [None],
        "unlucky": [WorkerCrashedError(), NodeDiedError("gone"), None],
        "crashes": [WorkerCrashedError()] * 3 + [None],
        "too large": [OutOfMemoryError("too much")] * 3 + [None],
    }
    tries: dict[str, int] = defaultdict(int)
    options: dict[str, Any] = {}

    def remote(**given: Any) -> Any:
        options.update(given)
        return lambda _: SimpleNamespace(
            remote=lambda request: (json.loads(request)["item"]["key"], object())
        )

    def get(reference: tuple[str, object]) -> None:
        key, _ = reference
        tries[key] += 1
        if error := ends[key].pop(0):
            raise error

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda running: (running[:1], running[1:]))
    monkeypatch.setattr(ray, "get", get)
    job = RenderJob("test", Path("unused"), TILE, PUBLISHED)
    records = dict(outcomes(job, [_item(key) for key in ends], workers=2))
    assert tries == {"good": 1, "unlucky": 3, "crashes": 3, "too large": 3}
    assert records.keys() == ends.keys()
    assert records["good"] is records["unlucky"] is None
    for key, reason in (("crashes", "WorkerCrashedError"), ("too large", "OutOfMemoryError")):
        record = records[key]
        assert record is not None and reason in record["reason"]
    # Otherwise Ray itself repeats without end what its memory monitor has killed.
    assert options["max_retries"] == 0
