"""Encode shards once, so that training needs neither the VAE nor the text encoders."""

import math
import tarfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout, Domains
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writable_folder
from kiss3d_infer.flux.base import base_identity, load_base, read_config
from kiss3d_infer.flux.prompt import clip_prompt, encode_captions, t5_prompt
from kiss3d_infer.progress import track
from kiss3d_train.config import OnCorrupt
from kiss3d_train.data.encoder_room import ENCODER_PARTS, encoders_per_gpu, num_encoders
from kiss3d_train.data.latents import (
    ENCODER_FILE,
    LATENT,
    Encoder,
    LatentShard,
    PromptPair,
    not_encoded,
    read_encoder,
    read_latent_shard,
    record_of,
    tar_of,
)
from kiss3d_train.data.lost import lost_shards, skip_or_raise
from kiss3d_train.data.prompts import PromptStore
from kiss3d_train.data.shards import (
    SPLITS,
    IndexedSample,
    IndexedShard,
    ShardIndex,
    Split,
    decode_sample,
    load_index,
)
from kiss3d_train.data.shards.index import MAKE_AGAIN
from kiss3d_train.data.shards.reader import description_in, read_members
from kiss3d_train.data.shards.writer import add_sample
from kiss3d_train.data.storage import DamageError, Folder, LocalFolder, Place, absolute, folder_at
from kiss3d_train.data.tile import check_tile

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_CAPTIONS_PER_PASS = 8
_DETERMINISTIC_LOGVAR = -30.0
"""AutoencoderKL's own lower bound; for an autoencoder without a posterior."""
_STALE_SECONDS = 3600
"""Files aside that were not written to for so long were left by a job that was killed."""


def encode_shards(
    shards: Place,
    base: Path,
    out: Place,
    *,
    dtype: str = "float32",
    use_gpu: bool = False,
    identity: str | None = None,
    domains: Domains = "bundle",
    on_corrupt: OnCorrupt = "stop",
) -> Place:
    """Encode every shard of a data set that is not encoded yet, over Ray.

    Ray is started on this machine unless it runs already. Each shard is one unit of work that
    appears only when whole, so an interrupted job continues where it stopped; a shard whose worker
    died is tried once more. A prompt is embedded once for the whole cache.

    The tar of a shard that is encoded already is not needed. A shard for training that is not, and
    that is missing or damaged, is left out as a whole if `on_corrupt` is "skip".

    Args:
        shards: the data set.
        base: the model whose VAE and text encoders are used.
        out: root of the cache, which may hold the work of several encoders.
        dtype: of the text encoders, base.dtype of the recipe that will train on the result; the VAE
            always runs in float32.
        use_gpu: one GPU per encoder process, else one CPU core.
        identity: `base_identity(base)`, if it is known already.
        domains: data.domains of the recipe.
        on_corrupt: data.on_corrupt of the recipe.

    Returns:
        The folder of this encoder's results below `out`.

    Raises:
        InputError: the data set or the base cannot be read, the tiles cannot be trained on, or
            `out` cannot be written.
    """
    index = load_index(shards)
    check_tile(index.tile, shards)
    identity = identity or base_identity(base)
    encoder = describe_encoder(base, identity, index.layout, dtype, domains)
    folder = create_cache(encoder, out)
    lost = lost_shards(shards, index, folder, on_corrupt)
    missing = {shard.sha256 for shard in not_encoded(folder, index.shards)}
    todo = [
        (split, number)
        for split in SPLITS
        for number, shard in enumerate(index.of(split))
        if shard.sha256 in missing and shard.name not in lost
    ]
    if todo:
        _remove_stale(folder_at(folder))
        _encode_over_ray(shards, base, folder, todo, use_gpu=use_gpu, on_corrupt=on_corrupt)
    return folder


def create_cache(encoder: Encoder, out: Place) -> Place:
    """The folder of an encoder's results below `out`, made if needed.

    Raises:
        InputError: it holds the work of another encoder, or cannot be written.
    """
    root = folder_at(out)
    if isinstance(root, LocalFolder):
        writable_folder(root.place)
    folder = root.child(encoder.name)
    if ENCODER_FILE in folder.sizes():
        read_encoder(folder.place)
    else:
        with folder.writing(ENCODER_FILE) as aside:
            aside.write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
    return folder.place


def _remove_stale(folder: Folder) -> None:
    if isinstance(folder, LocalFolder):
        for aside in folder.place.glob("**/.*.partial.*"):
            if time.time() - aside.stat().st_mtime > _STALE_SECONDS:
                aside.unlink(missing_ok=True)


