"""Embedded prompts, each stored once for a whole cache and checked by a checksum of its own."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

from torch import Tensor

from kiss3d_train.data.cache import DiskCache, read_checked
from kiss3d_train.data.storage import Folder

PROMPTS = "prompts"
"""The folder in an encoder's results."""
_SUFFIX = ".safetensors"
_CHECKSUM = "crc32"
"""In the file's metadata, over all else in the file. It lies there and not in an index, because two
workers may embed one prompt at a time, with other last digits; either file is right. A CRC, because
these are most of the bytes that training reads, and SHA-256 would take longer than all else."""


class PromptStore:
    """Prompts by digest of their text. Threads and processes may share a store.

    Args:
        folder: of an encoder's results.
        cache: for what is read over the network.
    """

    def __init__(self, folder: Folder, cache: DiskCache | None = None) -> None:
        self._folder, self._cache = folder.child(PROMPTS), cache

    def digests(self) -> set[str]:
        """All that are there."""
        names = self._folder.sizes()
        return {name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)}

    def has(self, digest: str) -> bool:
        """Whether a prompt is there."""
        try:
            self._folder.size(f"{digest}{_SUFFIX}")
        except FileNotFoundError:
            return False
        return True

    def write(self, digest: str, tensors: dict[str, Tensor]) -> None:
        """Store a prompt; it appears when it is whole."""
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        checksum = _checksum(save(tensors))
        with self._folder.writing(f"{digest}{_SUFFIX}") as aside:
            aside.write_bytes(save(tensors, metadata={_CHECKSUM: checksum}))

    def read(self, digest: str) -> dict[str, Tensor]:
        """The tensors of a prompt: states [L, D] and pooled [P].

        Raises:
            DamageError: it is missing, or its bytes are not those that were written.
        """
        from safetensors.torch import load

        name = f"{digest}{_SUFFIX}"
        where = f"{self._folder.place}/{name}"
        (data,) = read_checked(
            lambda: [self._folder.read(name)],
            lambda parts: _is_sound(parts[0]),
            # Another encoder's embedding of the same text is another entry.
            hashlib.sha256(where.encode()).hexdigest(),
            self._cache,
            where,
        )
        tensors: dict[str, Tensor] = load(data)
        return tensors


def _header(data: bytes) -> tuple[dict[str, object], int]:
    """A safetensors file's header, and where its tensors begin."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    return header, 8 + length


def _checksum(data: bytes) -> str:
    header, start = _header(data)
    described = {name: header[name] for name in sorted(header) if name != "__metadata__"}
    of_header = zlib.crc32(json.dumps(described, sort_keys=True).encode())
    return f"{zlib.crc32(memoryview(data)[start:], of_header):08x}"


def _is_sound(data: bytes) -> bool:
    try:
        metadata = _header(data)[0]["__metadata__"]
        return isinstance(metadata, dict) and metadata[_CHECKSUM] == _checksum(data)
    except (struct.error, ValueError, LookupError, TypeError):
        return False
