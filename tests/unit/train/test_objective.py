import math
from typing import Literal

import pytest
import torch

from kiss3d_train.config import ObjectiveSection
from kiss3d_train.objective import (
    Batch,
    draw,
    image_ids,
    loss_per_sample,
    pack,
    shift_mu,
    shifted,
    weighted,
)

OBJECTIVE = ObjectiveSection()


class Recorder(torch.nn.Module):
    """Predicts zero velocity and remembers what it was called with."""

    def forward(self, **inputs: object) -> tuple[torch.Tensor]:
        self.inputs = inputs
        hidden = inputs["hidden_states"]
        assert isinstance(hidden, torch.Tensor)
        return (torch.zeros_like(hidden),)


def batch_of(x0: float, noise: float, sigma: float) -> Batch:
    return Batch(
        torch.full((1, 8, 4), x0),
        torch.full((1, 8, 4), noise),
        torch.tensor([sigma]),
        torch.zeros(1, 3, 5),
        torch.zeros(1, 2),
        torch.tensor([0]),
        (2, 4),
    )


def test_shift_is_linear_in_the_token_count_through_flux_points() -> None:
    assert shift_mu(OBJECTIVE, 256) == pytest.approx(0.5)
    assert shift_mu(OBJECTIVE, 4096) == pytest.approx(1.15)
    # A 1024 x 2048 bundle: 8192 tokens, mu 1.843, a shift of 6.32.
    mu = shift_mu(OBJECTIVE, 8192)
    assert mu is not None
    assert mu == pytest.approx(1.8433, abs=1e-4)
    assert shifted(0.5, mu) == pytest.approx(6.3175 / 7.3175, abs=1e-4)


def test_shift_can_be_one_for_every_size_or_none() -> None:
    for tokens in (8, 256, 8192):
        mu = shift_mu(ObjectiveSection(shift=3.0), tokens)
        assert shifted(0.5, mu) == pytest.approx(0.75)
        assert shift_mu(ObjectiveSection(shift="none"), tokens) is None
    assert shifted(0.3, shift_mu(ObjectiveSection(shift=1.0), 8192)) == pytest.approx(0.3)


def test_shift_matches_the_scheduler_used_for_sampling() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    times = torch.tensor([0.02, 0.4, 0.97])
    expected = scheduler.time_shift(1.2, 1.0, times)
    assert [shifted(float(t), 1.2) for t in times] == pytest.approx(expected.tolist(), rel=1e-6)


def test_noise_does_not_depend_on_the_recipe() -> None:
    other = ObjectiveSection(timesteps="uniform", caption_dropout=0.5)
    for number in range(500):
        one, same = (draw(o, (number,), (1, 2, 2)) for o in (OBJECTIVE, other))
        assert torch.equal(one.noise_chw, same.noise_chw)
        assert torch.equal(one.posterior_chw, same.posterior_chw)


def test_noise_level_keeps_its_ends() -> None:
    assert shifted(0.0, 1.5) == 0.0
    assert shifted(1.0, 1.5) == 1.0


def test_loss_is_the_squared_distance_to_noise_minus_data() -> None:
    model = Recorder()
    loss = loss_per_sample(model, batch_of(x0=0.5, noise=2.0, sigma=0.25), guidance=1.0)
    assert loss.tolist() == pytest.approx([(2.0 - 0.5) ** 2])
    noisy = model.inputs["hidden_states"]
    assert isinstance(noisy, torch.Tensor)
    assert noisy[0, 0, 0].item() == pytest.approx(0.75 * 0.5 + 0.25 * 2.0)
    assert torch.equal(model.inputs["guidance"], torch.tensor([1.0]))  # type: ignore[arg-type]


def test_sigma_reaches_the_model_in_float32() -> None:
    model = Recorder()
    loss_per_sample(model, batch_of(0.0, 1.0, 0.99901), guidance=None)
    timestep = model.inputs["timestep"]
    assert isinstance(timestep, torch.Tensor)
    assert timestep.dtype == torch.float32
    assert timestep.item() == pytest.approx(0.99901, abs=1e-7)
    assert model.inputs["guidance"] is None


@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt", "cosmap"])
def test_weights_are_those_of_diffusers(weighting: Literal["none", "sigma_sqrt", "cosmap"]) -> None:
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigma, loss = torch.tensor([0.02, 0.3, 0.5, 0.97]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = loss * compute_loss_weighting_for_sd3(weighting, sigma)
    found = weighted(loss, sigma, ObjectiveSection(weighting=weighting))
    assert found.tolist() == pytest.approx(expected.tolist())


def test_packing_and_ids_are_those_of_the_pipeline() -> None:
    from diffusers import FluxPipeline

    latent = torch.randn(16, 8, 12)
    expected = FluxPipeline._pack_latents(latent[None], 1, 16, 8, 12)
    assert torch.equal(pack(latent)[None], expected)
    ids = FluxPipeline._prepare_latent_image_ids(1, 4, 6, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids((4, 6), torch.device("cpu")), ids)


def test_draws_depend_on_the_key_alone() -> None:
    first = draw(OBJECTIVE, (0, 1, 7), (2, 4, 4))
    draw(OBJECTIVE, (0, 1, 8), (2, 4, 4))
    again = draw(OBJECTIVE, (0, 1, 7), (2, 4, 4))
    assert torch.equal(first.noise_chw, again.noise_chw)
    assert torch.equal(first.posterior_chw, again.posterior_chw)
    assert (first.timestep, first.caption_is_dropped) == (again.timestep, again.caption_is_dropped)
    for other_key in [(1, 1, 7), (0, 2, 7), (0, 1, 8)]:
        other = draw(OBJECTIVE, other_key, (2, 4, 4))
        assert not torch.equal(first.noise_chw, other.noise_chw)
        assert first.timestep != other.timestep
    assert not torch.equal(first.noise_chw, first.posterior_chw)


def test_draws_follow_their_distributions() -> None:
    objective = ObjectiveSection(logit_mean=0.3, logit_std=0.8, caption_dropout=0.2)
    draws = [draw(objective, (0, 0, i), (1, 2, 2)) for i in range(2000)]
    logits = torch.tensor([math.log(d.timestep / (1 - d.timestep)) for d in draws])
    assert logits.mean().item() == pytest.approx(0.3, abs=0.06)
    assert logits.std().item() == pytest.approx(0.8, abs=0.05)
    assert sum(d.caption_is_dropped for d in draws) / 2000 == pytest.approx(0.2, abs=0.03)
    noise = torch.stack([d.noise_chw for d in draws])
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_uniform_timesteps_cover_the_interval() -> None:
    objective = ObjectiveSection(timesteps="uniform")
    times = [draw(objective, (0, 0, i), (1, 2, 2)).timestep for i in range(1000)]
    assert 0 <= min(times) < 0.02
    assert 0.98 < max(times) < 1
