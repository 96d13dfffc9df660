from functools import partial
from pathlib import Path

import pytest
import torch

from kiss3d_infer.bundle import Bundle, save_bundle
from kiss3d_infer.reconstruct.settings import ReconstructSettings
from kiss3d_infer.serve.assets import BUNDLE, AssetStore, new_task_id
from kiss3d_infer.serve.stages import make_mesh, run_stage
from kiss3d_infer.serve.store import TaskStore


@pytest.mark.parametrize(
    ("task_type", "remedy"),
    [
        ("text_to_3d", "try another seed or more steps, or force it to go on regardless"),
        ("bundle_to_mesh", "give another bundle, or force it to go on regardless"),
    ],
)
def test_noise_is_no_bundle_and_the_client_learns_why_but_no_path(
    tmp_path: Path, assets: AssetStore, task_type: str, remedy: str
) -> None:
    store = TaskStore(tmp_path / "tasks.sqlite3")
    store.add(new_task_id(), task_type, {"settings": {}, "force": False}, max_queued=1)
    task = store.claim()
    assert task
    noise = torch.rand(3, 128, 256, generator=torch.Generator().manual_seed(0))
    save_bundle(Bundle(noise), assets.path(task.id, BUNDLE))
    work = partial(make_mesh, defaults=ReconstructSettings(), device="cpu", assets=assets)
    result = run_stage(store, task, work)
    assert result.problem and result.problem.startswith("the bundle fails validation: ")
    assert result.problem.endswith(remedy)
    assert str(tmp_path) not in result.problem
    after = store.get(task.id)
    assert after and after.stage == "validate"
    assert assets.names(task.id) == [BUNDLE]
