import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked
from kiss3d_train.cli import app
from kiss3d_train.data.curation import CurationConfig, curate, read_curation
from kiss3d_train.data.curation.config import Subset
from kiss3d_train.data.curation.subsets import chosen
from kiss3d_train.data.shards import SPLITS, ShardReader, write_shards
from tests.unit.data.test_curation_filters import sample

RECIPE = Path(__file__).parents[3] / "configs" / "data" / "curation.yaml"
BUT_THE_LARGE = CurationConfig.model_validate({"filters": {"few_faces": {"min_faces": 500}}})


@pytest.fixture
def folder(rendered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "rendered"))


def _packed(shards: Path) -> set[str]:
    reader = ShardReader(shards)
    return {reader.key(s, i) for s in SPLITS for i in range(reader.num_samples(s))}


def _keys(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.json")}


def test_the_recipe_holds_the_defaults() -> None:
    assert load_config(CurationConfig, RECIPE).config == CurationConfig()
    assert load_config(CurationConfig, None).config == CurationConfig()


def test_a_mistyped_limit_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown key 'filters\.flat\.thickness'"):
        load_config(CurationConfig, RECIPE, ["filters.flat.thickness=0.1"])
    with pytest.raises(ValidationError):
        Subset(size=0)


def test_every_sample_is_recorded_with_its_reasons(folder: Path) -> None:
    curation = curate(folder, BUT_THE_LARGE)
    lines = (folder / "curation.jsonl").read_text().splitlines()
    header, *records = map(json.loads, lines)
    assert CurationConfig.model_validate(header["config"]) == BUT_THE_LARGE
    assert [record["key"] for record in records] == sorted(_keys(folder))
    few = {r["key"] for r in records if any(x["filter"] == "few_faces" for x in r["reasons"])}
    for record in records:
        faces = json.loads((folder / f"{record['key']}.json").read_bytes())["num_faces"]
        assert (record["key"] in few) == (faces < 500)
        assert record["accepted"] == (not record["reasons"])
        assert ("base" in record["subsets"]) == record["accepted"]
    assert 0 < len(few) < len(records)
    assert curation.rejected_by()["few_faces"][0] == len(few)
    assert f"few_faces {len(few):>15}" in str(curation)
    assert read_curation(folder) == curation


def test_the_same_samples_and_limits_give_the_same_record(folder: Path) -> None:
    record = folder / "curation.jsonl"
    curate(folder, BUT_THE_LARGE)
    before = record.read_bytes()
    curate(folder)
    assert record.read_bytes() != before
    curate(folder, BUT_THE_LARGE)
    assert record.read_bytes() == before


def test_only_accepted_samples_are_packed(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "all")
    curation = curate(folder, BUT_THE_LARGE)
    accepted = {decision.key for decision in curation.decisions if decision.accepted}
    write_shards(folder, tmp_path / "some")
    assert _packed(tmp_path / "all") == _keys(folder)
    assert _packed(tmp_path / "some") == accepted < _keys(folder)


def test_a_subset_is_packed_by_its_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="subsets are made by a curation"):
        write_shards(folder, tmp_path / "out", subset="few")
    (tmp_path / "keys.txt").write_text("\n".join(sorted(_keys(folder))[2:8]))
    few = {"keys": str(tmp_path / "keys.txt"), "size": 3}
    filters = {"duplicates": {"enabled": False}, "few_faces": {"enabled": False}}
    config = CurationConfig.model_validate({"subsets": {"few": few}, "filters": filters})
    curate(folder, config)
    write_shards(folder, tmp_path / "out", subset="few")
    assert len(_packed(tmp_path / "out")) == 3
    assert _packed(tmp_path / "out") <= set(sorted(_keys(folder))[2:8])
    with pytest.raises(InputError, match=r"no subset dolls.*it has base, few"):
        write_shards(folder, tmp_path / "other", subset="dolls")


@pytest.mark.parametrize("change", ["new", "gone", "changed"])
def test_a_curation_of_other_samples_is_out_of_date(
    folder: Path, tmp_path: Path, change: str
) -> None:
    first, *_ = sorted(folder.glob("*.json"))
    picture = folder / f"{first.stem}.bundle.png"
    aside = tmp_path / "aside.json"
    if change == "new":
        shutil.move(first, aside)
        curate(folder)
        shutil.move(aside, first)
    else:
        curate(folder)
    if change == "gone":
        first.unlink()
        picture.unlink()
    if change == "changed":
        first.write_text(json.dumps(json.loads(first.read_bytes()) | {"caption": "a scan"}))
    with pytest.raises(InputError, match=f"out of date: .*1 .*{change}.*curate.*again"):
        write_shards(folder, tmp_path / "out")
    curate(folder)
    write_shards(folder, tmp_path / "out")


