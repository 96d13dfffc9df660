"""A training run from recipe to adapter: encode, track, train over Ray, export, sum up."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from kiss3d_infer.config import Resolved
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked, writing
from kiss3d_infer.flux.base import base_identity
from kiss3d_infer.mlflow_server import absolute_uri
from kiss3d_infer.tracking import Tracker
from kiss3d_train.checkpoint import Identity
from kiss3d_train.config import ScalingSection, TrainConfig
from kiss3d_train.data.encode import encode_shards
from kiss3d_train.data.job_run import data_run_tags
from kiss3d_train.data.latents import name_of_cache, read_encoder
from kiss3d_train.data.lost import require_encodable, require_tars
from kiss3d_train.data.shards import ShardIndex, load_index
from kiss3d_train.data.shards.index import INDEX_NAME
from kiss3d_train.data.storage import Place, absolute, folder_at, name_of
from kiss3d_train.logs import keep_ray_logs, quiet_driver, size_of_worker_logs
from kiss3d_train.plan import make_plan
from kiss3d_train.ray_session import find_input_error, ray_session, unwrapped
from kiss3d_train.registry import best_folder, register_best
from kiss3d_train.resume import RUN_FILE, Start, decide_start, identity_of
from kiss3d_train.samples.painter import Easel, check_room, cpus_of, drawing_beside
from kiss3d_train.stopping import STOP_FILE
from kiss3d_train.summary import (
    SUMMARY_FILE,
    TrainSummary,
    adapter_of,
    averaged_adapter_of,
    best_adapter_of,
    finished_at,
    result_of,
    values_of,
)
from kiss3d_train.traps import traps
from kiss3d_train.whole.plan import plan_whole
from kiss3d_train.whole.traps import whole_traps
from kiss3d_train.worker import LOG_FILE, Job, Outcome, ray_worker

_POLL_SECONDS = 0.5
_LONG_START_SECONDS = 60.0
"""After so long without a worker, the user is told why that may be."""
_SAME_REQUEST_SECONDS = 1.0
"""timeout(1), shells and process managers send one signal to a process and to its group."""


def run_training(resolved: Resolved[TrainConfig]) -> TrainSummary:
    """Train as the recipe says; encodes the data set first where that has not been done.

    Ctrl-C or SIGTERM saves a checkpoint, leaves the MLflow run KILLED and returns; a second one
    ends at once. Ray is started on this machine unless it runs already.

    Raises:
        InputError: the recipe, its data, its base or run.dir is unusable, or another job is
            working in run.dir.
        RuntimeError: a worker failed more often than scaling.max_failures allows.
    """
    quiet_driver()
    config = with_absolute_paths(resolved.config)
    index = load_index(config.data.shards)
    identity = identity_of(config, base_identity(config.base.path), index)
    _require_data(config, index, identity)
    with locked(config.run.dir):
        start = decide_start(config, identity)
        if start.step >= config.run.steps and (summary := finished_at(start.step, config)):
            print("this run had finished already; nothing was done", file=sys.stderr)
            return summary
        return _train_from(start, resolved, config, index, identity)


def _train_from(
    start: Start,
    resolved: Resolved[TrainConfig],
    config: TrainConfig,
    index: ShardIndex,
    identity: Identity,
) -> TrainSummary:
    plan = None if config.full else make_plan(resolved.config)
    for sentence in traps(plan) if plan else whole_traps(plan_whole(resolved.config)):
        print(f"warning: {sentence}", file=sys.stderr)
    scaling = config.scaling
    num_cpus = scaling.fewest * scaling.cpus_per_worker + cpus_of(config.samples)
    with ray_session(num_cpus) as resources:
        check_resources(scaling, resources)
        check_room(config.samples, resources)
        latents = None if config.full else _encode(config, identity)
        tracker = _open_tracker(resolved, config, index, start)
        job = Job(
            config,
            latents,
            index.layout,
            identity,
            start.initial,
            tracker.run_id,
            plan.model_flops_per_sample if plan else 0.0,
            plan.footprint if plan else None,
        )
        with tracker:
            _write_run_file(config, job)
            tracker.log_artifact(config.run.dir / RUN_FILE)
            with _stopping(config) as is_stopping, drawing_beside(config, tracker) as easel:
                outcome = _fit(job, easel)
                easel.finish(is_stopping)
            summary = _conclude(job, outcome, tracker)
            tracker.close("FINISHED" if summary.status == "finished" else "KILLED")
        if outcome.best and summary.status == "finished":  # the adapter is uploaded now
            uri, name = config.tracking.uri, config.tracking.run_name or config.run.dir.name
            register_best(uri, tracker.run_id, name, outcome.best)
    return summary


def _require_data(config: TrainConfig, index: ShardIndex, identity: Identity) -> None:
    """Refuse what is missing now, before Ray starts and takes its time."""
    data = config.data
    if config.full:
        require_tars(data.shards, index)
    else:
        latents = folder_at(config.latents_root).child(name_of_cache(identity.encoder)).place
        require_encodable(data.shards, index, latents, data.on_corrupt)


def _encode(config: TrainConfig, identity: Identity) -> Place:
    return encode_shards(
        config.data.shards,
        config.base.path,
        config.latents_root,
        dtype=config.base.dtype,
        use_gpu=config.scaling.use_gpu,
        identity=identity.base,
        domains=config.data.domains,
        on_corrupt=config.data.on_corrupt,
    )


def check_resources(scaling: ScalingSection, available: Mapping[str, float]) -> None:
    """Refuse what Ray Train would wait for without end.

    Args:
        scaling: the workers to be placed.
        available: `CPU` and `GPU` of the cluster, as Ray counts them.

    Raises:
        InputError: the workers need more.
    """
    wanted = (
        ("CPU", scaling.cpus_per_worker, "scaling.cpus_per_worker or scaling.workers"),
        ("GPU", int(scaling.use_gpu), "scaling.workers, or set scaling.use_gpu=false"),
    )
    for resource, each, keys in wanted:
        needed, present = scaling.fewest * each, available.get(resource, 0)
        if needed > present:
            raise InputError(
                f"the workers need {needed} {resource}s, the cluster has {present:g}",
                where="scaling",
                fix=f"lower {keys}",
            )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The recipe with paths that mean the same in a worker, which runs in another folder."""
    cache, init_from = config.data.cache, config.adapter.init_from
    data = {
        "shards": absolute(config.data.shards),
        "latents": absolute(config.latents_root),
        "cache": None if cache is None else cache.absolute(),
    }
    sections: dict[str, Any] = {
        "run": config.run.model_copy(update={"dir": config.run.dir.absolute()}),
        "base": config.base.model_copy(update={"path": config.base.path.absolute()}),
        "data": config.data.model_copy(update=data),
        "adapter": config.adapter.model_copy(
            update={"init_from": init_from and init_from.absolute()}
        ),
        "tracking": config.tracking.model_copy(update={"uri": absolute_uri(config.tracking.uri)}),
    }
    return config.model_copy(update=sections)


