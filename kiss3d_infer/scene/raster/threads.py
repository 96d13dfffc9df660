"""One thread per view: numba's and OpenMP's pools slow down when another process uses a core."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_Result = TypeVar("_Result")


def for_each_view(function: Callable[[int], _Result], num_views: int) -> list[_Result]:
    """What `function` returns for each view, called in threads; it must release the GIL to gain."""
    if num_views == 1:
        return [function(0)]
    return list(_pool(os.getpid()).map(function, range(num_views)))


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """Kept per process: threads do not survive a fork."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(pid)), thread_name_prefix="view")
