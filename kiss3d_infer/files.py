"""Files that are either whole or absent: writing aside, renaming, and checksums."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiss3d_infer.errors import InputError

LOCK_NAME = ".lock"
"""Left in a folder that a job has worked in; it means nothing once the job has ended."""
_CHUNK_BYTES = 1 << 20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_NAME = 200
"""Bytes; file systems allow 255, and the name aside is longer."""


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that becomes `path` when the block succeeds.

    A crash, an exception or Ctrl-C leaves whatever stood at `path` before; a reader never sees half
    a file. The temporary name keeps the suffix, because many writers choose the format by it.

    Raises:
        InputError: the folder cannot be created or written, or the disk is full.
    """
    folder = writable_folder(path.parent)
    aside = folder / f".{path.stem}.{os.getpid()}.{os.urandom(3).hex()}.partial{path.suffix}"
    try:
        with explaining_full_disk(path):
            yield aside
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing_folder(path: Path, *, replaces: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block succeeds, and goes otherwise.

    Args:
        path: the folder to make.
        replaces: an earlier one makes way at the end; otherwise there must be none.

    Raises:
        InputError: `path` exists, its folder cannot be written, or the disk is full.
    """
    if path.exists() and not replaces:
        raise InputError("it exists already", where=path, fix="choose another folder or delete it")
    aside = writable_folder(path.parent) / f".{path.name}.partial"
    before = aside.with_suffix(".before")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with explaining_full_disk(path):
            aside.mkdir()
            yield aside
            if replaces and path.exists():
                shutil.rmtree(before, ignore_errors=True)  # of an attempt that was killed
                path.rename(before)
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():  # else it is all that there is
            shutil.rmtree(before, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what `writing` left in a folder where it was killed; for its only user."""
    for half_written in folder.glob(".*.partial.*"):
        half_written.unlink(missing_ok=True)


@contextmanager
def explaining_full_disk(where: object) -> Iterator[None]:
    """Say in a sentence that there is no space left."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InputError(
            f"the disk is full: {error.strerror}",
            where=where,
            fix="free some space, then run the same again",
        ) from error


def check_writable(path: Path) -> None:
    """Refuse, before any work, a file that could not be written at its end.

    Raises:
        InputError: it is a folder, its name is too long, or its folder cannot be written.
    """
    # First the length: looking for a name that no file can have is an error of its own.
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise InputError("the file's name is too long", where=path.parent, fix="shorten it")
    if (writable_folder(path.parent) / path.name).is_dir():
        raise InputError("there is a folder of that name", where=path, fix="name a file")


def writable_folder(path: Path) -> Path:
    """Create the folder if needed and return it.

    Raises:
        InputError: it cannot be created, is a file, or cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the folder: {error.strerror}",
            where=path,
            fix="choose a folder you may write to, or free some space",
        ) from error
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if needed, for one job: until the block or the process ends.

    Raises:
        InputError: another job holds it, or it cannot be written.
    """
    with (writable_folder(folder) / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another job is working here", where=folder, fix="wait until it ends, or stop it"
            ) from error
        except OSError as error:
            # Some shared file systems have no locks; work goes on there without.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield


def sha256_of(data: bytes | Path) -> str:
    """Hexadecimal SHA-256 of bytes, or of a file's content read in pieces."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    with data.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
