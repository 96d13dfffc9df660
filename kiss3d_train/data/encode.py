"""Encode shards once, so that training needs neither the VAE nor the text encoders."""

import math
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writable_folder, writing
from kiss3d_infer.flux.base import base_identity, load_base, read_config
from kiss3d_infer.flux.prompt import clip_prompt, encode_captions, t5_prompt
from kiss3d_infer.progress import track
from kiss3d_train.data.latents import (
    ENCODER_FILE,
    LATENT,
    PROMPT,
    Encoder,
    LatentShard,
    PromptPair,
    is_encoded,
    read_encoder,
    tar_of,
)
from kiss3d_train.data.shards import (
    SPLITS,
    IndexedSample,
    IndexedShard,
    ShardReader,
    Split,
    decode_sample,
)
from kiss3d_train.data.shards.writer import add_sample
from kiss3d_train.data.tile import check_tile

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_ENCODER_PARTS = ("vae", "text_encoder", "text_encoder_2")
_CAPTIONS_PER_PASS = 8
_PROCESS_BYTES = 2**30
"""Memory of an encoder's process beside its weights."""
_DETERMINISTIC_LOGVAR = -30.0
"""AutoencoderKL's own lower bound; for an autoencoder without a posterior."""


def encode_shards(
    shards: Path,
    base: Path,
    out: Path,
    *,
    dtype: str = "float32",
    use_gpu: bool = False,
    identity: str | None = None,
) -> Path:
    """Encode every shard of a data set that is not encoded yet, over Ray.

    Ray is started on this machine unless it runs already. Each shard is one unit of work that
    appears only when whole, so an interrupted job continues where it stopped.

    Args:
        shards: the data set.
        base: the model whose VAE and text encoders are used.
        out: root of the cache, which may hold the work of several encoders.
        dtype: of the text encoders, base.dtype of the recipe that will train on the result; the VAE
            always runs in float32.
        use_gpu: one GPU per encoder process, else one CPU core.
        identity: `base_identity(base)`, if it is known already.

    Returns:
        The folder of this encoder's results below `out`.

    Raises:
        InputError: the data set or the base cannot be read, the tiles cannot be trained on, or
            `out` cannot be written.
    """
    index = ShardReader(shards).index
    check_tile(index.tile, shards)
    encoder = describe_encoder(base, identity or base_identity(base), index.layout, dtype)
    folder = create_cache(encoder, out)
    todo = [
        (split, number)
        for split in SPLITS
        for number, shard in enumerate(index.of(split))
        if not is_encoded(folder, shard)
    ]
    if todo:
        _encode_over_ray(shards, base, folder, todo, use_gpu=use_gpu)
    return folder


def create_cache(encoder: Encoder, out: Path) -> Path:
    """The folder of an encoder's results below `out`, made if needed.

    Raises:
        InputError: it holds the work of another encoder, or cannot be written.
    """
    folder = encoder.folder(writable_folder(out))
    if (folder / ENCODER_FILE).exists():
        read_encoder(folder)
    else:
        with writing(folder / ENCODER_FILE) as aside:
            aside.write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
    return folder


def describe_encoder(base: Path, identity: str, layout: BundleLayout, dtype: str) -> Encoder:
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
    )


