from pathlib import Path

import pytest
import torch

from kiss3d_infer.bundle import Bundle, save_bundle
from kiss3d_infer.reconstruct.settings import ReconstructSettings
from kiss3d_infer.serve.assets import BUNDLE, AssetStore, new_task_id
from kiss3d_infer.serve.stages import make_mesh
from kiss3d_infer.serve.store import Task, TaskStore


@pytest.fixture
def assets(tmp_path: Path) -> AssetStore:
    return AssetStore(tmp_path / "assets")


def claimed(tmp_path: Path, **request: object) -> Task:
    store = TaskStore(tmp_path / "tasks.sqlite3")
    store.add(new_task_id(), "bundle_to_mesh", {"settings": {}} | request, max_queued=1)
    task = store.claim()
    assert task
    return task


def test_noise_is_no_bundle_and_its_figures_are_kept(tmp_path: Path, assets: AssetStore) -> None:
    task = claimed(tmp_path, force=False)
    noise = torch.rand(3, 128, 256, generator=torch.Generator().manual_seed(0))
    save_bundle(Bundle(noise), assets.path(task.id, BUNDLE))
    stages: list[str] = []
    result = make_mesh(
        task,
        lambda stage, _: stages.append(stage),
        defaults=ReconstructSettings(),
        device="cpu",
        assets=assets,
    )
    assert result.problem and result.problem.startswith("the bundle fails validation: ")
    assert result.measurements["bundle/unit_normal_error"] > 0.1
    assert stages == ["validate"]
    assert assets.names(task.id) == [BUNDLE]
