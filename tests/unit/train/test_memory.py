"""What blocks keep follows from what memory there is."""

import pytest
from tiny_training import tiny_config

from kiss3d_infer.errors import InputError
from kiss3d_train.memory import GIB, Footprint, Keep, budget_of

AUTO = tiny_config({"base.gradient_checkpointing": "auto"})


def flux(base_gib: float, is_fused: bool = True) -> Footprint:
    """FLUX.1-dev at 8704 tokens with an adapter of rank 64 on all linears."""
    weights = {"base": base_gib * GIB, "adapter and optimizer": 3.9 * GIB}
    return Footprint(weights, 8704 * 3072 * 2, num_double=19, num_single=38, is_fused=is_fused)


def test_everything_is_kept_where_it_fits_and_less_where_not() -> None:
    assert set(flux(22.2).keeps(AUTO, 77 * GIB)) == {"products"}
    middle = flux(22.2).keeps(AUTO, 44 * GIB)
    assert set(middle) == {"products", "attention"}
    assert middle == tuple(sorted(middle))  # "attention" first, as late blocks keep more
    assert set(flux(11.2).keeps(AUTO, 22.5 * GIB)) <= {"attention", "inputs"}


@pytest.mark.parametrize("gib", range(31, 60, 4))
def test_the_budget_is_kept_and_used(gib: int) -> None:
    footprint = flux(22.2)
    keeps = footprint.keeps(AUTO, gib * GIB)
    assert footprint.total(keeps) <= gib * GIB
    if set(keeps) != {"products"}:
        one_more_block = 8 * footprint.tensor
        assert footprint.total(keeps) + one_more_block > gib * GIB


def test_a_base_that_does_not_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(
        InputError, match=r"a step needs about 3\d\.\d GiB, of which there are 22\.5"
    ):
        flux(22.2).keeps(AUTO, 22.5 * GIB)


def test_the_recipe_can_decide() -> None:
    keeps: dict[object, tuple[Keep, ...]] = {
        wanted: flux(22.2).keeps(tiny_config({"base.gradient_checkpointing": wanted}), 44 * GIB)
        for wanted in (True, False)
    }
    assert set(keeps[True]) == {"inputs"}
    assert set(keeps[False]) == {"products"}


def test_without_a_known_budget_nothing_is_computed_again() -> None:
    import torch

    assert budget_of(AUTO, torch.device("cpu")) is None
    assert set(flux(22.2).keeps(AUTO, None)) == {"products"}
    assert set(flux(22.2, is_fused=False).keeps(AUTO, None)) == {"inputs"}
