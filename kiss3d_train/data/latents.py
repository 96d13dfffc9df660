"""The cache of encoded shards: what lies in it, and reading it as training samples.

    <latents>/<encoder>/
        encoder.json            what encoded: base, precision, latent scale, layout
        <shard>.tar             one per shard of the data set, named by that shard's SHA-256
        <shard>.json            its index; written last, so its presence means complete
        prompts/<digest>.safetensors   one per distinct prompt: states, pooled, their checksum

A tar holds `<key>.latent.safetensors` (mean, logvar of the scaled posterior, float16) and
`<key>.json` (which prompts); where rows are samples, `<key>.rgb.json` and so on. Names follow
contents: a shard with the same bytes is encoded once, whichever data sets hold it, and so is a
prompt; a shard that gained or lost a sample is another shard, and its pictures are encoded again.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch
from pydantic import ValidationError
from torch import Tensor

from kiss3d_infer.bundle.layout import BundleLayout, Domains
from kiss3d_infer.config import Config
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of
from kiss3d_train.data.cache import DiskCache, read_checked
from kiss3d_train.data.order import SampleOrder
from kiss3d_train.data.prompts import PromptStore
from kiss3d_train.data.shards import IndexedSample, IndexedShard, ShardIndex, Split
from kiss3d_train.data.shards.reader import is_sound
from kiss3d_train.data.storage import DamageError, Folder, LocalFolder, Place, folder_at, name_of
from kiss3d_train.data.stream import OrderFn, Sample

ENCODER_FILE = "encoder.json"
LATENT = "latent.safetensors"
_ENCODE_AGAIN = "delete this file and run `kiss3d data encode`, which makes what is missing"
_REQUESTS = 16
"""Indices of shards that are asked for at a time."""


class Encoder(Config):
    """What turned bundles and captions into numbers."""

    version: int = 2
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
    domains: Domains = "bundle"
    """Whether bundles are encoded whole, or each row by itself."""

    @property
    def identity(self) -> str:
        """SHA-256 over all of it."""
        described = self.model_dump(mode="json")
        if self.domains == "bundle":
            del described["domains"]  # caches and checkpoints from before it existed stay valid
        return sha256_of(json.dumps(described, sort_keys=True).encode())

    @property
    def name(self) -> str:
        """Of the folder of this encoder's results in the cache."""
        return name_of_cache(self.identity)


def name_of_cache(encoder: str) -> str:
    """The name of the folder of an encoder's results, by its identity."""
    return encoder[:16]


class LatentShard(Config):
    """The index of an encoded shard, in the order of the shard's samples and of their rows."""

    size: int
    """Bytes of the tar."""
    samples: tuple[IndexedSample, ...]
    prompts: tuple[str, ...]
    """Digests of the prompts that the samples need."""


class PromptPair(Config):
    """Prompts of a sample: digests of the full one, and of the one without its caption; its row."""

    full: str
    bare: str
    row: int = 0
    """Of the layout's rows: where the picture begins."""


def tar_of(shard: IndexedShard) -> str:
    """The name of the encoded form of a shard."""
    return f"{shard.sha256[:32]}.tar"


def record_of(shard: IndexedShard) -> str:
    """The name of its index."""
    return f"{shard.sha256[:32]}.json"


def not_encoded(place: Place, shards: Sequence[IndexedShard]) -> list[IndexedShard]:
    """Those shards whose encoded form, their prompts included, is not complete."""
    folder = folder_at(place)
    prompts = PromptStore(folder).digests()

    def is_missing(shard: IndexedShard) -> bool:
        try:
            record = read_latent_shard(folder, shard)
        except InputError:
            return True
        return not prompts.issuperset(record.prompts)

    with ThreadPoolExecutor(_REQUESTS) as pool:
        missing = pool.map(is_missing, shards)
        return [shard for shard, absent in zip(shards, missing, strict=True) if absent]


def read_latent_shard(folder: Folder, shard: IndexedShard) -> LatentShard:
    """The index of an encoded shard.

    Raises:
        DamageError: it is missing, unreadable, or its tar has another size.
    """
    tar = tar_of(shard)
    where = f"{folder.place}/{tar}"
    try:
        record = LatentShard.model_validate_json(folder.read(record_of(shard)))
        size = folder.size(tar)
    except (OSError, ValidationError) as error:
        raise DamageError(
            f"the encoded form of {shard.name} is missing or unreadable",
            where=where,
            fix="run `kiss3d data encode`, which makes what is missing",
        ) from error
    if size != record.size:
        raise DamageError(
            f"the tar is {size} bytes long, not {record.size}", where=where, fix=_ENCODE_AGAIN
        )
    return record


def read_encoder(place: Place) -> Encoder:
    """What made a cache.

    Raises:
        InputError: the folder is none, or holds the work of another encoder than its name says.
    """
    try:
        encoder = Encoder.model_validate_json(folder_at(place).read(ENCODER_FILE))
    except (OSError, ValidationError) as error:
        raise InputError(
            "this is no cache of latents", where=place, fix="run `kiss3d data encode`"
        ) from error
    if encoder.name != name_of(place):
        raise InputError(
            f"these latents come from another encoder ({encoder.name})",
            where=place,
            fix="delete the folder and encode again",
        )
    return encoder


