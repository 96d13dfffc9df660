"""Ray for the length of a block: the cluster that runs already, or a quiet one on this machine."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kiss3d_infer.errors import InputError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every print of a Train worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a run is noticed at such a check
    "PYTHONWARNINGS": "ignore::FutureWarning",
}


_WRAPPED_IN = ("cause", "controller_failure", "__cause__")
"""Attributes in which Ray's errors hold another."""


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
        # Ray protects a cluster with a token. This one is known to what is started here alone;
        # without it, Ray would leave one in the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
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
    """Raise wrong input that a worker met as itself, and a task's other error as one sentence.

    Ray's own text of a task's error is a traceback, whose first line tells nothing.
    """
    from ray.exceptions import RayTaskError

    try:
        yield
    except Exception as error:
        if cause := find_input_error(error):
            raise InputError(cause.what, where=cause.where, fix=cause.fix) from error
        if isinstance(error, RayTaskError):
            raise RuntimeError(f"a worker failed: {_reason(error)}") from error
        raise


def find_input_error(error: BaseException) -> InputError | None:
    """The wrong input behind an error, if that is what it comes from."""
    return next((cause for cause in _causes(error) if isinstance(cause, InputError)), None)


def _reason(error: BaseException) -> str:
    """What went wrong first, in a line."""
    *_, innermost = _causes(error)
    kind, said = type(innermost).__name__, str(innermost).strip().splitlines()
    return f"{kind}: {said[0]}" if said else kind


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
        todo += [getattr(current, name, None) for name in _WRAPPED_IN]
        todo += list(getattr(current, "worker_failures", {}).values())
