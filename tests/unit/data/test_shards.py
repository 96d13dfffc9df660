import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from kiss3d_infer.bundle.image import load_bundle
from kiss3d_infer.errors import InputError
from kiss3d_train.data.shards import (
    SPLITS,
    ShardReader,
    decode_sample,
    inspect,
    load_index,
    verify,
    write_shards,
)
from kiss3d_train.data.shards.index import digest_of
from kiss3d_train.data.shards.writer import write_shard
from kiss3d_train.data.storage import LocalFolder


@pytest.fixture
def shards(rendered: Path, tmp_path: Path) -> Path:
    write_shards(rendered, tmp_path / "shards", max_samples=4, val_share=0.2)
    return tmp_path / "shards"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_sample_is_in_exactly_one_split(rendered: Path, shards: Path) -> None:
    reader = ShardReader(shards)
    keys = [reader.key(s, i) for s in SPLITS for i in range(reader.num_samples(s))]
    assert sorted(keys) == sorted(path.stem for path in rendered.glob("*.json"))
    assert reader.num_samples("val") >= 1
    assert max(reader.index.counts("train")) <= 4 and len(reader.index.counts("train")) >= 3


def test_reading_returns_the_rendered_pixels_and_description(rendered: Path, shards: Path) -> None:
    reader = ShardReader(shards)
    for index in range(reader.num_samples("train")):
        bundle, meta = decode_sample(reader.read("train", index))
        original = load_bundle(rendered / f"{meta['key']}.bundle.png")
        assert bundle.image.equal(original.image) and bundle.layout == original.layout
        before = json.loads((rendered / f"{meta['key']}.json").read_bytes())
        assert {k for k in meta if meta[k] != before[k]} == {"bundle_sha256"}


def test_the_same_samples_give_the_same_bytes(rendered: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(rendered, tmp_path / name, image_format="png")
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")


def test_a_split_is_kept_when_samples_are_added(rendered: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(rendered.iterdir())[: 2 * 9]:
        shutil.copy(path, some)
    splits = []
    for folder in (some, rendered):
        index = write_shards(folder, tmp_path / f"{folder.name}-shards", val_share=0.4)
        samples = {s.key: shard.split for shard in index.shards for s in shard.samples}
        splits.append(samples)
    assert splits[0].items() <= splits[1].items()


def test_shards_are_bounded_in_bytes(rendered: Path, tmp_path: Path) -> None:
    index = write_shards(rendered, tmp_path / "shards", max_bytes=8_000)
    assert len(index.of("train")) > 2
    for shard in index.shards:
        size = sum(size for s in shard.samples for _, size in s.members.values())
        assert size <= 8_000 or len(shard.samples) == 1


def test_plain_webdataset_reads_them_without_pickle(shards: Path) -> None:
    def images_and_json(key: str, data: bytes) -> object:
        if key.endswith(".json"):
            return json.loads(data)
        assert key.endswith(".webp")
        return wds.autodecode.imagehandler("rgb8")(".webp", data)

    tars = sorted(str(path) for path in shards.glob("train-*.tar"))
    dataset = wds.WebDataset(tars, shardshuffle=False).map(
        lambda sample: {
            k: images_and_json(f".{k}", v) if isinstance(v, bytes) else v for k, v in sample.items()
        }
    )
    samples = {sample["__key__"]: sample for sample in dataset}
    reader = ShardReader(shards)
    assert set(samples) == {reader.key("train", i) for i in range(reader.num_samples("train"))}
    bundle, meta = decode_sample(reader.read("train", 0))
    twin = samples[meta["key"]]
    assert np.array_equal(np.asarray(bundle.to_pil()), twin["bundle.webp"])
    assert twin["json"] == meta


def test_a_reader_can_be_sent_to_another_process(shards: Path) -> None:
    reader = ShardReader(shards)
    first = reader.read("train", 0)
    assert pickle.loads(pickle.dumps(reader)).read("train", 0) == first  # noqa: S301


def test_reading_many_shards_keeps_no_file_open(rendered: Path, tmp_path: Path) -> None:
    write_shards(rendered, tmp_path / "shards", max_samples=1)
    reader = ShardReader(tmp_path / "shards")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for index in range(reader.num_samples("train")):
        reader.read("train", index)
    assert len(reader.index.of("train")) > 5
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_sound_data_set_is_verified(shards: Path) -> None:
    assert verify(shards) == load_index(shards)


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_a_changed_byte_is_found(shards: Path) -> None:
    index = load_index(shards)
    shard = index.of("train")[0]
    offset, size = shard.samples[1].members["bundle.webp"]
    _flip(shards / shard.name, offset + size // 2)
    with pytest.raises(InputError, match=f"checksum of {shard.name} differs") as error:
        verify(shards)
    assert f"{shard.name}:{shard.samples[1].key}" in str(error.value)
    assert shard.samples[0].key not in str(error.value)
    reader = ShardReader(shards)
    reader.read_at("train", 0, 0)
    with pytest.raises(InputError, match="differ from the index") as error:
        reader.read_at("train", 0, 1)
    assert shard.samples[1].key in str(error.value)


@pytest.mark.parametrize("size", [0, 1000])
def test_an_empty_or_truncated_tar_is_refused(shards: Path, size: int) -> None:
    path = shards / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:size])
    message = "empty" if size == 0 else "1000 bytes long"
    with pytest.raises(InputError, match=message):
        verify(shards)
    with pytest.raises(InputError, match=message):
        ShardReader(shards)


def test_a_missing_shard_is_refused(shards: Path) -> None:
    (shards / "train-00000.tar").unlink()
    with pytest.raises(InputError, match="missing"):
        ShardReader(shards)
    with pytest.raises(InputError, match="missing"):
        verify(shards)


def test_a_non_image_is_named(rendered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    shutil.copytree(rendered, folder)
    path = sorted(folder.glob("*.json"))[3]
    meta = json.loads(path.read_bytes())
    text = b"this is no image"
    (folder / f"{meta['key']}.bundle.png").write_bytes(text)
    with pytest.raises(InputError, match="not the one described") as error:
        write_shards(folder, tmp_path / "shards", image_format="png")
    assert meta["key"] in str(error.value) and not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("bundle.webp", b"this is no image", "no readable image"),
        ("json", b"3", "no description with a caption"),
        ("json", b"[]", "no description with a caption"),
        ("json", b"[1]", "no description with a caption"),
        ("json", b"{}", "no description with a caption"),
        ("json", b"{", "no description with a caption"),
        ("json", b"\xff", "no description with a caption"),
    ],
)
def test_a_bad_member_in_a_shard_with_right_checksums_is_named(
    shards: Path, member: str, content: bytes, message: str
) -> None:
    key = _put(shards, {member: content})
    with pytest.raises(InputError, match=message) as error:
        verify(shards)
    assert f"train-00000.tar:{key}" in str(error.value)
    with pytest.raises(InputError, match=message) as error:
        inspect(shards, shards / "sheet.png")
    assert key in str(error.value)


