import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from kiss3d_infer.bundle.image import load_bundle
from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_train.data.curation.orientation import (
    annotated,
    load_estimator,
    oriented,
    read_fronts,
    turned,
)
from kiss3d_train.data.render import RenderJob, _is_whole, render_item
from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import make

TILE = 48


def test_what_is_seen_at_the_fronts_azimuth_faces_the_front_camera_afterwards() -> None:
    nose = torch.tensor([[1.0, 0.5, 0.0]])  # seen from azimuth 90
    mesh = Mesh(nose, torch.zeros(1, 3, dtype=torch.int32), normals=nose)
    result = turned(mesh, 90.0)
    assert_close(result.vertices, torch.tensor([[0.0, 0.5, 1.0]]))
    assert result.normals is not None
    assert_close(result.normals, result.vertices)
    assert turned(mesh, 360.0) is mesh


def test_a_column_of_the_bundle_becomes_the_first(tmp_path: Path) -> None:
    folder, out = tmp_path / "meshes", tmp_path / "out"
    folder.mkdir()
    save_mesh(make(0).mesh(), folder / "chair.ply")
    (item,) = open_source(str(folder)).items()
    job = RenderJob(str(folder), out, TILE, PUBLISHED)
    picture = out / f"{item.key}.bundle.png"
    assert render_item(job, item) is None
    before = load_bundle(picture).rgb
    assert render_item(job, replace(item, front=90.0)) is None
    after = load_bundle(picture).rgb
    assert (after[0] - before[1]).abs().mean() < 0.02 < (after[0] - before[0]).abs().mean()
    (folder / "chair.json").write_text('{"front": 270}')
    assert render_item(job, item) is None
    assert (load_bundle(picture).rgb[0] - before[3]).abs().mean() < 0.02
    assert json.loads((out / f"{item.key}.json").read_bytes())["front"] == 270


def test_a_changed_annotation_makes_a_sample_out_of_date(tmp_path: Path) -> None:
    source, out = "toybox:1", tmp_path / "out"
    (item,) = open_source(source).items()
    fronts = tmp_path / "fronts.json"
    fronts.write_text(json.dumps({item.key: 90}))
    (turned_item,) = annotated([item], fronts)
    assert render_item(RenderJob(source, out, TILE, PUBLISHED), turned_item) is None
    assert _is_whole(RenderJob(source, out, TILE, PUBLISHED), open_source(source), turned_item)
    fronts.write_text(json.dumps({item.key: 180}))
    for other in (item, *annotated([item], fronts)):
        assert other.front in (None, 180)
        assert not _is_whole(RenderJob(source, out, TILE, PUBLISHED), open_source(source), other)


def quarter(mesh: Mesh) -> float:
    """An estimator that takes every front to be at 90 degrees."""
    return 90.0


def test_an_estimator_is_asked_only_where_nobody_said_the_front(tmp_path: Path) -> None:
    source = open_source("toybox:1")
    (item,) = source.items()
    mesh = source.load(item)
    guessed, by_guess = oriented(item, mesh, quarter)
    assert guessed.front == 90
    assert_close(by_guess.vertices, turned(mesh, 90).vertices)
    said, by_word = oriented(replace(item, front=180.0), mesh, quarter)
    assert said.front == 180
    assert_close(by_word.vertices, turned(mesh, 180).vertices)
    job = RenderJob("toybox:1", tmp_path, TILE, PUBLISHED, estimator=f"{__name__}:quarter")
    assert render_item(job, item) is None
    assert _is_whole(job, source, item)
    assert not _is_whole(replace(job, estimator=None), source, item)


@pytest.mark.parametrize("spec", ["no_such_module:guess", "math:no_such_name", "math", "math:pi"])
def test_an_estimator_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match="front estimator"):
        load_estimator(spec)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"one": 90, "two": -12.5}'),
        ("a.csv", "key,front\none,90\ntwo,-12.5\n"),
        ("a.csv", "note,uid,front\nx,one,90\ny,two,-12.5\n"),
    ],
)
def test_annotations_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_fronts(tmp_path / name) == {"one": 90.0, "two": -12.5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[1, 2]", "not a table"),
        ("a.json", "{", "not a table"),
        ("a.json", '{"one": "left"}', "front of one is no angle"),
        ("a.json", '{"one": true}', "front of one is no angle"),
        ("a.json", '{"one": null}', "front of one is no angle"),
        ("a.json", '{"one": NaN}', "front of one is no angle"),
        ("a.json", '{"one": 1, "one": 2}', "one is annotated twice"),
        ("a.csv", "name,angle\none,90\n", "not a table"),
        ("a.csv", "key,front\none\n", "front of one is no angle"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_fronts(tmp_path / name)


def test_annotations_of_another_data_set_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"elsewhere": 90}')
    with pytest.raises(InputError, match="none of the 1 annotated objects"):
        annotated(open_source("toybox:2").items(), tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        annotated(open_source("toybox:2").items(), tmp_path / "missing.json")