def describe_encoder(
    base: Path, identity: str, layout: BundleLayout, dtype: str, domains: Domains = "bundle"
) -> Encoder:
    """The encoder that a base gives, without loading weights.

    Raises:
        InputError: the base has no configuration of a VAE.
    """
    vae = read_config(base, "vae/config.json")
    scaling, shift = vae.get("scaling_factor"), vae.get("shift_factor")
    return Encoder(
        base=identity,
        dtype=dtype,
        layout=layout,
        scaling=1.0 if scaling is None else scaling,
        shift=0.0 if shift is None else shift,
        domains=domains,
    )


class ShardEncoder:
    """Holds the VAE and the text encoders, and encodes one shard after the other.

    They are loaded with the first shard: an error in a Ray actor's __init__ loses its type.
    """

    def __init__(self, shards: Place, base: Path, folder: Place, device: str) -> None:
        self._shards, self._base, self._device = shards, base, device
        self._folder = folder_at(folder)
        self._prompts = PromptStore(self._folder)

    @cached_property
    def _index(self) -> ShardIndex:
        return load_index(self._shards)

    @cached_property
    def _pictures(self) -> tuple[BundleLayout, ...]:
        return self._index.layout.pictures(read_encoder(self._folder.place).domains)

    @cached_property
    def _pipeline(self) -> "FluxPipeline":
        dtype = read_encoder(self._folder.place).dtype
        pipeline = load_base(self._base, dtype=dtype, device=self._device, parts=ENCODER_PARTS)
        if dtype != "float32":
            pipeline.vae.to(torch.float32)
        return pipeline

    def encode_if_sound(self, split: Split, number: int) -> InputError | None:
        """Encode a shard; returns what is damaged if something is, and raises all other errors.

        It is returned, as an error that is raised in a Ray actor arrives as another type.
        """
        try:
            self.encode(split, number)
        except DamageError as damage:
            return damage
        return None

    def encode(self, split: Split, number: int) -> None:
        """Encode a split's shard by its number.

        Raises:
            DamageError: the tar is missing, or a sample's bytes are damaged.
            InputError: the base cannot be read, or a sample holds no bundle.
        """
        shard = self._index.of(split)[number]
        with _fetched(folder_at(self._shards), shard.name) as path:
            samples = self._samples(shard, path)
            if self._has_latents(shard):
                self._embed_missing(description_in(*sample)["caption"] for sample in samples)
            else:
                self._encode_pictures(shard, samples)

    def _has_latents(self, shard: IndexedShard) -> bool:
        try:
            read_latent_shard(self._folder, shard)
        except InputError:
            return False
        return True

    def _samples(self, shard: IndexedShard, path: Path) -> Iterator[tuple[dict[str, bytes], str]]:
        """Members and place of a shard's samples."""
        folder = LocalFolder(path.parent)
        for indexed in shard.samples:
            yield read_members(folder, path.name, indexed), f"{shard.name}:{indexed.key}"

    def _encode_pictures(
        self, shard: IndexedShard, samples: Iterator[tuple[dict[str, bytes], str]]
    ) -> None:
        captions = {""}
        indexed: list[IndexedSample] = []
        with self._folder.writing(tar_of(shard)) as aside:
            with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
                for known, sample in zip(shard.samples, samples, strict=True):
                    bundle, meta = decode_sample(*sample)
                    captions.add(caption := meta["caption"])
                    for name, payload in self._encoded(bundle, caption):
                        indexed.append(add_sample(tar, f"{known.key}{name}", payload))
            size = aside.stat().st_size
        digests = self._embed_missing(captions)
        record = LatentShard(size=size, samples=tuple(indexed), prompts=tuple(sorted(digests)))
        with self._folder.writing(record_of(shard)) as aside:
            aside.write_text(record.model_dump_json(), encoding="utf-8")

    def _encoded(self, bundle: Bundle, caption: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Members of every picture of a bundle, and what to name them after its key."""
        images = bundle.image.chunk(len(self._pictures), dim=1)
        for row, (layout, image) in enumerate(zip(self._pictures, images, strict=True)):
            pair = PromptPair(full=_digest(caption, layout), bare=_digest("", layout), row=row)
            latent = encode_image(self._pipeline, image)
            # Defaults are left out, so that whole bundles give the bytes that they always gave.
            described = pair.model_dump_json(exclude_defaults=True).encode()
            name = f".{layout.rows[0]}" if len(images) > 1 else ""
            yield name, {LATENT: _bytes(latent), "json": described}

    def _embed_missing(self, captions: Iterable[str]) -> set[str]:
        """Embed the captions that the cache lacks, and the empty one; returns all their digests."""
        different = {"", *captions}
        return set[str]().union(*(self._embed(different, layout) for layout in self._pictures))

    def _embed(self, captions: set[str], layout: BundleLayout) -> set[str]:
        by_digest = {_digest(caption, layout): caption for caption in captions}
        missing = sorted(digest for digest in by_digest if not self._prompts.has(digest))
        for first in range(0, len(missing), _CAPTIONS_PER_PASS):
            some = missing[first : first + _CAPTIONS_PER_PASS]
            states, pooled = encode_captions(
                self._pipeline, [by_digest[digest] for digest in some], layout
            )
            for digest, state, vector in zip(some, states, pooled, strict=True):
                self._prompts.write(digest, {"states": state.cpu(), "pooled": vector.cpu()})
        return set(by_digest)


@torch.no_grad()
def encode_image(pipeline: "FluxPipeline", image: Tensor) -> dict[str, Tensor]:
    """Mean and log-variance [c, h, w] of the scaled latent of a picture [3, H, W], float16.

    Scaled, as half precision has no digits to spare for a shift that is large beside the deviation.
    """
    vae = pipeline.vae
    pixels = image[None].to(vae.device, vae.dtype) * 2 - 1
    encoded = vae.encode(pixels)
    if hasattr(encoded, "latent_dist"):
        mean, logvar = encoded.latent_dist.mean, encoded.latent_dist.logvar
    else:
        mean, logvar = encoded.latents, torch.full_like(encoded.latents, _DETERMINISTIC_LOGVAR)
    mean = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    logvar = logvar + 2 * math.log(vae.config.scaling_factor)
    return {"mean": mean[0].half().cpu(), "logvar": logvar[0].half().cpu()}


def _encode_over_ray(
    shards: Place,
    base: Path,
    folder: Place,
    todo: Sequence[tuple[Split, int]],
    *,
    use_gpu: bool,
    on_corrupt: OnCorrupt,
) -> None:
    import ray

    from kiss3d_train.ray_session import ray_session, unwrapped

    with ray_session() as resources, unwrapped():
        device = "cuda" if use_gpu else "cpu"
        share = 1 / encoders_per_gpu(base, resources) if use_gpu else 0
        actor = ray.remote(num_cpus=1, num_gpus=share, scheduling_strategy="SPREAD")(ShardEncoder)

        def create() -> Any:
            return actor.remote(absolute(shards), base.absolute(), absolute(folder), device)

        num_workers = min(len(todo), num_encoders(base, resources, use_gpu))
        results = _encoded_by(create, num_workers, todo)
        for split, damage in track(results, "encoding shards", total=len(todo)):
            if damage:
                skip_or_raise(damage, split, on_corrupt)


def _encoded_by(
    create: Callable[[], Any], num_workers: int, todo: Sequence[tuple[Split, int]]
) -> Iterator[tuple[Split, InputError | None]]:
    """Each shard's split and damage, as they end. One that kills two workers ends it."""
    import ray
    from ray.exceptions import RayActorError

    waiting, crashes = deque(todo), Counter[tuple[Split, int]]()
    idle = [create() for _ in range(num_workers)]
    running: dict[Any, tuple[Any, tuple[Split, int]]] = {}
    try:
        while waiting or running:
            while waiting and idle:
                worker, place = idle.pop(), waiting.popleft()
                running[worker.encode_if_sound.remote(*place)] = (worker, place)
            (reference, *_), _ = ray.wait(list(running))
            worker, place = running.pop(reference)
            try:
                yield place[0], ray.get(reference)
            except RayActorError as error:
                crashes[place] += 1
                if crashes[place] > 1:
                    name = f"{place[0]} shard {place[1]}"
                    raise RuntimeError(f"the process that encodes {name} died twice") from error
                waiting.append(place)
                worker = create()
            idle.append(worker)
    finally:
        for worker in (*idle, *(busy for busy, _ in running.values())):
            ray.kill(worker)  # frees its memory now, not when Ray gets to it


@contextmanager
def _fetched(folder: Folder, tar: str) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            path = stack.enter_context(folder.fetched(tar))
        except FileNotFoundError as error:
            where = f"{folder.place}/{tar}"
            raise DamageError("a shard is missing", where=where, fix=MAKE_AGAIN) from error
        yield path


def _digest(caption: str, layout: BundleLayout) -> str:
    return sha256_of(f"{clip_prompt(layout)}\n{t5_prompt(caption, layout)}".encode())[:32]


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    data: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data