def test_an_incomplete_sample_is_named() -> None:
    with pytest.raises(InputError, match="no image"):
        decode_sample({"json": b"{}"}, where="key")


def _put(shards: Path, changed: dict[str, bytes]) -> str:
    """Replace members of a sample, index and checksums included; returns its key."""
    index = load_index(shards)
    place = index.shards.index(index.of("train")[0])
    shard = index.shards[place]
    reader = ShardReader(shards)
    samples = [
        (sample.key, reader.read_at("train", 0, row)) for row, sample in enumerate(shard.samples)
    ]
    samples[1][1].update(changed)
    replaced = list(index.shards)
    replaced[place] = write_shard(LocalFolder(shards), shard.name, "train", samples)
    digest = digest_of(index.layout, replaced)
    whole = index.model_copy(update={"shards": tuple(replaced), "digest": digest})
    (shards / "index.json").write_text(whole.model_dump_json())
    return samples[1][0]


def test_a_partial_result_is_never_taken_for_a_whole_one(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kiss3d_train.data.shards.writer.digest_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(rendered, out)
    assert not out.exists() and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_shards(rendered, out)
    verify(out)


def test_writing_again_keeps_the_same_and_refuses_another(rendered: Path, shards: Path) -> None:
    before = _bytes(shards)
    write_shards(rendered, shards, max_samples=4, val_share=0.2)
    with pytest.raises(InputError, match="not empty"):
        write_shards(rendered, shards, max_samples=5)
    assert _bytes(shards) == before


def test_a_folder_without_samples_or_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data render"):
        write_shards(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="no data set"):
        ShardReader(tmp_path)


def test_mixed_tile_sizes_are_refused(rendered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rendered"
    shutil.copytree(rendered, folder)
    path = next(folder.glob("*.json"))
    meta = json.loads(path.read_bytes()) | {"tile": 48}
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="2 different layouts or tile sizes"):
        write_shards(folder, tmp_path / "out")


def test_an_index_of_another_version_is_refused(shards: Path) -> None:
    path = shards / "index.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 9', 1))
    with pytest.raises(InputError, match="version"):
        load_index(shards)


def test_an_index_cannot_name_files_elsewhere(shards: Path) -> None:
    path = shards / "index.json"
    path.write_text(path.read_text().replace("train-00000.tar", "../train-00000.tar"))
    with pytest.raises(InputError, match="name"):
        load_index(shards)


def test_inspection_counts_and_draws(shards: Path, tmp_path: Path) -> None:
    report = inspect(shards, tmp_path / "report" / "sheet.png")
    assert sum(report.categories.values()) == 14
    assert report.licences == {"CC0-1.0": 14}
    assert (tmp_path / "report" / "sheet.png").stat().st_size > 1000
    assert "furniture" in str(report)


def test_inspection_takes_shards_with_captions_alone(shards: Path, tmp_path: Path) -> None:
    _put(shards, {"json": b'{"caption": "a thing", "category": ["odd"]}'})
    report = inspect(shards, tmp_path / "sheet.png")
    assert report.licences == {"CC0-1.0": 13, "unknown": 1}
    assert report.categories["['odd']"] == 1


def test_a_contact_sheet_that_is_no_png_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contact sheet is a \.png file"):
        inspect(tmp_path / "nowhere", tmp_path / "sheet.txt")


def test_a_folder_that_holds_something_else_is_refused_before_packing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("important")
    with pytest.raises(InputError, match="holds something else"):
        write_shards(tmp_path / "nowhere", out)


def test_a_single_sample_is_for_training(rendered: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in sorted(rendered.iterdir())[:2]:
        shutil.copy(path, alone)
    index = write_shards(alone, tmp_path / "shards", val_share=1.0)
    assert (index.counts("train"), index.counts("val")) == ([1], [])


def test_an_unwritable_folder_is_refused(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to the folder"):
        write_shards(rendered, tmp_path / "file" / "shards")
