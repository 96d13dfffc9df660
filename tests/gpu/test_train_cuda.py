"""The engines on a GPU: a bfloat16 base under autocast, float32 adapter weights, exact resume."""

from collections.abc import Iterator

import pytest
import torch
from tiny_training import (
    TinySamples,
    flat,
    free_port,
    join_group,
    reversed_on_odd_epochs,
    tiny_config,
    tiny_engine,
    train_steps,
)

from kiss3d_train.breakdown import PARTS, StepClock
from kiss3d_train.data.stream import Stream
from kiss3d_train.loop import learning_rate
from kiss3d_train.objective import loss_per_sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ENGINES = [("ddp", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
CPU_LOSSES = [2.1397, 2.1468, 2.1167, 2.4389, 2.4096, 2.0090]
"""What every engine gives in float32 on the CPU."""


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    torch.cuda.set_device(0)
    join_group(0, 1, free_port(), "nccl")
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("kind", "stage"), ENGINES)
def test_engines_train_alike_and_resume(kind: str, stage: int) -> None:
    changes = {"base.dtype": "bfloat16", "scaling.use_gpu": True, "scaling.micro_batch": 2}
    config = tiny_config(changes | {"engine.kind": kind, "engine.zero_stage": stage})
    straight = tiny_engine(config)
    losses = train_steps(straight, config, 0, 3)
    state = straight.gather()
    losses += train_steps(straight, config, 3, 6)
    assert {p.dtype for p in straight.parameters.values()} == {torch.float32}
    resumed = tiny_engine(config)
    resumed.scatter(state, 3)
    # Not bitwise: some CUDA reductions are not deterministic.
    assert train_steps(resumed, config, 3, 6) == pytest.approx(losses[3:], rel=1e-3)
    assert losses == pytest.approx(CPU_LOSSES, rel=3e-3)
    assert all(torch.isfinite(tensor).all() for tensor in flat(resumed.gather()).values())


def test_parts_of_a_step_are_timed_on_the_device_without_a_wait() -> None:
    clock = StepClock(torch.device("cuda"))
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    matrix = torch.randn(4096, 4096, device="cuda")
    (matrix @ matrix).sum().item()  # what is set up at the first product
    torch.cuda.set_sync_debug_mode("error")
    try:
        began.record()
        with clock.on_device("forward_backward"):
            for _ in range(20):
                matrix @ matrix
        ended.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seconds = clock.take(1)[PARTS.index("forward_backward")].item()
    torch.cuda.synchronize()
    assert 0 < seconds <= began.elapsed_time(ended) / 1000 * 1.001  # rounding
    assert clock.take(1).tolist() == [0.0] * len(PARTS)


def test_a_step_does_not_wait_for_the_device() -> None:
    changes = {"base.dtype": "bfloat16", "scaling.use_gpu": True, "scaling.micro_batch": 2}
    config = tiny_config(changes | {"engine.kind": "ddp"})
    engine = tiny_engine(config)
    stream = Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1)

    def step(number: int) -> None:
        batches = stream.micro_batches(number)
        engine.forward_backward(lambda m, b: loss_per_sample(m, b, 1.0), batches)
        engine.step(learning_rate(config, number))

    step(0)  # what is set up at the first step
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.close()
