"""Which samples come when and all that is random about them, for sets that are in memory.

Shape legend: B samples, N image tokens, C channels of a packed token, K normals per sample.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from kiss3d_train.config import ObjectiveSection, TrainConfig
from kiss3d_train.objective import shift_mu, shifted


@dataclass(frozen=True)
class Drawn:
    """What is random about a worker's share of a step; all of it on the device.

    Attributes:
        index_B: which samples come.
        normals_KBNC: standard normal, float32.
        sigma_B: noise level in (0, 1), float32.
        is_dropped_B: whether the caption is left out.
    """

    index_B: Tensor
    normals_KBNC: Tensor
    sigma_B: Tensor
    is_dropped_B: Tensor


class SharedDraws:
    """What is random in each step, drawn for the whole global batch and shared out.

    It is a function of (seed, step), so it does not depend on the number of workers. It does depend
    on the device: the CPU's generator and a GPU's give different numbers for one seed. Nothing in
    it waits for the device, but at the first step of an epoch.

    Args:
        config: the recipe.
        kind: of the samples; another one, another order.
        size: samples in an epoch.
        shape: (N, C) of a sample.
        device: of this worker.
        rank, world_size: of the workers.
        num_normals: K, of the shape of a sample.
    """

    def __init__(
        self,
        config: TrainConfig,
        kind: str,
        size: int,
        shape: tuple[int, int],
        device: torch.device,
        rank: int,
        world_size: int,
        num_normals: int = 1,
    ) -> None:
        self._objective, self._seed = config.objective, config.run.seed
        self._total, self._device = config.data.global_batch, device
        share = self._total // world_size
        self._own = slice(rank * share, (rank + 1) * share)
        self._shape = (num_normals, self._total, *shape)
        self._mu = shift_mu(config.objective, shape[0])
        self._order = EpochOrder(size, f"{config.run.seed}/{kind}", device)

    def at(self, step: int) -> Drawn:
        """This worker's share of optimizer step `step`, counted from 0."""
        own, total = self._own, self._total
        generator = seeded(f"{self._seed}/draws/{step}", self._device)
        # The normals come first, so that the recipe has no influence on them.
        normals_KBNC = torch.randn(self._shape, generator=generator, device=self._device)[:, own]
        is_dropped_B = _uniform(total, generator)[own] < self._objective.caption_dropout
        timestep_B = draw_timesteps(self._objective, total, generator)[own]
        index_B = self._order.at(step * total + own.start, own.stop - own.start)
        return Drawn(index_B, normals_KBNC, shifted(timestep_B, self._mu), is_dropped_B)


class InMemoryStream:
    """A stream over a set in memory: it skips nothing, and nothing runs beside it."""

    num_skipped = 0

    def close(self) -> None:
        """Nothing has to be ended."""


class EpochOrder:
    """An endless sequence of permutations of range(size), one per epoch, on a device.

    Each is a pure function of the key and the epoch, drawn by the CPU's generator, so it is the
    same on every device.
    """

    def __init__(self, size: int, key: str, device: torch.device) -> None:
        self._size, self._key, self._device = size, key, device
        self._epochs: dict[int, Tensor] = {}

    def at(self, first: int, count: int) -> Tensor:
        """Indices [count] at the positions from `first` on."""
        pieces = []
        while count > 0:
            epoch, place = divmod(first, self._size)
            piece = self._permutation(epoch)[place : place + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return torch.cat(pieces)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            generator = seeded(f"{self._key}/{epoch}", torch.device("cpu"))
            permutation = torch.randperm(self._size, generator=generator)
            self._epochs[epoch] = permutation.to(self._device)
        return self._epochs[epoch]


def seeded(key: str, device: torch.device) -> torch.Generator:
    """A generator on a device that depends on the key alone.

    The CPU's and a GPU's generators give different numbers for one seed.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_timesteps(objective: ObjectiveSection, count: int, generator: torch.Generator) -> Tensor:
    """Timesteps [count] in (0, 1), distributed as the recipe says."""
    if objective.timesteps == "uniform":
        return _uniform(count, generator)
    normal = torch.randn(count, generator=generator, device=generator.device)
    return torch.sigmoid(objective.logit_mean + objective.logit_std * normal)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)