class ShardEncoder:
    """Holds the VAE and the text encoders, and encodes one shard after the other.

    They are loaded with the first shard: an error in a Ray actor's __init__ loses its type.
    """

    def __init__(self, shards: Path, base: Path, folder: Path, device: str) -> None:
        self._shards, self._base, self._folder, self._device = shards, base, folder, device

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self._shards)

    @cached_property
    def _pipeline(self) -> "FluxPipeline":
        dtype = read_encoder(self._folder).dtype
        pipeline = load_base(self._base, dtype=dtype, device=self._device, parts=_ENCODER_PARTS)
        if dtype != "float32":
            pipeline.vae.to(torch.float32)
        return pipeline

    def encode(self, split: Split, number: int) -> int:
        """Encode a split's shard by its number; returns how many samples it has.

        Raises:
            InputError: the base cannot be read, or a sample's bytes are damaged or hold no bundle.
        """
        shard = self._reader.index.of(split)[number]
        tar = tar_of(self._folder, shard)
        with writing(tar) as aside:
            with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as archive:
                samples, prompts = self._write(archive, shard, number)
            size = aside.stat().st_size
        record = LatentShard(size=size, samples=tuple(samples), prompts=prompts)
        with writing(tar.with_suffix(".json")) as aside:
            aside.write_text(record.model_dump_json(), encoding="utf-8")
        return len(samples)

    def _write(
        self, archive: tarfile.TarFile, shard: IndexedShard, number: int
    ) -> tuple[list[IndexedSample], dict[str, IndexedSample]]:
        layout = self._reader.index.layout
        samples, captions = [], {_digest("", layout): ""}
        for row, indexed in enumerate(shard.samples):
            members = self._reader.read_at(shard.split, number, row)
            bundle, meta = decode_sample(members, where=f"{shard.name}:{indexed.key}")
            caption = str(meta.get("caption") or "")
            digest = _digest(caption, layout)
            captions[digest] = caption
            pair = PromptPair(full=digest, bare=_digest("", layout))
            latent = encode_image(self._pipeline, bundle)
            payload = {LATENT: _bytes(latent), "json": pair.model_dump_json().encode()}
            samples.append(add_sample(archive, indexed.key, payload))
        prompts = {
            digest: add_sample(archive, digest, {PROMPT: _bytes(tensors)})
            for digest, tensors in self._embed(captions)
        }
        return samples, prompts

    def _embed(self, captions: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        digests = list(captions)
        for first in range(0, len(digests), _CAPTIONS_PER_PASS):
            some = digests[first : first + _CAPTIONS_PER_PASS]
            states, pooled = encode_captions(
                self._pipeline, [captions[digest] for digest in some], self._reader.index.layout
            )
            for digest, state, vector in zip(some, states, pooled, strict=True):
                yield digest, {"states": state.cpu(), "pooled": vector.cpu()}


@torch.no_grad()
def encode_image(pipeline: "FluxPipeline", bundle: Bundle) -> dict[str, Tensor]:
    """Mean and log-variance [c, h, w] of a bundle's scaled latent, float16.

    Scaled, as half precision has no digits to spare for a shift that is large beside the deviation.
    """
    vae = pipeline.vae
    pixels = bundle.image[None].to(vae.device, vae.dtype) * 2 - 1
    encoded = vae.encode(pixels)
    if hasattr(encoded, "latent_dist"):
        mean, logvar = encoded.latent_dist.mean, encoded.latent_dist.logvar
    else:
        mean, logvar = encoded.latents, torch.full_like(encoded.latents, _DETERMINISTIC_LOGVAR)
    mean = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    logvar = logvar + 2 * math.log(vae.config.scaling_factor)
    return {"mean": mean[0].half().cpu(), "logvar": logvar[0].half().cpu()}


def _encode_over_ray(
    shards: Path,
    base: Path,
    folder: Path,
    todo: Sequence[tuple[Split, int]],
    *,
    use_gpu: bool,
) -> None:
    import ray
    from ray.util import ActorPool

    from kiss3d_train.ray_session import ray_session, unwrapped

    with ray_session() as resources, unwrapped():
        device = "cuda" if use_gpu else "cpu"
        actor = ray.remote(num_cpus=1, num_gpus=int(use_gpu), scheduling_strategy="SPREAD")(
            ShardEncoder
        )
        actors = [
            actor.remote(shards.absolute(), base.absolute(), folder.absolute(), device)
            for _ in range(min(len(todo), num_encoders(base, resources, use_gpu)))
        ]
        pool = ActorPool(actors)
        results = pool.map_unordered(lambda worker, place: worker.encode.remote(*place), todo)
        for _ in track(results, "encoding shards", total=len(todo)):
            pass
        for worker in actors:
            ray.kill(worker)  # frees its memory now, not when Ray gets to it


def num_encoders(base: Path, resources: Mapping[str, float], use_gpu: bool) -> int:
    """How many encoders a cluster can hold: one per GPU, else by cores and memory.

    Raises:
        InputError: GPUs are wanted and there are none.
    """
    if use_gpu and not resources.get("GPU"):
        raise InputError("the cluster has no GPU to encode on", fix="use the CPU, or add one")
    if use_gpu:
        return int(resources["GPU"])
    folder = base if base.is_dir() else base.parent
    files = [file for part in _ENCODER_PARTS for file in (folder / part).glob("*.safetensors")]
    if base.is_file():
        files.append(base)  # it may hold any part
    # Twice: files in half precision become float32.
    needed = _PROCESS_BYTES + 2 * sum(file.stat().st_size for file in files)
    return max(1, int(min(resources["CPU"], resources["memory"] // needed)))


def _digest(caption: str, layout: BundleLayout) -> str:
    return sha256_of(f"{clip_prompt(layout)}\n{t5_prompt(caption, layout)}".encode())[:32]


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    data: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data
