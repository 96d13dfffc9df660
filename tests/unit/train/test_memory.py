"""What blocks keep follows from what memory there is."""

from pathlib import Path

import pytest
from tiny_training import tiny_config

from kiss3d_infer.errors import InputError
from kiss3d_train.memory import GIB, Footprint, Keep, Room, budget_of, room_of

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


def test_a_plan_counts_on_the_card_that_is_named_found_or_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    on_gpu = tiny_config({"scaling.use_gpu": True})
    named = tiny_config({"scaling.use_gpu": True, "engine.memory_budget_gib": 40})
    assert room_of(AUTO) is None
    assert room_of(named) == Room(40, "as engine.memory_budget_gib says")
    assumed = room_of(on_gpu)
    assert assumed == Room(77, "assumed as what one of 80 GB leaves")

    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '81559, NVIDIA H100 80GB HBM3'\necho '24564, NVIDIA A10'\n")
    smi.chmod(0o755)
    found = room_of(on_gpu)
    assert found is not None
    assert found.origin == "what the NVIDIA A10 here leaves"  # a worker may get either
    assert found.gib == pytest.approx(24564 / 1024 - 2.6)
    assert room_of(named) == Room(40, "as engine.memory_budget_gib says")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert room_of(on_gpu) == assumed  # the cluster's cards are others
    monkeypatch.delenv("RAY_ADDRESS")
    smi.write_text("#!/bin/sh\necho '[N/A], NVIDIA GB10'\n")
    assert room_of(on_gpu) == assumed
