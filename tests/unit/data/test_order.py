import pytest

from kiss3d_infer.errors import InputError
from kiss3d_train.data.order import Permutation, SampleOrder

COUNTS = [7, 0, 31, 1, 12, 25, 3, 9]


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_permutation_reaches_every_place_once(size: int) -> None:
    permutation = Permutation(size, "seed")
    assert sorted(map(permutation, range(size))) == list(range(size))


def test_permutation_mixes() -> None:
    permutation = Permutation(1000, "seed")
    moved = [abs(permutation(i) - i) for i in range(1000)]
    assert sum(moved) / 1000 == pytest.approx(1000 / 3, rel=0.15)
    assert [Permutation(1000, "other")(i) for i in range(9)] != [permutation(i) for i in range(9)]


@pytest.mark.parametrize("window", [1, 3, 8])
def test_every_epoch_visits_every_sample_once(window: int) -> None:
    order = SampleOrder(COUNTS, seed=3, window=window)
    everything = {(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)}
    for epoch in range(3):
        seen = [order.at(epoch, index) for index in range(order.num_samples)]
        assert len(seen) == len(everything) and set(seen) == everything


def test_epochs_and_seeds_differ() -> None:
    order, other = SampleOrder(COUNTS, seed=0), SampleOrder(COUNTS, seed=1)
    epochs = [[order.at(epoch, i) for i in range(20)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [other.at(0, i) for i in range(20)]


def test_a_window_keeps_to_its_shards() -> None:
    order = SampleOrder([10] * 12, seed=0, window=3)
    for first in range(0, 120, 30):
        assert len({order.at(0, index)[0] for index in range(first, first + 30)}) == 3


def test_flat_index_numbers_samples_over_all_shards() -> None:
    order = SampleOrder(COUNTS, seed=0)
    flat = [order.flat(1, index) for index in range(order.num_samples)]
    assert sorted(flat) == list(range(order.num_samples))
    shard, row = order.at(1, 5)
    assert flat[5] == sum(COUNTS[:shard]) + row


def test_any_place_is_found_without_walking_to_it() -> None:
    order = SampleOrder(COUNTS, seed=7)
    places = [(epoch, index) for epoch in range(3) for index in range(order.num_samples)]
    walked = [order.flat(*place) for place in places]
    # As after a restart, or in a worker that reads every other place.
    assert [SampleOrder(COUNTS, seed=7).flat(*place) for place in places[::7]] == walked[::7]
    assert [order.flat(*place) for place in places[::-1]] == walked[::-1]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        SampleOrder([0, 0], seed=0)
