"""The files of each task: one folder per task, a fixed set of names."""

import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kiss3d_infer.files import writable_folder

BUNDLE: Final = "bundle.png"
MESH: Final = "asset.glb"
MEDIA_TYPES: Final = {BUNDLE: "image/png", MESH: "model/gltf-binary"}
"""Every file a task can have, and its media type; no other name is ever looked up."""

_TASK_ID = re.compile(r"[0-9a-f]{32}")


def new_task_id() -> str:
    """An id that cannot be guessed: 128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


class AssetStore:
    """Task folders below one root.

    A path is built only from an id of our own form and a name of our own list, so no request can
    reach outside the root.
    """

    def __init__(self, root: Path) -> None:
        """Use `root`, creating it if needed.

        Raises:
            InputError: the folder cannot be created or written.
        """
        self._root = writable_folder(root)

    def path(self, task_id: str, name: str) -> Path:
        """Where a file of a task belongs; write it with `files.writing`.

        Raises:
            KeyError: the id or the name is not one of ours.
        """
        if not _TASK_ID.fullmatch(task_id) or name not in MEDIA_TYPES:
            raise KeyError(f"{task_id}/{name}")
        return self._root / task_id / name

    def names(self, task_id: str) -> list[str]:
        """The files that a task has, in the order they are made."""
        return [name for name in MEDIA_TYPES if self.path(task_id, name).is_file()]

    def remove(self, task_id: str) -> None:
        """Delete a task's folder, if there is one."""
        shutil.rmtree(self.path(task_id, BUNDLE).parent, ignore_errors=True)

    def num_bytes(self, task_id: str) -> int:
        """The size of all files of a task."""
        return sum(self.path(task_id, name).stat().st_size for name in self.names(task_id))

    def over_budget(
        self, oldest_first: Iterable[str], *, max_bytes: int, max_tasks: int
    ) -> list[str]:
        """The ids to drop so that the newest rest is at most `max_tasks` within `max_bytes`."""
        ids = list(oldest_first)
        kept_bytes = 0
        for kept_tasks, task_id in enumerate(reversed(ids), start=1):
            kept_bytes += self.num_bytes(task_id)
            if kept_bytes > max_bytes or kept_tasks > max_tasks:
                return ids[: len(ids) - kept_tasks + 1]
        return []