class LatentSplit:
    """The encoded samples of a split by index, in the order of its shards. Threads may share it.

    Args:
        place: of one encoder's results.
        shards: of the split.
        cache: for what is read over the network; not used for a folder of this machine.
        pictures: that each bundle is encoded as. If given, a shard may be missing; its samples keep
            their places, and reading one is a DamageError.

    Raises:
        DamageError: a shard is not encoded; where one may be missing, none is.
    """

    def __init__(
        self,
        place: Place,
        shards: Sequence[IndexedShard],
        cache: DiskCache | None = None,
        pictures: int | None = None,
    ) -> None:
        self._folder = folder_at(place)
        self._cache = None if isinstance(self._folder, LocalFolder) else cache
        self._prompts = PromptStore(self._folder, self._cache)
        self._tars = [tar_of(shard) for shard in shards]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            self._indices = list(pool.map(self._record_or_damage, shards))
        damages = [found for found in self._indices if isinstance(found, DamageError)]
        if damages and (pictures is None or len(damages) == len(shards)):
            raise damages[0]
        self._counts = tuple(
            len(shard.samples) * (pictures or 1)
            if isinstance(found, DamageError)
            else len(found.samples)
            for shard, found in zip(shards, self._indices, strict=True)
        )
        self._rows = [(s, r) for s, count in enumerate(self._counts) for r in range(count)]
        self._bare: dict[str, dict[str, Tensor]] = {}

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
            DamageError: its bytes are missing, or not those that were indexed.
        """
        pair, mean_chw, logvar_chw = self._latent(shard, row)
        full = self.prompt(pair.full)
        if pair.bare not in self._bare:  # one or two for a whole data set: kept in memory
            self._bare[pair.bare] = self.prompt(pair.bare)
        bare = self._bare[pair.bare]
        return Sample(
            mean_chw=mean_chw.float(),
            std_chw=torch.exp(0.5 * logvar_chw.float()),
            prompt_LD=full["states"],
            pooled_P=full["pooled"],
            bare_prompt_LD=bare["states"],
            bare_pooled_P=bare["pooled"],
            row=pair.row,
        )

    def latent(self, index: int) -> tuple[PromptPair, Tensor, Tensor]:
        """A sample's prompts, and mean and log-variance [c, h, w] of its scaled latent, float16.

        Raises:
            DamageError: see `read`.
        """
        return self._latent(*self._rows[index])

    def prompts(self) -> list[str]:
        """Digests of all prompts of the samples, each once."""
        found = [shard for shard in self._indices if isinstance(shard, LatentShard)]
        return sorted({digest for shard in found for digest in shard.prompts})

    def prompt(self, digest: str) -> dict[str, Tensor]:
        """The tensors of a prompt; see `PromptStore.read`."""
        return self._prompts.read(digest)

    def _latent(self, shard: int, row: int) -> tuple[PromptPair, Tensor, Tensor]:
        found = self._indices[shard]
        if isinstance(found, DamageError):  # anew, as each raise adds to an error's traceback
            raise DamageError(found.what, where=found.where, fix=found.fix)
        members = self._members(self._tars[shard], found.samples[row])
        latent = _tensors(members[LATENT])
        pair = PromptPair.model_validate_json(members["json"])
        return pair, latent["mean"], latent["logvar"]

    def _record_or_damage(self, shard: IndexedShard) -> LatentShard | DamageError:
        try:
            return read_latent_shard(self._folder, shard)
        except DamageError as damage:
            return damage

    def _members(self, tar: str, sample: IndexedSample) -> dict[str, bytes]:
        ranges = list(sample.members.values())
        parts = read_checked(
            lambda: self._folder.read_ranges(tar, ranges),
            lambda found: is_sound(sample, found),
            sample.sha256,
            self._cache,
            f"{self._folder.place}/{tar}:{sample.key}",
        )
        if len(parts) < len(ranges):  # from the cache, which keeps them as one
            (whole,) = parts
            ends = list(accumulate(size for _, size in ranges))
            parts = [whole[start:end] for start, end in zip((0, *ends), ends, strict=False)]
        return dict(zip(sample.members, parts, strict=True))


def open_split(
    place: Place,
    index: ShardIndex,
    split: Split,
    cache: DiskCache | None = None,
    *,
    may_lack: bool = False,
) -> LatentSplit:
    """The encoded samples of a data set's split.

    Args:
        place: of one encoder's results, as `encode_shards` returns it.
        index: of the data set.
        split: "train" or "val".
        cache: for what is read over the network.
        may_lack: whether some of the shards may be missing; their samples are then damaged ones.

    Raises:
        InputError: the folder is no cache, or a shard that must not be missing is not encoded.
    """
    pictures = len(index.layout.pictures(read_encoder(place).domains))
    return LatentSplit(place, index.of(split), cache, pictures if may_lack else None)


def _tensors(data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    tensors: dict[str, Tensor] = load(data)
    return tensors
