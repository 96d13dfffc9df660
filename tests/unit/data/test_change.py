import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_train.data.shards import (
    SPLITS,
    ShardReader,
    append_shards,
    change,
    load_index,
    repair,
    verify,
    write_shards,
)

APPEND = """
import resource, signal, sys
from pathlib import Path
from kiss3d_train.data.shards import append_shards
limit = int(sys.argv[3])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
append_shards(Path(sys.argv[1]), Path(sys.argv[2]), max_samples=2)
"""


@pytest.fixture
def grown(rendered: Path, tmp_path: Path) -> Path:
    """A data set of the first 8 of 14 rendered samples."""
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(rendered.iterdir())[: 2 * 8]:
        shutil.copy(path, some)
    write_shards(some, tmp_path / "shards", max_samples=3, val_share=0.2)
    return tmp_path / "shards"


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def keys(folder: Path) -> list[str]:
    reader = ShardReader(folder)
    return sorted(reader.key(s, i) for s in SPLITS for i in range(reader.num_samples(s)))


def test_an_append_adds_tars_and_keeps_the_old_ones(rendered: Path, grown: Path) -> None:
    before, old = load_index(grown), tars(grown)
    done = append_shards(rendered, grown, max_samples=4, val_share=0.2)
    assert (done.added, done.skipped) == (6, 8)
    assert old.items() < tars(grown).items()
    after = verify(grown)
    assert after == done.index and after.parents == (before.digest,)
    assert after.shards[: len(before.shards)] == before.shards
    assert keys(grown) == sorted(path.stem for path in rendered.glob("*.json"))


def test_an_appended_sample_is_in_the_split_that_it_would_have_been_in(
    rendered: Path, grown: Path, tmp_path: Path
) -> None:
    append_shards(rendered, grown, val_share=0.2)
    at_once = write_shards(rendered, tmp_path / "at once", val_share=0.2)
    splits = [
        {sample.key: shard.split for shard in index.shards for sample in shard.samples}
        for index in (load_index(grown), at_once)
    ]
    assert splits[0] == splits[1]


def test_appending_again_changes_nothing(rendered: Path, grown: Path) -> None:
    append_shards(rendered, grown)
    before = (grown / "index.json").read_bytes()
    assert append_shards(rendered, grown).added == 0
    assert (grown / "index.json").read_bytes() == before


def test_samples_of_another_tile_size_are_not_appended(
    rendered: Path, grown: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(rendered, tmp_path / "other"))
    for path in other.glob("*.json"):
        path.write_text(path.read_text().replace('"tile": 24', '"tile": 48'))
    with pytest.raises(InputError, match="another layout or tile size"):
        append_shards(other, grown)


