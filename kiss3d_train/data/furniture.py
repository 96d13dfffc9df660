"""Fetches the Sweet Home 3D furniture libraries: 820 models under CC0 and CC-BY.

Debian ships them as the package `sweethome3d-furniture`; apt downloads and checks it, nothing is
installed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writable_folder, writing

PACKAGE = "sweethome3d-furniture"
_LIBRARIES = Path("usr/share/sweethome3d/furniture")
_COPYRIGHT = Path("usr/share/doc") / PACKAGE / "copyright"
_TIMEOUT_SECONDS = 600
_BY_HAND = (
    f"fetch the Debian package {PACKAGE} on a machine that can, unpack it with 'dpkg-deb -x', "
    "and give its .sh3f files to 'kiss3d data render --source'"
)


def fetch_furniture(out: Path) -> list[Path]:
    """Place the five furniture libraries and a NOTICE of their licences in a folder.

    Args:
        out: the folder; files of the same name are replaced.

    Returns:
        The libraries.

    Raises:
        InputError: apt or dpkg-deb is missing, or the package cannot be downloaded.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"fetching needs {tool}, which is not here", fix=_BY_HAND)
    writable_folder(out)
    with tempfile.TemporaryDirectory(prefix="kiss3d-furniture-") as name:
        folder = Path(name)
        # apt drops its privileges to a user of its own for downloading.
        folder.chmod(0o755)
        _download(folder)
        archive = next(folder.glob("*.deb"))
        _run(["dpkg-deb", "-x", archive.name, "unpacked"], folder)
        unpacked = folder / "unpacked"
        libraries = []
        for library in sorted((unpacked / _LIBRARIES).glob("*.sh3f")):
            with writing(out / library.name) as aside:
                shutil.copyfile(library, aside)
            libraries.append(out / library.name)
        with writing(out / "NOTICE") as aside:
            shutil.copyfile(unpacked / _COPYRIGHT, aside)
    if not libraries:
        raise InputError(f"the package {PACKAGE} holds no .sh3f libraries any more", fix=_BY_HAND)
    return libraries


def _download(folder: Path) -> None:
    """Download the package; refresh the package lists and try again if they are out of date."""
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
    try:
        _run(download, folder)
    except InputError:
        _run(["apt-get", "-q", "update"], folder)
        _run(download, folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"'{' '.join(command[:1])}' did not finish in {_TIMEOUT_SECONDS} s", fix=_BY_HAND
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"cannot get {PACKAGE}: {reason}", fix=_BY_HAND)