def _open_tracker(
    resolved: Resolved[TrainConfig], config: TrainConfig, index: ShardIndex, start: Start
) -> Tracker:
    tracking = config.tracking
    tracker = Tracker.open(
        tracking.uri,
        tracking.experiment,
        tracking.run_name or config.run.dir.name,
        run_id=start.tracking_run,
        tags={"kiss3d.run_dir": str(config.run.dir)} | data_run_tags(config.data.shards),
    )
    tracker.log_params(resolved.values())
    origins = "".join(f"{key}: {value}  # {origin}\n" for key, value, origin in resolved.rows())
    tracker.log_text(resolved.to_yaml(), "config.yaml")
    tracker.log_text(origins, "config_origins.txt")
    tracker.log_text(index.model_dump_json(indent=1), f"data/{INDEX_NAME}")
    tracker.log_dataset(name_of(config.data.shards), index.digest, str(config.data.shards))
    return tracker


def _write_run_file(config: TrainConfig, job: Job) -> None:
    encoder = None if job.latents is None else read_encoder(job.latents)
    record = {
        "tracking_run": job.tracking_run,
        "initial": None if job.initial is None else str(job.initial),
        "identity": asdict(job.identity),
        "recipe": values_of(config),
        "data": {"shards": str(config.data.shards), "digest": job.identity.data},
        "encoder": None if encoder is None else encoder.model_dump(mode="json"),
    }
    with writing(config.run.dir / RUN_FILE) as aside:
        aside.write_text(json.dumps(record, indent=2), encoding="utf-8")


