import dataclasses
import logging
import resource
from pathlib import Path

import pytest
import torch

from kiss3d_infer.errors import InputError
from kiss3d_train import checkpoint
from kiss3d_train.checkpoint import Best, BrokenCheckpointError, Identity
from kiss3d_train.engine import State

IDENTITY = Identity("base", "data", "encoder", ("attn.to_q", "attn.to_k"), 2, 2.0, 3, 4)


def state_of(value: float) -> State:
    names = ("a.lora_A.weight", "a.lora_B.weight")
    return {
        kind: {name: torch.full((2, 3), value + k) for name in names}
        for k, kind in enumerate(("weight", "exp_avg", "exp_avg_sq"))
    }


def save(folder: Path, step: int, keep: int = 10) -> Path:
    return checkpoint.save(folder, step, state_of(step), IDENTITY, "run-1", keep=keep)


def test_a_checkpoint_gives_back_everything(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.identity, loaded.tracking_run) == (7, IDENTITY, "run-1")
    for kind, tensors in state_of(7).items():
        for name, tensor in tensors.items():
            assert torch.equal(loaded.state[kind][name], tensor)


def test_only_the_newest_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for step in (5, 10, 900, 1000):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000900", "step-00001000"]


def test_the_best_is_kept_beyond_the_newest(tmp_path: Path) -> None:
    best = None
    for step in (1, 2, 3, 4, 5):
        best = Best(2, 0.5) if step == 2 else best
        checkpoint.save(tmp_path, step, state_of(step), IDENTITY, "run-1", keep=2, best=best)
    kept = ["step-00000002", "step-00000004", "step-00000005"]
    assert sorted(p.name for p in tmp_path.iterdir()) == kept
    assert checkpoint.best_at(tmp_path, 5) == Best(2, 0.5)
    assert checkpoint.best_at(tmp_path, 1) is None
    better = Best(6, 0.25)
    checkpoint.save(tmp_path, 6, state_of(6), IDENTITY, "run-1", keep=2, best=better)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (path / "state.json").write_text("broken")
    assert checkpoint.load(save(tmp_path, 7)).step == 7


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "moments.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "altered", "truncated"])
def test_a_broken_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with caplog.at_level(logging.WARNING):
        found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-00000002 is broken" in caplog.text
    with pytest.raises(BrokenCheckpointError):
        checkpoint.load(tmp_path / "step-00000002")


def test_an_unfinished_write_is_invisible(tmp_path: Path) -> None:
    state = state_of(1)
    state["exp_avg"]["a"] = "not a tensor"  # type: ignore[assignment]
    with pytest.raises(Exception):  # noqa: B017
        checkpoint.save(tmp_path, 1, state, IDENTITY, None, keep=1)
    assert not list(tmp_path.iterdir())
    assert checkpoint.load_newest(tmp_path) is None


@pytest.mark.parametrize("size", [100, 500])  # within the weights; behind the tensors
def test_a_disk_that_is_full_costs_the_new_checkpoint_only(tmp_path: Path, size: int) -> None:
    before = save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # writing fails as on a full disk
    try:
        with pytest.raises(InputError, match=r"step 2 cannot be written: .*free space"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [before]
    newest = checkpoint.load_newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_another_run_is_refused_by_naming_what_differs() -> None:
    other = dataclasses.replace(IDENTITY, rank=8, data="other")
    with pytest.raises(InputError) as caught:
        checkpoint.require_same(IDENTITY, other, Path("somewhere"))
    assert "data was data and is now other" in str(caught.value)
    assert "rank was 2 and is now 8" in str(caught.value)
    assert "base" not in str(caught.value)
    checkpoint.require_same(IDENTITY, IDENTITY, Path("somewhere"))
