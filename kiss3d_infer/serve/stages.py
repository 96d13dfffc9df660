"""The work behind a task, stage by stage, without any notion of Ray or HTTP."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kiss3d_infer.bundle import PUBLISHED, BundleLayout, Domains, save_bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.models import Drawing
from kiss3d_infer.progress import ProgressFn
from kiss3d_infer.reconstruct.settings import ReconstructSettings
from kiss3d_infer.serve.assets import BUNDLE, MESH, AssetStore
from kiss3d_infer.serve.schema import MeshSettings, TextTo3D
from kiss3d_infer.serve.store import Task, TaskStoppedError, TaskStore
from kiss3d_infer.tasks.bundle_to_mesh import OTHER_BUNDLE, bundle_to_mesh
from kiss3d_infer.tasks.text_to_3d import DRAW_AGAIN

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
        # Where it was is a path of this server, which is nothing to a client.
        return StageResult(problem=str(InputError(error.what, fix=error.fix)))
    except Exception as error:
        logger.exception("task %s failed", task.id)
        kind = type(error).__name__
        return StageResult(problem=f"internal error ({kind}); the server's log tells more")


def generate(
    task: Task,
    report: ProgressFn,
    *,
    pipeline: "FluxPipeline",
    drawing: Drawing,
    assets: AssetStore,
    layout: BundleLayout = PUBLISHED,
    domains: Domains = "bundle",
) -> StageResult:
    """Prompt -> bundle image in the task's folder; `drawing` is how where that says nothing."""
    from kiss3d_infer.flux.sampling import generate_bundle

    request = TextTo3D.model_validate(task.request)
    asked = request.model_dump(include={"tile", "steps", "guidance"}, exclude_none=True)
    report("generate", 0)
    bundle = generate_bundle(
        pipeline,
        request.prompt,
        layout=layout,
        domains=domains,
        seed=request.seed,
        on_progress=report,
        **drawing.model_dump() | asked,
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

    Raises:
        InputError: the bundle fails validation and is not forced, or shows nothing.
    """
    wanted = MeshSettings.model_validate(task.request["settings"])
    made = bundle_to_mesh(
        assets.path(task.id, BUNDLE),
        assets.path(task.id, MESH),
        settings=defaults.model_copy(update=wanted.model_dump(exclude_none=True)),
        device=device,
        force=task.request["force"],
        remedy=DRAW_AGAIN if task.type == "text_to_3d" else OTHER_BUNDLE,
        on_progress=report,
    )
    return StageResult(_finite(made.measurements), _finite(made.seconds), made.warnings)


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """JSON has no NaN."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
