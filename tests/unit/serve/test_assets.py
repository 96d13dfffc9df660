from pathlib import Path

import pytest

from kiss3d_infer.serve.assets import BUNDLE, MESH, AssetStore, new_task_id


def put(assets: AssetStore, task_id: str, name: str, size: int) -> None:
    path = assets.path(task_id, name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)


@pytest.mark.parametrize(
    ("task_id", "name"),
    [
        ("..", BUNDLE),
        ("a" * 31, BUNDLE),
        ("a" * 32 + "\n", BUNDLE),
        ("../" + "a" * 29, BUNDLE),
        ("A" * 32, BUNDLE),
        ("a" * 32, "../tasks.sqlite3"),
        ("a" * 32, "/etc/passwd"),
        ("a" * 32, "bundle.png\0"),
        ("a" * 32, ""),
    ],
)
def test_only_our_ids_and_names_have_a_path(tmp_path: Path, task_id: str, name: str) -> None:
    with pytest.raises(KeyError):
        AssetStore(tmp_path).path(task_id, name)


def test_the_files_of_a_task_are_named_once_written_and_gone_once_removed(tmp_path: Path) -> None:
    assets, task_id = AssetStore(tmp_path), new_task_id()
    assert assets.names(task_id) == []
    put(assets, task_id, MESH, 10)
    put(assets, task_id, BUNDLE, 5)
    assert assets.names(task_id) == [BUNDLE, MESH]
    assert assets.num_bytes(task_id) == 15
    assets.remove(task_id)
    assets.remove(task_id)
    assert assets.names(task_id) == []


def test_the_oldest_tasks_go_when_files_or_tasks_are_too_many(tmp_path: Path) -> None:
    assets = AssetStore(tmp_path)
    ids = [new_task_id() for _ in range(4)]
    for task_id in ids:
        put(assets, task_id, MESH, 100)
    assert assets.over_budget(ids, max_bytes=400, max_tasks=4) == []
    assert assets.over_budget(ids, max_bytes=399, max_tasks=4) == ids[:1]
    assert assets.over_budget(ids, max_bytes=400, max_tasks=2) == ids[:2]