def _fit(job: Job, easel: Easel) -> Outcome:
    """Train in a thread, so that this one can show progress and hear Ctrl-C."""
    outcome: list[Outcome] = []
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            outcome.append(create_trainer(ray_worker, {"job": job}, job.config).fit().return_value)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    log, began = job.config.run.dir / LOG_FILE, time.time()
    position = log.stat().st_size if log.exists() else 0
    is_starting, said_before = True, size_of_worker_logs(job.config.run.dir)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        easel.poll()
        position = _show_new_lines(log, position)
        is_starting = is_starting and size_of_worker_logs(job.config.run.dir) == said_before
        if is_starting and time.time() > began + _LONG_START_SECONDS:
            is_starting = False
            print(
                "no worker has begun yet: the cluster may be full, or keep for some minutes the "
                "places of a driver that was killed",
                file=sys.stderr,
            )
    keep_ray_logs(job.config.run.dir, began)
    if errors:
        _raise_plainly(errors[0])
    return outcome[0]


def create_trainer(
    function: Callable[[dict[str, Any]], Any], arguments: dict[str, Any], config: TrainConfig
) -> Any:
    """A Ray `TorchTrainer`, whose `fit` runs a function on every worker of a recipe."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    class EndAtBadInput(UserCallback):  # type: ignore[misc]
        """Raise a worker's InputError in Ray's controller, which ends: input is no better twice."""

        def after_exception(
            self, run_context: object, worker_exceptions: dict[int, Exception]
        ) -> None:
            for error in worker_exceptions.values():
                if cause := find_input_error(error):
                    raise cause

    scaling, run = config.scaling, config.run
    fewest, most = scaling.fewest, scaling.workers
    resources: dict[str, float] = {"CPU": scaling.cpus_per_worker}
    if scaling.use_gpu:
        resources["GPU"] = 1
    return TorchTrainer(
        function,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=scaling.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # A new name each time: under an old one Ray would look for checkpoints of its own.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(run.dir / "ray"),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            callbacks=[EndAtBadInput()],
        ),
    )


def _conclude(job: Job, outcome: Outcome, tracker: Tracker) -> TrainSummary:
    config = job.config
    summary = TrainSummary(
        status="finished" if outcome.step >= config.run.steps else "stopped",
        run_dir=str(config.run.dir),
        run_id=job.tracking_run,
        steps=outcome.step,
        losses=outcome.losses,
        validation=outcome.validation,
        seconds=outcome.seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        adapter=str(result_of(config)),
        how_to_open=tracker.how_to_open,
        validation_at_start=outcome.validation_at_start,
    )
    with writing(config.run.dir / SUMMARY_FILE) as aside:
        aside.write_text(json.dumps(asdict(summary), indent=2), encoding="utf-8")
    if config.full is None:
        tracker.log_artifact(adapter_of(config.run.dir), "adapter")
    if config.full is None and config.optimizer.ema_decay is not None:
        tracker.log_artifact(averaged_adapter_of(config.run.dir), "adapter_ema")
    if outcome.best:
        tracker.log_artifact(best_adapter_of(config.run.dir), best_folder(outcome.best))
    tracker.log_artifact(config.run.dir / SUMMARY_FILE)
    return summary


@contextmanager
def _stopping(config: TrainConfig) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop, and a later one into an end.

    Yields whether there was one.
    """
    stop_file = config.run.dir / STOP_FILE
    stop_file.unlink(missing_ok=True)
    asked: list[float] = []

    def request(_signal: int, _frame: FrameType | None) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            stop_file.touch()
            print("stopping: saving a checkpoint; once more to end at once", file=sys.stderr)
        elif asked[-1] - asked[0] > _SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt

    with _handling((signal.SIGINT, signal.SIGTERM), request):
        try:
            yield stop_file.exists
        finally:
            stop_file.unlink(missing_ok=True)


@contextmanager
def _handling(
    signals: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _show_new_lines(log: Path, position: int) -> int:
    if not log.exists():
        return position
    with log.open(encoding="utf-8") as file:
        file.seek(position)
        sys.stderr.write(file.read())
        return file.tell()


def _raise_plainly(error: BaseException) -> None:
    """Raise wrong input as itself, and a worker's failure as one sentence."""
    if not isinstance(error, Exception):
        raise error
    with unwrapped():
        failures: dict[int, Exception] = getattr(error, "worker_failures", {})
        if not failures:
            raise error
        rank, cause = min(failures.items())
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise RuntimeError(f"training worker {rank} failed: {reason[-1]}") from error
