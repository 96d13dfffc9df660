from typing import Any

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_train.config import ScalingSection
from kiss3d_train.run import check_resources


@pytest.mark.parametrize(
    ("scaling", "available", "message"),
    [
        (
            {"workers": 4, "cpus_per_worker": 2},
            {"CPU": 6.0},
            "need 8 CPUs, the cluster has 6 .*lower scaling.cpus_per_worker or scaling.workers",
        ),
        (
            {"workers": 2, "use_gpu": True},
            {"CPU": 64.0},
            "need 2 GPUs, the cluster has 0 .*lower scaling.workers, or set scaling.use_gpu=false",
        ),
    ],
)
def test_workers_that_the_cluster_cannot_hold_are_refused(
    scaling: dict[str, Any], available: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_resources(ScalingSection(**scaling), available)


def test_workers_that_fill_the_cluster_are_accepted() -> None:
    scaling = ScalingSection(workers=2, use_gpu=True, cpus_per_worker=4)
    check_resources(scaling, {"CPU": 8.0, "GPU": 2.0})