def test_two_jobs_do_not_change_a_data_set_at_once(
    rendered: Path, grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = change.pack

    def interfering(*arguments: object, **options: object) -> object:
        with pytest.raises(InputError, match="another job is working here"):
            repair(grown)
        return pack(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(change, "pack", interfering)
    assert append_shards(rendered, grown).added == 6


@pytest.mark.parametrize("fault", ["killed", "disk full"])
def test_an_append_that_was_cut_short_is_done_by_the_next(
    rendered: Path, grown: Path, fault: str
) -> None:
    before = (grown / "index.json").read_bytes()
    limit = 4096 if fault == "disk full" else 0
    job = subprocess.Popen(
        [sys.executable, "-c", APPEND, str(rendered), str(grown), str(limit)],
        stderr=subprocess.PIPE,
    )
    if fault == "killed":
        first_new = grown / "train-00003.tar"
        while not list(grown.glob("*.partial*")) and not first_new.exists() and job.poll() is None:
            time.sleep(0.001)
        job.send_signal(signal.SIGKILL)
    _, said = job.communicate()
    if fault == "disk full":
        assert b"the disk is full" in said and job.returncode == 1
    if (grown / "index.json").read_bytes() == before:  # else it was done before the signal came
        assert len(keys(grown)) == 8
    append_shards(rendered, grown, max_samples=2)
    verify(grown)
    assert keys(grown) == sorted(path.stem for path in rendered.glob("*.json"))
    assert list(grown.glob(".*.partial*")) == []


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_a_repair_drops_what_is_damaged_and_says_why(grown: Path) -> None:
    index = load_index(grown)
    bitten, lost, sound = index.of("train")[0], index.of("train")[1], index.of("val")[0]
    flip(grown / bitten.name, bitten.samples[1].members["json"][0])
    (grown / lost.name).unlink()
    untouched = (grown / sound.name).read_bytes()
    done = repair(grown)
    assert {gone.key for gone in done.dropped} == {
        bitten.samples[1].key,
        *(sample.key for sample in lost.samples),
    }
    reasons = {gone.key: gone.reason for gone in done.dropped}
    assert "differ from the index" in reasons[bitten.samples[1].key]
    assert reasons[lost.samples[0].key] == "its shard is missing"
    assert bitten.samples[1].key in str(done)
    assert done.replaced == (bitten.name, lost.name)
    assert (grown / sound.name).read_bytes() == untouched
    assert not (grown / bitten.name).exists()
    assert verify(grown).parents == (index.digest,)
    assert len(keys(grown)) == 8 - len(done.dropped)


def test_a_cut_tar_keeps_the_samples_before_the_cut(grown: Path) -> None:
    shard = load_index(grown).of("train")[0]
    cut = shard.samples[2].members["json"][0]
    path = grown / shard.name
    path.write_bytes(path.read_bytes()[:cut])
    assert [gone.key for gone in repair(grown).dropped] == [shard.samples[2].key]
    verify(grown)


def test_damage_between_the_samples_costs_none(grown: Path) -> None:
    shard = load_index(grown).of("train")[0]
    flip(grown / shard.name, 0)  # the name of the first member
    done = repair(grown)
    assert done.dropped == () and done.replaced == (shard.name,)
    verify(grown)


def test_a_sound_data_set_needs_no_repair_but_loses_tars_that_nothing_names(grown: Path) -> None:
    before = {path.name: path.read_bytes() for path in grown.iterdir()}
    (grown / "train-00077.tar").write_bytes(b"left by a job that was killed")
    (grown / "notes.txt").write_text("mine")
    done = repair(grown)
    assert done.dropped == () and done.replaced == ()
    left = {path.name: path.read_bytes() for path in grown.iterdir() if path.name != ".lock"}
    assert left == before | {"notes.txt": b"mine"}


def test_an_interrupted_repair_leaves_the_data_set_as_it_was(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = load_index(grown).of("train")[0]
    flip(grown / shard.name, shard.samples[0].members["json"][0])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(change, "publish_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair(grown)
    assert ShardReader(grown).read_at("train", 0, 1)
    monkeypatch.undo()
    assert len(repair(grown).dropped) == 1
    verify(grown)
    assert {path.name for path in grown.glob("*.tar")} == {s.name for s in load_index(grown).shards}


def test_a_shard_that_may_not_be_opened_is_not_taken_for_damaged(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = tars(grown), Path.open

    def refusing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".tar":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    for job in (verify, repair):
        with pytest.raises(InputError, match="cannot be opened: Permission denied"):
            job(grown)
    monkeypatch.undo()
    assert tars(grown) == before and verify(grown).parents == ()


def test_a_data_set_without_a_sound_sample_is_not_emptied(grown: Path) -> None:
    for path in grown.glob("*.tar"):
        path.unlink()
    with pytest.raises(InputError, match="no sample is sound"):
        repair(grown)
    assert (grown / "index.json").exists()


def test_the_whole_disk_may_be_full_while_a_set_is_written(rendered: Path, tmp_path: Path) -> None:
    script = APPEND.replace("append_shards", "write_shards")
    out = tmp_path / "shards"
    command = [sys.executable, "-c", script, str(rendered), str(out), "4096"]
    said = subprocess.run(command, capture_output=True, check=False).stderr
    assert b"the disk is full" in said and not out.exists()
    assert list(tmp_path.glob(".*partial*")) == []
    write_shards(rendered, out)
    verify(out)
