from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kiss3d_infer.bundle import Bundle, save_bundle
from kiss3d_infer.flux import sampling
from kiss3d_infer.flux.models import Drawing
from kiss3d_infer.reconstruct.settings import ReconstructSettings
from kiss3d_infer.serve.assets import BUNDLE, AssetStore, new_task_id
from kiss3d_infer.serve.stages import generate, make_mesh, run_stage
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


def test_a_prompt_is_drawn_as_the_model_says_where_the_task_says_nothing(
    tmp_path: Path, assets: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def draw(pipeline: object, prompt: str, **how: Any) -> Bundle:
        asked.update(how, prompt=prompt)
        return Bundle(torch.ones(3, 32, 64))

    monkeypatch.setattr(sampling, "generate_bundle", draw)
    store = TaskStore(tmp_path / "tasks.sqlite3")
    request = {"type": "text_to_3d", "prompt": "a red chair", "steps": 7, "seed": 3}
    store.add(new_task_id(), "text_to_3d", request, max_queued=1)
    task = store.claim()
    assert task
    drawing = Drawing(tile=128, steps=12, guidance=1.0, cfg_scale=2.0)
    work = partial(generate, pipeline=object(), drawing=drawing, assets=assets)
    assert run_stage(store, task, work).problem is None
    wanted = {"prompt": "a red chair", "seed": 3, "tile": 128, "steps": 7}
    assert asked | wanted | {"guidance": 1.0, "cfg_scale": 2.0} == asked
