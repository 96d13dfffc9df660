import errno
import fcntl
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import (
    check_writable,
    locked,
    sha256_of,
    writable_folder,
    writing,
    writing_folder,
)


def test_file_appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with writing(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
        assert aside.suffix == ".txt"
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writing_keeps_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), writing(path) as aside:
        aside.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the folder"):
        writable_folder(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot write to the folder"):
        writable_folder(Path("/proc/kiss3d"))


def test_a_folder_is_held_by_one_job(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code = "from pathlib import Path; from kiss3d_infer.files import locked; "
    code += f"locked(Path({str(folder)!r})).__enter__()"
    with locked(folder):
        with pytest.raises(InputError, match=r"another job is working here .*out"), locked(folder):
            pass
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another job is working here" in other.stderr
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with locked(folder):  # the lock of a process that is gone is gone
        pass


def test_work_goes_on_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        pass


def test_checksum_of_bytes_and_file_agree(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(b"abc") == sha256_of(tmp_path / "a") == known


def test_input_error_keeps_its_parts_across_processes() -> None:
    error = pickle.loads(pickle.dumps(InputError("bad", where=Path("a"), fix="mend it")))  # noqa: S301
    assert str(error) == "bad (a): mend it"


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(InputError, match="folder of that name"):
        check_writable(tmp_path / "folder.glb")
    for length in (240, 300):  # of a name that can be looked for, and of one that cannot
        with pytest.raises(InputError, match="too long"):
            check_writable(tmp_path / ("x" * length + ".glb"))
    check_writable(tmp_path / "new" / "asset.glb")


def test_a_folder_replaces_another_only_where_it_may_and_when_it_is_whole(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with writing_folder(made) as aside:
        (aside / "first").touch()
    with pytest.raises(InputError, match="exists already"), writing_folder(made):
        pass
    with pytest.raises(ZeroDivisionError), writing_folder(made, replaces=True):
        raise ZeroDivisionError
    assert [path.name for path in made.iterdir()] == ["first"]
    with writing_folder(made, replaces=True) as aside:
        (aside / "second").touch()
    assert [path.name for path in made.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_folder_that_made_way_for_nothing_is_kept_until_the_next_is_whole(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with writing_folder(made) as aside:
        (aside / "first").touch()
    with pytest.raises(FileNotFoundError), writing_folder(made, replaces=True) as aside:
        shutil.rmtree(aside)
    assert [path.name for path in tmp_path.glob(".*/*")] == ["first"]
    with writing_folder(made, replaces=True) as aside:
        (aside / "second").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "second"]
