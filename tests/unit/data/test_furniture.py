import os
import stat
from pathlib import Path

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_train.data.furniture import fetch_furniture

UNPACK = """
mkdir -p unpacked/usr/share/sweethome3d/furniture unpacked/usr/share/doc/sweethome3d-furniture
echo zip > unpacked/usr/share/sweethome3d/furniture/B.sh3f
echo zip > unpacked/usr/share/sweethome3d/furniture/A.sh3f
echo CC-BY > unpacked/usr/share/doc/sweethome3d-furniture/copyright
"""


def _tool(folder: Path, name: str, script: str) -> None:
    """A program of that name, first in PATH: the network's edge."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    _tool(tmp_path / "bin", "dpkg-deb", UNPACK)
    return tmp_path / "bin"


def test_libraries_and_licences_are_placed(tools: Path, tmp_path: Path) -> None:
    _tool(tools, "apt-get", "touch sweethome3d-furniture_1_all.deb")
    out = tmp_path / "out"
    assert fetch_furniture(out) == [out / "A.sh3f", out / "B.sh3f"]
    assert (out / "NOTICE").read_text() == "CC-BY\n"
    assert sorted(path.name for path in out.iterdir()) == ["A.sh3f", "B.sh3f", "NOTICE"]


def test_outdated_package_lists_are_refreshed(tools: Path, tmp_path: Path) -> None:
    flag = tmp_path / "updated"
    script = f'case "$*" in *update*) touch {flag};; *) [ -e {flag} ] && touch x.deb;; esac'
    _tool(tools, "apt-get", script)
    assert len(fetch_furniture(tmp_path / "out")) == 2


def test_being_offline_is_said_plainly(tools: Path, tmp_path: Path) -> None:
    _tool(tools, "apt-get", "echo 'E: Temporary failure resolving deb.debian.org' >&2; exit 100")
    with pytest.raises(InputError, match="Temporary failure resolving") as error:
        fetch_furniture(tmp_path / "out")
    assert "dpkg-deb -x" in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_machine_without_apt_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs apt-get"):
        fetch_furniture(tmp_path / "out")
