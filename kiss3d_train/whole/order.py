"""Which samples come when, and the seeds of what is random, for sets that are in memory."""

import hashlib

import torch
from torch import Tensor


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
