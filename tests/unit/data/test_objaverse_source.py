import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_train.data.captions import caption_of
from kiss3d_train.data.render import RenderJob, render_item
from kiss3d_train.data.sources import objaverse_v1, open_source
from kiss3d_train.data.sources.toybox import make

UIDS = ("0" * 32, "1" * 32, "2" * 32)


def _listed(folder: Path, *lines: str) -> str:
    (folder / "uids.txt").write_text("\n".join(lines), encoding="utf-8")
    return f"objaverse:{folder / 'uids.txt'}"


def test_cached_objects_are_described_by_their_annotations(objaverse: Path, tmp_path: Path) -> None:
    source = open_source(_listed(tmp_path, "# chairs", UIDS[1], "", UIDS[0], f"{UIDS[0]}.glb"))
    chair, other = (source.describe(item) for item in source.items())
    assert (chair.uid, other.uid) == UIDS[:2]
    assert (chair.name, chair.author, chair.licence) == ("Oak Chair", "Ada L.", "CC-BY-NC-4.0")
    assert (chair.category, chair.tags) == ("furniture-home", ("art-abstract", "seat"))
    assert (other.licence, other.author, other.tags) == ("CC0-1.0", None, ())
    assert chair.sha256 == sha256_of(objaverse / chair.locator)
    assert caption_of(chair) == "an oak chair. furniture home, art abstract, seat"
    assert len(source.load(chair).faces) == len(make(0).mesh().faces)


def test_what_is_not_cached_is_downloaded_once(
    hub: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = open_source(_listed(tmp_path, *UIDS[:2]))
    items = source.items()
    assert hub == ["object-paths.json.gz"]  # nothing for each item
    for item in items:
        source.describe(item)
        source.load(item)
    assert hub[1:] == [
        "metadata/000-000.json.gz",
        f"glbs/000-000/{UIDS[0]}.glb",
        f"glbs/000-000/{UIDS[1]}.glb",
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["object-paths.json.gz", "metadata/000-000.json.gz"])
def test_a_download_that_was_cut_off_is_repeated(
    hub: list[str], empty_objaverse: Path, tmp_path: Path, name: str
) -> None:
    half = (tmp_path / "hub" / name).read_bytes()[:40]
    (empty_objaverse / name).parent.mkdir(parents=True)
    (empty_objaverse / name).write_bytes(half)
    source = open_source(_listed(tmp_path, UIDS[0]))
    assert source.describe(source.items()[0]).name == "Oak Chair"
    assert hub.count(name) == 1


def test_an_unknown_uid_is_quarantined(objaverse: Path, tmp_path: Path) -> None:
    spec = _listed(tmp_path, "../../etc/passwd", UIDS[2])
    job = RenderJob(spec, tmp_path / "out", 32, PUBLISHED)
    known, unknown = open_source(spec).items()
    assert render_item(job, known) is None
    record = render_item(job, unknown)
    assert record is not None and "no object ../../etc/passwd" in record["reason"]
    (description,) = (tmp_path / "out").glob("*.json")
    said = json.loads(description.read_bytes())
    assert (said["uid"], said["source"]) == (UIDS[2], "objaverse")
    assert said["sha256"] == sha256_of(objaverse / f"glbs/000-001/{UIDS[2]}.glb")


def test_an_object_that_cannot_be_downloaded_is_quarantined(
    objaverse: Path, tmp_path: Path
) -> None:
    (objaverse / f"glbs/000-000/{UIDS[0]}.glb").unlink()
    spec = _listed(tmp_path, UIDS[0])
    record = render_item(
        RenderJob(spec, tmp_path / "out", 32, PUBLISHED), open_source(spec).items()[0]
    )
    assert record is not None and "no network" in record["reason"]


def test_no_table_and_no_network_is_an_input_error(empty_objaverse: Path, tmp_path: Path) -> None:
    source = open_source(_listed(tmp_path, UIDS[0]))
    with pytest.raises(InputError, match=r"no network.*cache"):
        source.items()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the list"), (b"\n# nothing\n", "empty"), (b"\xff\xfe", "no text")],
)
def test_a_wrong_list_is_named(
    objaverse: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "uids.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"{message}.*uids\.txt"):
        open_source(f"objaverse:{tmp_path / 'uids.txt'}").items()


@pytest.mark.parametrize("kind", ["objaverse", "objaverse-xl"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "objaverse":
            raise ImportError("No module named 'objaverse'")
        return imported(name, *args)

    objaverse_v1.package.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'kiss3d\[objaverse\]'"):
        open_source(f"{kind}:{tmp_path / 'uids.txt'}")
