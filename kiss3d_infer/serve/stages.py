"""The work behind a task, stage by stage, without any notion of Ray or HTTP."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kiss3d_infer.bundle import BundleLayout, load_bundle, save_bundle, validate
from kiss3d_infer.errors import InputError
from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.reconstruct.pipeline import reconstruct
from kiss3d_infer.reconstruct.settings import ReconstructSettings
from kiss3d_infer.serve.assets import BUNDLE, MESH, AssetStore
from kiss3d_infer.serve.schema import MeshSettings, TextTo3D
from kiss3d_infer.serve.store import Task, TaskStoppedError, TaskStore

if TYPE_CHECKING:
    from diffusers import FluxPipeline

# Ray Serve writes this logger to the log file of the replica.
logger = logging.getLogger("ray.serve")

STAGES: Mapping[str, tuple[str, ...]] = {
    "text_to_3d": ("generate", "mesh"),
    "bundle_to_mesh": ("mesh",),
}
"""Task type -> the deployments that work on it, in order."""


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: well, with a problem the client should read, or stopped from outside."""

    measurements: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problem: str | None = None
    stopped: bool = False


def run_stage(
    store: TaskStore, task: Task, work: Callable[[Task, ProgressFn], StageResult]
) -> StageResult:
    """Run one stage with its progress written to the store.

    The store refuses the progress of a cancelled task, which ends the work between two steps.
    Errors become words here, because the client must never see a traceback nor wait for ever.
    """
    try:
        return work(task, lambda stage, fraction: store.report(task, stage, fraction))
    except TaskStoppedError:
        return StageResult(stopped=True)
    except InputError as error:
        return StageResult(problem=str(error))
    except Exception as error:
        logger.exception("task %s failed", task.id)
        kind = type(error).__name__
        return StageResult(problem=f"internal error ({kind}); the server's log tells more")


def generate(
    task: Task,
    report: ProgressFn,
    *,
    pipeline: "FluxPipeline",
    layout: BundleLayout,
    assets: AssetStore,
) -> StageResult:
    """Prompt -> bundle image in the task's folder."""
    from kiss3d_infer.flux.sampling import generate_bundle

    request = TextTo3D.model_validate(task.request)
    report("generate", 0)
    bundle = generate_bundle(
        pipeline,
        request.prompt,
        layout=layout,
        on_progress=report,
        **request.model_dump(include={"tile", "steps", "guidance", "seed"}, exclude_none=True),
    )
    save_bundle(bundle, assets.path(task.id, BUNDLE))
    return StageResult()


def make_mesh(
    task: Task,
    report: ProgressFn,
    *,
    defaults: ReconstructSettings,
    device: str,
    assets: AssetStore,
) -> StageResult:
    """Bundle image in the task's folder -> textured GLB beside it.

    A bundle that fails validation is a problem, unless the request says `force`.

    Raises:
        InputError: the bundle cannot be reconstructed.
    """
    from kiss3d_infer.scene.export import save_mesh

    wanted = MeshSettings.model_validate(task.request["settings"])
    settings = defaults.model_copy(update=wanted.model_dump(exclude_none=True))
    report("validate", 0)
    bundle = load_bundle(assets.path(task.id, BUNDLE))
    verdict = validate(bundle)
    measurements = {f"bundle/{name}": value for name, value in verdict.measurements.items()}
    if not verdict.ok and not task.request["force"]:
        return StageResult(
            _finite(measurements),
            problem=f"the bundle fails validation: {'; '.join(verdict.problems)}; try another seed "
            "or more steps, or set force to go on regardless",
        )
    made = reconstruct(bundle, settings, device=device, on_progress=report)
    report("export", 0)
    save_mesh(made.mesh, assets.path(task.id, MESH))
    return StageResult(
        _finite(measurements | made.measurements),
        _finite(made.seconds),
        (*verdict.problems, *made.warnings),
    )


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
