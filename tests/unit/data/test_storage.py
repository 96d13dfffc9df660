import errno
import os
from pathlib import Path

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_train.data import storage
from kiss3d_train.data.shards import (
    ShardReader,
    append_shards,
    inspect,
    load_index,
    repair,
    verify,
    write_shards,
)
from kiss3d_train.data.storage import (
    UnreachableError,
    folder_at,
    name_of,
    parse_place,
    persistently,
)


@pytest.mark.parametrize(
    "text",
    ["pipe:cat /etc/passwd", "http://host/set", "PIPE:ls", "s3:/bucket", "zip://a.zip", "data:x"],
)
def test_other_addresses_than_the_known_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="data is not read from"):
        folder_at(text)


def test_an_address_without_a_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="names no bucket"):
        parse_place("s3://")


def test_paths_and_file_addresses_are_paths() -> None:
    assert parse_place("runs/set") == Path("runs/set")
    assert parse_place("file:///data/a%20set") == Path("/data/a set")
    assert parse_place("S3://bucket/a/set/") == "s3://bucket/a/set"
    assert name_of("s3://bucket/a/set") == "set" and name_of(Path("a/set")) == "set"


@pytest.fixture(params=["path", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> storage.Place:
    return tmp_path / "set" if request.param == "path" else f"memory://{tmp_path.name}/set"


def test_a_file_is_read_whole_or_in_parts(place: storage.Place) -> None:
    folder = folder_at(place)
    assert folder.sizes() == {}
    with folder.writing("a.bin") as aside:
        aside.write_bytes(b"0123456789")
    assert folder.sizes() == {"a.bin": 10} and folder.size("a.bin") == 10
    assert folder.read("a.bin") == b"0123456789"
    assert folder.read_ranges("a.bin", [(1, 2), (6, 3), (9, 5)]) == [b"12", b"678", b"9"]
    with folder.fetched("a.bin") as path:
        assert path.read_bytes() == b"0123456789"
    folder.remove("a.bin")
    folder.remove("a.bin")
    with pytest.raises(FileNotFoundError):
        folder.read_ranges("a.bin", [(0, 1)])


def test_a_file_appears_only_when_it_is_whole(place: storage.Place) -> None:
    folder = folder_at(place)
    with folder.writing("a.bin") as aside:
        aside.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), folder.writing("a.bin") as aside:
        aside.write_bytes(b"half of the n")
        raise ZeroDivisionError
    assert folder.read("a.bin") == b"old" and folder.sizes() == {"a.bin": 3}


def test_a_full_disk_is_said_in_a_sentence(place: storage.Place) -> None:
    folder = folder_at(place)
    with pytest.raises(InputError, match="the disk is full"), folder.writing("a.bin"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert folder.sizes() == {}


def test_a_failing_request_is_repeated_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    answers = iter([TimeoutError(), ConnectionResetError(), b"data"])

    def request() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert persistently(request, "s3://bucket/x") == b"data"
    assert pauses == [0.5, 1.0]


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)

    def request() -> bytes:
        raise TimeoutError("too slow")

    with pytest.raises(UnreachableError, match="s3://bucket/x: TimeoutError: too slow"):
        persistently(request, "s3://bucket/x")
    assert len(pauses) == 5 and sum(pauses) > 15


@pytest.mark.parametrize(
    ("error", "told"), [(FileNotFoundError, FileNotFoundError), (PermissionError, InputError)]
)
def test_what_does_not_pass_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], told: type[Exception]
) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("it waited"))

    def request() -> bytes:
        raise error("no")

    with pytest.raises(told):
        persistently(request, "s3://bucket/x")


def test_a_data_set_lives_in_a_bucket(rendered: Path, tmp_path: Path, s3_server: None) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for path in sorted(rendered.iterdir())[: 2 * 9]:
        (some / path.name).write_bytes(path.read_bytes())
    place = "s3://bucket/sets/toys"
    folder = folder_at(place)
    with folder.writing("train-00000.tar") as left_by_a_kill:
        left_by_a_kill.write_bytes(b"half")
    written = write_shards(some, place, max_samples=3)
    assert written == write_shards(some, tmp_path / "local", max_samples=3)
    with pytest.raises(InputError, match="there is a data set already"):
        write_shards(some, place)
    assert (append_shards(rendered, place).added, append_shards(rendered, place).added) == (5, 0)
    lost, kept = load_index(place).of("train")[:2]
    folder.remove(lost.name)
    with pytest.raises(InputError, match="a shard is missing"):
        verify(place)
    assert len(repair(place).dropped) == len(lost.samples)
    assert verify(place).of("train")[0] == kept
    assert ShardReader(place).num_samples("train") + ShardReader(place).num_samples("val") == 11
    assert sum(inspect(place, tmp_path / "sheet.png").licences.values()) == 11


def test_a_prefix_that_holds_something_else_is_refused(rendered: Path, tmp_path: Path) -> None:
    place = f"memory://{tmp_path.name}/thesis"
    with folder_at(place).writing("thesis.tex") as aside:
        aside.write_text("important")
    with pytest.raises(InputError, match="holds something else"):
        write_shards(rendered, place)