def test_a_folder_without_samples_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "missing"):
        with pytest.raises(InputError, match="no rendered samples in the folder"):
            curate(folder)
    assert list(tmp_path.rglob("*")) == [empty]


def test_an_interrupted_curation_leaves_the_last_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(folder)
    before = (folder / "curation.jsonl").read_bytes()

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("kiss3d_train.data.curation.record.Decision.to_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curate(folder, BUT_THE_LARGE)
    assert (folder / "curation.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{}\n", "nonsense\n", '{"config": {}}\n{"key": 3}\n'])
def test_a_damaged_record_is_refused(folder: Path, tmp_path: Path, text: str) -> None:
    (folder / "curation.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"cannot be read.*kiss3d data curate"):
        write_shards(folder, tmp_path / "out")


def test_samples_without_figures_are_refused(folder: Path) -> None:
    first, *_ = sorted(folder.glob("*.json"))
    meta = json.loads(first.read_bytes())
    first.write_text(json.dumps(meta | {"statistics": {"num_faces": 3}}))
    with pytest.raises(InputError, match=f"figures of {first.stem} are wrong"):
        curate(folder)
    del meta["statistics"]
    first.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"no figures.*render.*again"):
        curate(folder)


def test_a_folder_without_samples_or_in_use_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="no rendered samples"):
        curate(tmp_path / "empty")
    with locked(folder), pytest.raises(InputError, match="another job"):
        curate(folder)


def test_nothing_accepted_is_said(folder: Path, tmp_path: Path) -> None:
    curate(folder, CurationConfig.model_validate({"filters": {"few_faces": {"min_faces": 10**9}}}))
    with pytest.raises(InputError, match="no sample is accepted"):
        write_shards(folder, tmp_path / "out")


def test_the_commands_curate_inspect_and_shard(folder: Path, tmp_path: Path) -> None:
    def kiss3d(*words: str) -> str:
        result = CliRunner().invoke(app, ["data", *words], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    table = kiss3d("curate", str(folder), "--set", "filters.few_faces.min_faces=500")
    assert [line for line in table.splitlines() if line.startswith("few_faces")] != []
    assert "14 samples" in kiss3d("inspect", str(folder), "--out", str(tmp_path / "page.html"))
    kiss3d("shard", str(folder), "--out", str(tmp_path / "shards"), "--subset", "50k")
    assert _packed(tmp_path / "shards") < _keys(folder)
    sheet = tmp_path / "sheet.png"
    assert str(sheet) in kiss3d("inspect", str(tmp_path / "shards"), "--out", str(sheet))


def test_a_subset_of_a_size_changes_only_by_what_is_added() -> None:
    old = [sample(f"k{i}") for i in range(200)]
    new = [sample(f"n{i}") for i in range(20)]
    subset = Subset(size=50)
    before, after = chosen(old, subset), chosen([*new, *old], subset)
    assert len(before) == len(after) == 50
    assert len(before - after) == len(after & {s.key for s in new}) < 20
    assert chosen(old[::-1], subset) == before != chosen(old, Subset(size=50, seed=1))
    assert chosen(old[:30], subset) == {s.key for s in old[:30]}


def test_a_subset_is_chosen_by_tag_and_by_list(tmp_path: Path) -> None:
    doll = CurationConfig().subsets["doll"]
    samples = [
        sample("rag", {"name": "Rag Doll"}),
        sample("house", {"name": "dollhouse"}),
        sample("hero", {"tags": ("cartoon character",)}),
        sample("bench", {"uid": "abc"}),
    ]
    assert chosen(samples, doll) == {"rag", "hero"}
    (tmp_path / "list.txt").write_text("abc\n\nrag\nelsewhere\n")
    assert chosen(samples, Subset(keys=tmp_path / "list.txt")) == {"bench", "rag"}
    with pytest.raises(InputError, match="list cannot be read"):
        chosen(samples, Subset(keys=tmp_path / "missing.txt"))
