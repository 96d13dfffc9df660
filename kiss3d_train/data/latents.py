"""The cache of encoded shards: what lies in it, and reading it as training samples.

    <latents>/<encoder>/
        encoder.json            what encoded: base, precision, latent scale, layout
        <shard>.tar             one per shard of the data set, named by that shard's SHA-256
        <shard>.json            its index; written last, so its presence means complete

A tar holds `<key>.latent.safetensors` (mean, logvar of the scaled posterior, float16), `<key>.json`
(which prompts) and each distinct prompt once, `<digest>.prompt.safetensors` (states, pooled).
Names follow contents: a shard with the same bytes is encoded once, whichever data sets hold it; one
that gained or lost a sample is another shard, and is encoded whole.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.config import Config
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_train.data.order import SampleOrder
from kiss3d_train.data.shards import IndexedSample, IndexedShard, ShardIndex, Split
from kiss3d_train.data.stream import OrderFn, Sample

ENCODER_FILE = "encoder.json"
LATENT, PROMPT = "latent.safetensors", "prompt.safetensors"
_ENCODE_AGAIN = "delete this file and run `kiss3d data encode`, which makes what is missing"
_OPEN_SHARDS = 16


class Encoder(Config):
    """What turned bundles and captions into numbers."""

    version: int = 1
    """Of this module's format and arithmetic."""
    base: str
    """Identity of the base model (`base_identity`)."""
    dtype: str
    """Precision of the text encoders; the VAE always runs in float32."""
    layout: BundleLayout
    """Of the bundles; its words are part of every prompt."""
    scaling: float
    """With `shift`: the model sees (latent - shift) * scaling."""
    shift: float

    @property
    def identity(self) -> str:
        """SHA-256 over all of it."""
        return sha256_of(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    def folder(self, root: Path) -> Path:
        """Where this encoder's results lie below the cache's root."""
        return root / self.identity[:16]


class LatentShard(Config):
    """The index of an encoded shard, in the order of the shard's samples."""

    size: int
    """Bytes of the tar."""
    samples: tuple[IndexedSample, ...]
    prompts: dict[str, IndexedSample]


class PromptPair(Config):
    """Prompts of a sample: digests of the full one, and of the one without its caption."""

    full: str
    bare: str


def tar_of(folder: Path, shard: IndexedShard) -> Path:
    """Where the encoded form of a shard lies."""
    return folder / f"{shard.sha256[:32]}.tar"


def is_encoded(folder: Path, shard: IndexedShard) -> bool:
    """Whether the encoded form of a shard is complete."""
    try:
        read_latent_shard(folder, shard)
    except InputError:
        return False
    return True


def read_latent_shard(folder: Path, shard: IndexedShard) -> LatentShard:
    """The index of an encoded shard.

    Raises:
        InputError: it is missing, unreadable, or its tar has another size.
    """
    tar = tar_of(folder, shard)
    try:
        record = LatentShard.model_validate_json(tar.with_suffix(".json").read_bytes())
        size = tar.stat().st_size
    except (OSError, ValidationError) as error:
        raise InputError(
            f"the encoded form of {shard.name} is missing or unreadable",
            where=tar,
            fix="run `kiss3d data encode`, which makes what is missing",
        ) from error
    if size != record.size:
        raise InputError(
            f"the tar is {size} bytes long, not {record.size}", where=tar, fix=_ENCODE_AGAIN
        )
    return record


def read_encoder(folder: Path) -> Encoder:
    """What made a cache.

    Raises:
        InputError: the folder is none, or holds the work of another encoder than its name says.
    """
    path = folder / ENCODER_FILE
    try:
        encoder = Encoder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            "this is no cache of latents", where=folder, fix="run `kiss3d data encode`"
        ) from error
    if encoder.folder(folder.parent) != folder:
        raise InputError(
            f"these latents come from another encoder ({encoder.identity[:16]})",
            where=folder,
            fix="delete the folder and encode again",
        )
    return encoder


class LatentSplit:
    """The encoded samples of a split by index, in the order of its shards.

    Raises:
        InputError: a shard is not encoded.
    """

    def __init__(self, folder: Path, shards: Sequence[IndexedShard]) -> None:
        self._tars = [tar_of(folder, shard) for shard in shards]
        self._indices = [read_latent_shard(folder, shard) for shard in shards]
        self._counts = tuple(len(shard.samples) for shard in shards)
        self._rows = [(s, r) for s, count in enumerate(self._counts) for r in range(count)]
        self._open: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        shard, row = self._rows[index]
        return self.read(shard, row)

    def order(self, seed: int) -> OrderFn:
        """In which order training visits the samples."""
        return SampleOrder(self._counts, seed).flat

    def read(self, shard: int, row: int) -> Sample:
        """The sample at a row of a shard.

        Raises:
            InputError: its bytes are not those that were indexed.
        """
        index = self._indices[shard]
        members = self._members(shard, index.samples[row])
        pair = PromptPair.model_validate_json(members["json"])
        latent = _tensors(members[LATENT])
        full, bare = (
            _tensors(self._members(shard, index.prompts[digest])[PROMPT])
            for digest in (pair.full, pair.bare)
        )
        return Sample(
            mean_chw=latent["mean"].float(),
            std_chw=torch.exp(0.5 * latent["logvar"].float()),
            prompt_LD=full["states"],
            pooled_P=full["pooled"],
            bare_prompt_LD=bare["states"],
            bare_pooled_P=bare["pooled"],
        )

    def close(self) -> None:
        """Close the files; they open again on use."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _members(self, shard: int, sample: IndexedSample) -> dict[str, bytes]:
        tar = self._tars[shard]
        with _explaining(tar):
            file = self._file(shard)
            members = {
                extension: os.pread(file, size, offset)
                for extension, (offset, size) in sample.members.items()
            }
        if sha256_of(b"".join(members.values())) != sample.sha256:
            raise InputError(
                "the bytes differ from the index", where=f"{tar}:{sample.key}", fix=_ENCODE_AGAIN
            )
        return members

    def _file(self, shard: int) -> int:
        if shard not in self._open:
            self._open[shard] = os.open(self._tars[shard], os.O_RDONLY)
            if len(self._open) > _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]


def open_split(folder: Path, index: ShardIndex, split: Split) -> LatentSplit:
    """The encoded samples of a data set's split.

    Args:
        folder: of one encoder, as `encode_shards` returns it.
        index: of the data set.
        split: "train" or "val".

    Raises:
        InputError: the folder is no cache, or a shard is not encoded.
    """
    read_encoder(folder)
    return LatentSplit(folder, index.of(split))


def _tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    tensors: dict[str, Tensor] = load(data)
    return tensors


@contextmanager
def _explaining(tar: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the tar cannot be read: {error.strerror}", where=tar, fix=_ENCODE_AGAIN
        ) from error
