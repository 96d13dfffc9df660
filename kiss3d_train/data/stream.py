"""Training batches as a pure function of the step, whatever the number of workers."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.storage import DamageError
from kiss3d_train.objective import Batch, Draws, draw, pack, shift_mu, shifted

_logger = logging.getLogger(__name__)
_SUBSTITUTES = 63
"""Tried in place of a damaged sample, before the data set as a whole counts as damaged: with half
of its shards gone, so many in a row are never met."""

OrderFn = Callable[[int, int], int]
"""(epoch, position in the epoch) -> index of a training sample."""


@dataclass(frozen=True)
class Sample:
    """One encoded bundle, or row of one, with its caption.

    Attributes:
        mean_chw, std_chw: posterior of the scaled latent, float32.
        prompt_LD, pooled_P: embeddings of the caption.
        bare_prompt_LD, bare_pooled_P: embeddings of the prompt without its caption.
        row: of the layout's rows, the first that it shows.
    """

    mean_chw: Tensor
    std_chw: Tensor
    prompt_LD: Tensor
    pooled_P: Tensor
    bare_prompt_LD: Tensor
    bare_pooled_P: Tensor
    row: int = 0


class Samples(Protocol):
    """Encoded samples of one split, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Stream:
    """This worker's share of each global batch, read ahead in threads.

    Global batch `step` holds the positions step * G ... step * G + G - 1 of an endless sequence of
    epochs. Worker r of W takes the r-th of W equal runs of it, so that the union over the workers,
    and every draw for a position, is the same for any W. So is the sample that takes the place of a
    damaged one: it follows from the seed and the position.
    """

    def __init__(
        self, samples: Samples, order: OrderFn, config: TrainConfig, rank: int, world_size: int
    ) -> None:
        self._samples, self._order, self._config = samples, order, config
        self._share = config.data.global_batch // world_size
        self._offset = rank * self._share
        self._readers = ThreadPoolExecutor(config.data.readers, thread_name_prefix="reader")
        self._reads: dict[int, Future[tuple[Batch, int]]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._next: tuple[int, Future[tuple[list[Batch], int]]] | None = None
        self._told: set[str] = set()
        self.num_skipped = 0
        """Damaged samples that others took the place of, in the batches handed out so far."""

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches to accumulate in optimizer step `step`, counted from 0.

        Raises:
            DamageError: a sample is damaged and data.on_corrupt is stop.
            InputError: so many are damaged that none was found to take a place.
        """
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._prepare, step))
        batches, skipped = self._next[1].result()
        self.num_skipped += skipped
        self._next = (step + 1, self._pool.submit(self._prepare, step + 1))
        return batches

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._readers.shutdown()

    def _prepare(self, step: int) -> tuple[list[Batch], int]:
        """A step's batches and how many samples were skipped for them. One thread alone runs it."""
        ahead = self._share + self._config.data.prefetch
        positions = list(itertools.islice(self._positions(step), ahead))
        for passed in self._reads.keys() - set(positions):
            self._reads.pop(passed).cancel()
        for position in positions:
            if position not in self._reads:
                self._reads[position] = self._readers.submit(self._at, position)
        reads = [self._reads.pop(position).result() for position in positions[: self._share]]
        size = self._config.scaling.micro_batch
        batches = [
            self._pinned(Batch.stacked([batch for batch, _ in reads[first : first + size]]))
            for first in range(0, self._share, size)
        ]
        return batches, sum(skipped for _, skipped in reads)

    def _positions(self, step: int) -> Iterator[int]:
        """This worker's positions from a step on."""
        for later in itertools.count(step):
            first = later * self._config.data.global_batch + self._offset
            yield from range(first, first + self._share)

    def _at(self, position: int) -> tuple[Batch, int]:
        """A position's sample as a batch, and how many damaged ones it took the place of."""
        epoch, place = divmod(position, len(self._samples))
        sample, skipped = self._read(epoch, place)
        shape = (sample.mean_chw.shape[0], sample.mean_chw.shape[1], sample.mean_chw.shape[2])
        draws = draw(self._config.objective, (self._config.run.seed, epoch, place), shape)
        num_tokens = shape[1] * shape[2] // 4
        sigma = shifted(draws.timestep, shift_mu(self._config.objective, num_tokens))
        return assemble(sample, draws, sigma), skipped

    def _read(self, epoch: int, place: int) -> tuple[Sample, int]:
        for attempt in range(_SUBSTITUTES + 1):
            index = self._order(
                epoch, self._substitute(epoch, place, attempt) if attempt else place
            )
            try:
                return self._samples[index], attempt
            except DamageError as error:
                if self._config.data.on_corrupt == "stop":
                    raise
                self._tell_once(str(error))
        raise InputError(
            f"{_SUBSTITUTES + 1} samples, picked at random, are all damaged",
            where=self._config.data.shards,
            fix="see which with 'kiss3d data verify', and encode again",
        )

    def _tell_once(self, damage: str) -> None:
        """Warn of a damaged sample in its first epoch, and of a missing shard at its first one."""
        if damage not in self._told:
            self._told.add(damage)
            _logger.warning("a sample is skipped: %s", damage)

    def _substitute(self, epoch: int, place: int, attempt: int) -> int:
        """Another place of the epoch, as a pure function of the seed and of these."""
        key = f"substitute/{self._config.run.seed}/{epoch}/{place}/{attempt}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % len(self._samples)

    def _pinned(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self._config.scaling.use_gpu else batch


def validation_batch(
    samples: Samples, pairs: Sequence[tuple[int, float]], config: TrainConfig
) -> Batch:
    """(index, sigma) pairs as a batch whose noise depends on the index alone, never on the run."""
    return Batch.stacked([_held_out(samples, index, sigma, config) for index, sigma in pairs])


def assemble(sample: Sample, draws: Draws, sigma: float) -> Batch:
    """A batch of one from a sample and what was drawn for it."""
    latent_chw = sample.mean_chw + sample.std_chw * draws.posterior_chw
    dropped = draws.caption_is_dropped
    return Batch(
        x0_BNC=pack(latent_chw)[None],
        noise_BNC=pack(draws.noise_chw)[None],
        sigma_B=torch.tensor([sigma], dtype=torch.float32),
        prompt_BLD=(sample.bare_prompt_LD if dropped else sample.prompt_LD)[None],
        pooled_BP=(sample.bare_pooled_P if dropped else sample.pooled_P)[None],
        row_B=torch.tensor([sample.row]),
        grid=(latent_chw.shape[1] // 2, latent_chw.shape[2] // 2),
    )


def _held_out(samples: Samples, index: int, sigma: float, config: TrainConfig) -> Batch:
    sample = samples[index]
    shape = (sample.mean_chw.shape[0], sample.mean_chw.shape[1], sample.mean_chw.shape[2])
    never_dropped = config.objective.model_copy(update={"caption_dropout": 0.0})
    return assemble(sample, draw(never_dropped, ("validation", index), shape), sigma)
