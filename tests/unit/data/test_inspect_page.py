import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_train.data.curation import CurationConfig, curate
from kiss3d_train.data.report import write_page
from kiss3d_train.data.report.charts import counted, histogram
from kiss3d_train.data.report.entries import Entry, open_data_set
from kiss3d_train.data.shards import write_shards

FEW_FACES = CurationConfig.model_validate({"filters": {"few_faces": {"min_faces": 500}}})


class _Page(HTMLParser):
    """What a browser would fetch, run, show and count."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[Image.Image]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        data = [base64.b64decode(source.partition("base64,")[2]) for source in sources]
        return [Image.open(io.BytesIO(each)) for each in data]


@pytest.fixture
def folder(rendered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "rendered"))


def _page(folder: Path) -> _Page:
    out = folder.parent / "report" / "page.html"
    write_page(folder, out)
    return _Page(out)


def test_the_page_of_a_curated_folder_shows_what_is_accepted_and_why_the_rest_is_not(
    folder: Path,
) -> None:
    curation = curate(folder, FEW_FACES)
    page = _page(folder)
    rejected = len(curation.decisions) - curation.num_accepted()
    assert not page.open  # every tag is closed
    assert f"{curation.num_accepted()} accepted" in page.text
    assert f"{rejected} rejected" in page.text
    assert "Rejected: few_faces" in page.text and "fewer than 500" in page.text
    assert all(name in page.text for name in ("base", "50k", "doll", "CC0-1.0", "furniture"))
    assert len(page.pictures()) == len(curation.decisions)
    assert {picture.size for picture in page.pictures()} == {(400, 200)}


def test_the_page_asks_for_nothing_from_elsewhere(folder: Path) -> None:
    page = _page(folder)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    text = (folder.parent / "report" / "page.html").read_text()
    assert "url(" not in text and "@import" not in text and "http://" not in text


def test_words_from_a_data_set_cannot_become_markup(folder: Path) -> None:
    first, *_ = sorted(folder.glob("*.json"))
    evil = '<script>alert("x")</script><img src=http://evil>'
    meta = json.loads(first.read_bytes())
    first.write_text(json.dumps(meta | {"caption": evil, "licence": evil, "category": evil}))
    page = _page(folder)
    assert page.text.count(evil) >= 3
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_folder_that_is_not_curated_and_one_that_grew_are_told_apart(folder: Path) -> None:
    assert "not curated" in _page(folder).text
    first, *_ = sorted(folder.glob("*.json"))
    aside = shutil.move(first, folder.parent / first.name)
    curate(folder)
    shutil.move(aside, first)
    assert "1 of the accepted are newer than the curation" in _page(folder).text


def test_quarantined_meshes_are_counted_by_reason(folder: Path) -> None:
    lines = [{"key": str(i), "reason": "the mesh is empty"} for i in range(3)]
    (folder / "quarantine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = _page(folder)
    assert "3 meshes could not be rendered" in page.text and "the mesh is empty" in page.text


def test_shards_are_shown_too(folder: Path) -> None:
    write_shards(folder, folder.parent / "shards")
    page = _page(folder.parent / "shards")
    assert (
        "14 samples in 2 shards with tiles of 24 pixels" in page.text and len(page.pictures()) == 14
    )


def test_a_folder_with_nothing_to_show_and_another_suffix_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither rendered samples nor shards"):
        write_page(tmp_path / "empty", tmp_path / "page.html")
    with pytest.raises(InputError, match=r"\.html or a \.png"):
        write_page(folder, tmp_path / "page.pdf")
    first, *_ = sorted(folder.glob("*.bundle.png"))
    first.write_bytes(b"no image")
    with pytest.raises(InputError, match="no readable image"):
        write_page(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def _entry(value: float) -> Entry:
    return Entry("key", {"value": value}, None, bytes)


def test_every_value_is_in_one_bin() -> None:
    for values in ([1, 2, 2, 5], [0.1, 0.25, 7.5], [3, 3, 3], [0, 1e6]):
        for is_log in (False, True):
            chart = histogram("t", list(map(_entry, values)), _value, is_log=is_log)
            assert sum(chart.accepted) == len(values) and sum(chart.rejected) == 0
    assert histogram("t", list(map(_entry, [1, 2, 2, 5])), _value).accepted == [1, 2, 0, 0, 1]


def _value(entry: Entry) -> float:
    return float(entry.meta["value"])


def test_names_are_counted_and_the_rare_ones_together() -> None:
    entries = [_entry(i if i < 30 else 0) for i in range(33)]
    rows = counted(entries, lambda entry: str(entry.meta["value"]))
    assert (rows[0].name, rows[0].total) == ("0", 4)
    assert rows[-1].name == "10 others" and sum(row.total for row in rows) == 33


def test_entries_know_their_decision(folder: Path) -> None:
    curate(folder, FEW_FACES)
    for entry in open_data_set(folder).entries:
        assert entry.is_rejected == (entry.meta["num_faces"] < 500 or not entry.decision.accepted)
