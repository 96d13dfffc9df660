import dataclasses
import threading

import pytest
import torch
from tiny_training import NUM_SAMPLES, TinySamples, reversed_on_odd_epochs, tiny_config

from kiss3d_infer.errors import InputError
from kiss3d_train.data.storage import DamageError
from kiss3d_train.data.stream import Sample, Stream, validation_batch
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


class Damaged(TinySamples):
    """Some of the samples cannot be read."""

    def __init__(self, *damaged: int) -> None:
        self.damaged = damaged

    def __getitem__(self, index: int) -> Sample:
        if index in self.damaged:
            raise DamageError("the bytes differ from the index", where=f"sample {index}")
        return super().__getitem__(index)


def skipping(world_size: int, steps: int) -> tuple[list[Batch], int]:
    """Global batches of a set with two damaged samples, and how many were skipped."""
    config = tiny_config({"scaling.workers": world_size, "data.on_corrupt": "skip"})
    streams = [
        Stream(Damaged(1, 4), reversed_on_odd_epochs, config, rank, world_size)
        for rank in range(world_size)
    ]
    batches = [
        Batch.stacked([batch for stream in streams for batch in stream.micro_batches(step)])
        for step in range(steps)
    ]
    for stream in streams:
        stream.close()
    return batches, sum(stream.num_skipped for stream in streams)


def test_a_damaged_sample_is_replaced_the_same_for_any_number_of_workers() -> None:
    expected, num_skipped = skipping(1, 6)
    assert num_skipped >= 2 * 4  # in each of four epochs of six; a substitute may be damaged too
    for world_size in (2, 4):
        found, also_skipped = skipping(world_size, 6)
        assert also_skipped == num_skipped
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.x0_BNC, other.x0_BNC)
            assert torch.equal(one.prompt_BLD, other.prompt_BLD)


def test_only_damaged_samples_are_replaced() -> None:
    config = tiny_config(
        {
            "data.global_batch": NUM_SAMPLES,
            "data.on_corrupt": "skip",
            "objective.caption_dropout": 0.0,
        }
    )
    stream = Stream(Damaged(1), reversed_on_odd_epochs, config, 0, 1)
    batch = Batch.stacked(stream.micro_batches(0)).prompt_BLD
    stream.close()
    sound = {i for i in range(NUM_SAMPLES) if torch.equal(batch[i], TinySamples()[i].prompt_LD)}
    assert sound == set(range(NUM_SAMPLES)) - {1}
    others = [TinySamples()[i].prompt_LD for i in sound]
    assert any(torch.equal(batch[1], other) for other in others)


def test_damage_stops_the_stream_unless_the_recipe_says_otherwise() -> None:
    stream = Stream(Damaged(2), reversed_on_odd_epochs, tiny_config(), 0, 1)
    with pytest.raises(DamageError, match="sample 2"):
        stream.micro_batches(0)
    stream.close()


def test_a_set_that_is_damaged_throughout_is_told() -> None:
    config = tiny_config({"data.on_corrupt": "skip"})
    stream = Stream(Damaged(*range(NUM_SAMPLES)), reversed_on_odd_epochs, config, 0, 1)
    with pytest.raises(InputError, match="are all damaged"):
        stream.micro_batches(0)
    stream.close()


def test_a_store_that_is_away_is_not_taken_for_damage() -> None:
    class Away(TinySamples):
        def __getitem__(self, index: int) -> Sample:
            raise TimeoutError

    config = tiny_config({"data.on_corrupt": "skip"})
    stream = Stream(Away(), reversed_on_odd_epochs, config, 0, 1)
    with pytest.raises(TimeoutError):
        stream.micro_batches(0)
    stream.close()


def test_samples_are_read_ahead_as_far_as_the_recipe_says() -> None:
    class Counted(TinySamples):
        def __init__(self) -> None:
            self.read: list[int] = []
            self.enough = threading.Event()

        def __getitem__(self, index: int) -> Sample:
            self.read.append(index)
            if len(self.read) >= 4 + 4 + 5:
                self.enough.set()
            return super().__getitem__(index)

    samples = Counted()
    config = tiny_config({"data.prefetch": 5, "data.readers": 3})
    stream = Stream(samples, reversed_on_odd_epochs, config, 0, 1)
    stream.micro_batches(0)
    assert samples.enough.wait(60)  # this step's four, the next one's, and five more
    stream.close()
    assert len(samples.read) == 4 + 4 + 5
