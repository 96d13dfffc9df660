import dataclasses

import pytest
import torch
from tiny_training import NUM_SAMPLES, TinySamples, reversed_on_odd_epochs, tiny_config

from kiss3d_train.data.stream import Stream, validation_batch
from kiss3d_train.objective import Batch


def global_batch(step: int, world_size: int, micro_batch: int) -> Batch:
    config = tiny_config({"scaling.workers": world_size, "scaling.micro_batch": micro_batch})
    shares = []
    for rank in range(world_size):
        stream = Stream(TinySamples(), reversed_on_odd_epochs, config, rank, world_size)
        shares += stream.micro_batches(step)
        stream.close()
    return Batch.stacked(shares)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 4), (2, 1), (2, 2), (4, 1)])
def test_any_number_of_workers_sees_the_same_global_batches(
    world_size: int, micro_batch: int
) -> None:
    for step in (0, 1, 5):
        expected = global_batch(step, 1, 1)
        found = global_batch(step, world_size, micro_batch)
        for field in dataclasses.fields(Batch):
            if field.name != "grid":
                assert torch.equal(getattr(found, field.name), getattr(expected, field.name))


def test_a_stream_may_start_at_any_step() -> None:
    config = tiny_config()
    straight = Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1)
    passed = [straight.micro_batches(step) for step in range(4)][3]
    resumed = Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1)
    direct = resumed.micro_batches(3)
    straight.close()
    resumed.close()
    assert torch.equal(Batch.stacked(passed).noise_BNC, Batch.stacked(direct).noise_BNC)


def test_an_epoch_holds_each_sample_once() -> None:
    config = tiny_config({"data.global_batch": NUM_SAMPLES, "objective.caption_dropout": 0.0})
    stream = Stream(TinySamples(), reversed_on_odd_epochs, config, 0, 1)
    prompts = Batch.stacked(stream.micro_batches(1)).prompt_BLD
    stream.close()
    expected = torch.stack([TinySamples()[i].prompt_LD for i in reversed(range(NUM_SAMPLES))])
    assert torch.equal(prompts, expected)


def test_dropped_captions_become_the_bare_prompt() -> None:
    stream = Stream(
        TinySamples(), reversed_on_odd_epochs, tiny_config({"objective.caption_dropout": 1.0}), 0, 1
    )
    batch = Batch.stacked(stream.micro_batches(0))
    stream.close()
    assert not batch.prompt_BLD.any()


def test_an_unreadable_sample_stops_the_stream() -> None:
    class Broken(TinySamples):
        def __getitem__(self, index: int) -> object:  # type: ignore[override]
            raise OSError("the disk is gone")

    stream = Stream(Broken(), reversed_on_odd_epochs, tiny_config(), 0, 1)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="the disk is gone"):
        stream.micro_batches(0)
    stream.close()


def test_validation_noise_does_not_depend_on_the_run() -> None:
    one = validation_batch(TinySamples(), [(0, 0.3), (2, 0.7)], tiny_config())
    other = validation_batch(TinySamples(), [(2, 0.7)], tiny_config({"run.seed": 99}))
    assert torch.equal(one.noise_BNC[1], other.noise_BNC[0])
    assert torch.equal(one.x0_BNC[1], other.x0_BNC[0])
    assert one.sigma_B.tolist() == pytest.approx([0.3, 0.7])
