"""An encoded training split on the device: read once, then batches are gathers.

Shape legend: S samples, N image tokens, C channels of a packed token, Q distinct prompts, L text
tokens, D text width, P pooled width, B samples of a batch.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.draws import InMemoryStream, SharedDraws
from kiss3d_train.data.latents import LatentSplit
from kiss3d_train.memory import GIB
from kiss3d_train.objective import Batch, pack

ShowFn = Callable[[str], None]
T = TypeVar("T")
_LINES = 10
"""Of progress while a split is read."""


@dataclass(frozen=True)
class ResidentSamples:
    """Encoded samples, in the precision of their cache.

    Attributes:
        mean_SNC, logvar_SNC: posterior of the packed, scaled latents, float16.
        states_QLD, pooled_QP: embeddings of every distinct prompt.
        full_S, bare_S: which is a sample's prompt, and which the one without its caption.
        row_S: of the bundle layout's rows, the first that a sample shows.
        grid: rows and columns of image tokens.
    """

    mean_SNC: Tensor
    logvar_SNC: Tensor
    states_QLD: Tensor
    pooled_QP: Tensor
    full_S: Tensor
    bare_S: Tensor
    row_S: Tensor
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.mean_SNC)


class ResidentStream(InMemoryStream):
    """This worker's share of each global batch; see `SharedDraws`."""

    def __init__(
        self, samples: ResidentSamples, config: TrainConfig, rank: int, world_size: int
    ) -> None:
        self._samples, self._micro = samples, config.scaling.micro_batch
        num, num_tokens, channels = samples.mean_SNC.shape
        self._draws = SharedDraws(
            config,
            "bundles",
            num,
            (num_tokens, channels),
            samples.mean_SNC.device,
            rank,
            world_size,
            num_normals=2,
        )

    def micro_batches(self, step: int) -> list[Batch]:
        """The batches to accumulate in optimizer step `step`, counted from 0."""
        samples, drawn = self._samples, self._draws.at(step)
        index_B, (posterior_BNC, noise_BNC) = drawn.index_B, drawn.normals_KBNC
        std_BNC = torch.exp(0.5 * samples.logvar_SNC[index_B].float())
        prompt_B = torch.where(drawn.is_dropped_B, samples.bare_S[index_B], samples.full_S[index_B])
        batch = Batch(
            x0_BNC=samples.mean_SNC[index_B].float() + std_BNC * posterior_BNC,
            noise_BNC=noise_BNC,
            sigma_B=drawn.sigma_B,
            prompt_BLD=samples.states_QLD[prompt_B],
            pooled_BP=samples.pooled_QP[prompt_B],
            row_B=samples.row_S[index_B],
            grid=samples.grid,
        )
        return batch.split(self._micro)


def read_resident(
    split: LatentSplit, device: torch.device, *, threads: int, show: ShowFn | None = None
) -> ResidentSamples:
    """Read a split's latents, and each of its prompts once, and put them on a device.

    Args:
        split: of the data set.
        device: where they go.
        threads: that read.
        show: told at times how far it is.

    Raises:
        DamageError: bytes are missing, or not those that were indexed.
        InputError: it is empty, or does not fit on the device.
    """
    if not len(split):
        raise InputError("the data set has no samples", fix="render and shard some meshes")
    digests, num = split.prompts(), len(split)
    pair, first_chw, _ = split.latent(0)
    first = split.prompt(pair.full)
    tokens_NC = pack(first_chw)
    of_prompts = len(digests) * sum(tensor.nbytes for tensor in first.values())
    _require_room(2 * num * tokens_NC.nbytes + of_prompts, device)
    latents_2SNC = tokens_NC.new_empty(2, num, *tokens_NC.shape)
    texts = {name: tensor.new_empty(len(digests), *tensor.shape) for name, tensor in first.items()}
    rows = {digest: row for row, digest in enumerate(digests)}

    def read_latent(index: int) -> tuple[int, int, int]:
        pair, mean_chw, logvar_chw = split.latent(index)
        latents_2SNC[0, index], latents_2SNC[1, index] = pack(mean_chw), pack(logvar_chw)
        return rows[pair.full], rows[pair.bare], pair.row

    def read_prompt(row: int) -> None:
        prompt = split.prompt(digests[row])
        for name, tensor in texts.items():
            tensor[row] = prompt[name]

    with ThreadPoolExecutor(threads, thread_name_prefix="resident") as pool:
        read = list(showing(pool.map(read_latent, range(num)), num, "latents", show))
        num_prompts = len(digests)
        for _ in showing(pool.map(read_prompt, range(num_prompts)), num_prompts, "prompts", show):
            pass
    full_S, bare_S, row_S = torch.tensor(read).to(device).unbind(dim=1)
    height, width = first_chw.shape[1:]
    return ResidentSamples(
        mean_SNC=latents_2SNC[0].to(device),
        logvar_SNC=latents_2SNC[1].to(device),
        states_QLD=texts["states"].to(device),
        pooled_QP=texts["pooled"].to(device),
        full_S=full_S,
        bare_S=bare_S,
        row_S=row_S,
        grid=(height // 2, width // 2),
    )


def showing(
    items: Iterable[T], total: int, label: str, show: ShowFn | None, done: str = "read"
) -> Iterator[T]:
    """The items, with a line now and then of how many are done, as in "read 3 of 30 latents"."""
    for number, item in enumerate(items, start=1):
        yield item
        if show and number * _LINES // total > (number - 1) * _LINES // total:
            show(f"{done} {number} of {total} {label}")


def _require_room(needed: int, device: torch.device) -> None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"the training split takes {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free "
            f"on {device}",
            where="data.resident",
            fix="set it to false, so that samples are read as they come",
        )
