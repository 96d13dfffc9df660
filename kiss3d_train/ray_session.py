"""Ray for the length of a block: the cluster that runs already, or a quiet one on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every print of a Train worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a run is noticed at such a check
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


@contextmanager
def ray_session(min_cpus: int = 1) -> Iterator[dict[str, Any]]:
    """Yield the cluster's resources, e.g. {"CPU": 2.0, "GPU": 1.0}.

    A session of this process, or the cluster at RAY_ADDRESS, is used and left running. Otherwise
    Ray starts here, with at least `min_cpus` logical cores, and stops after the block.
    """
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        # A token for a cluster that lives as long as this process would be left in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=max(min_cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what a task or a training worker raised, if it was wrong input, as itself."""
    from kiss3d_infer.errors import InputError

    try:
        yield
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, InputError):
                raise InputError(cause.what, where=cause.where, fix=cause.fix) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and what Ray wrapped in it."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        current = todo.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [getattr(current, "cause", None), current.__cause__]
        todo += list(getattr(current, "worker_failures", {}).values())
