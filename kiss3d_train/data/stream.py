"""Training batches as a pure function of the step, whatever the number of workers."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kiss3d_train.config import TrainConfig
from kiss3d_train.objective import Batch, Draws, draw, pack, shift_mu, shifted

OrderFn = Callable[[int, int], int]
"""(epoch, position in the epoch) -> index of a training sample."""


@dataclass(frozen=True)
class Sample:
    """One encoded bundle with its caption.

    Attributes:
        mean_chw, std_chw: posterior of the scaled latent, float32.
        prompt_LD, pooled_P: embeddings of the caption.
        bare_prompt_LD, bare_pooled_P: embeddings of the prompt without its caption.
    """

    mean_chw: Tensor
    std_chw: Tensor
    prompt_LD: Tensor
    pooled_P: Tensor
    bare_prompt_LD: Tensor
    bare_pooled_P: Tensor


class Samples(Protocol):
    """Encoded samples of one split, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Stream:
    """This worker's share of each global batch, prepared one step ahead in a thread.

    Global batch `step` holds the positions step * G ... step * G + G - 1 of an endless sequence of
    epochs. Worker r of W takes the r-th of W equal runs of it, so that the union over the workers,
    and every draw for a position, is the same for any W.
    """

    def __init__(
        self, samples: Samples, order: OrderFn, config: TrainConfig, rank: int, world_size: int
    ) -> None:
        self._samples, self._order, self._config = samples, order, config
        self._share = config.data.global_batch // world_size
        self._offset = rank * self._share
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches to accumulate in optimizer step `step`, counted from 0."""
        if self._next is not None and self._next[0] == step:
            batches = self._next[1].result()
        else:
            batches = self._prepare(step)
        self._next = (step + 1, self._pool.submit(self._prepare, step + 1))
        return batches

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _prepare(self, step: int) -> list[Batch]:
        first = step * self._config.data.global_batch + self._offset
        size = self._config.scaling.micro_batch
        return [
            self._pinned(Batch.stacked([self._at(p) for p in range(start, start + size)]))
            for start in range(first, first + self._share, size)
        ]

    def _at(self, position: int) -> Batch:
        epoch, place = divmod(position, len(self._samples))
        sample = self._samples[self._order(epoch, place)]
        shape = (sample.mean_chw.shape[0], sample.mean_chw.shape[1], sample.mean_chw.shape[2])
        draws = draw(self._config.objective, (self._config.run.seed, epoch, place), shape)
        num_tokens = shape[1] * shape[2] // 4
        sigma = shifted(draws.timestep, shift_mu(self._config.objective, num_tokens))
        return assemble(sample, draws, sigma)

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
        grid=(latent_chw.shape[1] // 2, latent_chw.shape[2] // 2),
    )


def _held_out(samples: Samples, index: int, sigma: float, config: TrainConfig) -> Batch:
    sample = samples[index]
    shape = (sample.mean_chw.shape[0], sample.mean_chw.shape[1], sample.mean_chw.shape[2])
    never_dropped = config.objective.model_copy(update={"caption_dropout": 0.0})
    return assemble(sample, draw(never_dropped, ("validation", index), shape), sigma)
