import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiss3d_train.data.cache import DiskCache, read_checked
from kiss3d_train.data.storage import DamageError

WRITER = """
import sys
from pathlib import Path
from kiss3d_train.data.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), 5_000)
for number in range(150):
    key = f"{number % 40:02}{sys.argv[2]}"
    cache.put(key, key.encode() * 100)
    found = cache.get(f"{number // 2 % 40:02}{sys.argv[2]}")
    assert found is None or found == found[:3] * 100, found
"""


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*"))


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    for age, key in enumerate(["first", "second", "third"]):
        cache.put(key, bytes(300))
        os.utime(tmp_path / key[:2] / key, (age, age))
    assert cache.get("first") == bytes(300)  # used just now
    cache.put("fourth", bytes(300))
    assert {path.name for path in entries(tmp_path)} == {"first", "third", "fourth"}
    cache.put("fourth", bytes(300))
    assert len(entries(tmp_path)) == 3
    cache.put("too large", bytes(1001))
    assert cache.get("too large") is None


def test_the_limit_holds_for_several_processes(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "abc"
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    sizes = [path.stat().st_size for path in entries(tmp_path)]
    assert 0 < sum(sizes) <= 5_000 and set(sizes) == {300}


def test_a_cache_goes_on_where_a_kill_left_it(tmp_path: Path) -> None:
    DiskCache(tmp_path, 1000).put("whole", bytes(400))
    (tmp_path / "half.1.2.partial").write_bytes(bytes(5000))
    (tmp_path / ".total").write_text("")
    cache = DiskCache(tmp_path, 1000)
    cache.put("next", bytes(500))
    assert (cache.get("whole"), cache.get("next")) == (bytes(400), bytes(500))
    assert list(tmp_path.glob("*.partial")) == []


def test_a_damaged_entry_is_read_again_from_the_source(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    reads = []

    def read() -> list[bytes]:
        reads.append(1)
        return [b"right", b"!"]

    def is_right(parts: list[bytes]) -> bool:
        return b"".join(parts) == b"right!"

    def found() -> bytes:
        return b"".join(read_checked(read, is_right, "key", cache, "here"))

    assert (found(), found(), len(reads)) == (b"right!", b"right!", 1)
    entries(tmp_path)[0].write_bytes(b"wrong!")
    assert (found(), found(), len(reads)) == (b"right!", b"right!", 2)


def test_wrong_bytes_are_read_twice_before_they_count_as_damage() -> None:
    answers = [[b"torn"], [b"right"], [b"torn"], [b"torn"]]

    def read() -> list[bytes]:
        return answers.pop(0)

    def is_right(parts: list[bytes]) -> bool:
        return parts == [b"right"]

    assert read_checked(read, is_right, "key", None, "here") == [b"right"]
    with pytest.raises(DamageError, match=r"differ from the index \(here\)"):
        read_checked(read, is_right, "key", None, "here")


def test_what_is_gone_is_damage() -> None:
    def read() -> list[bytes]:
        raise FileNotFoundError(2, "no such file")

    with pytest.raises(DamageError, match="cannot be read: no such file"):
        read_checked(read, lambda parts: True, "key", None, "here")
