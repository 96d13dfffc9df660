"""Samples per second from latent shards: ours against plain webdataset and Ray Data.

    python -m benchmarks.data.streaming [--samples 200] [--rounds 3]

All read the same tensors at the size of FLUX.1-dev and published bundles: mean and log-variance
[16, 128, 256] in float16 (2 MiB), a T5 embedding [512, 4096] in bfloat16 (4 MiB) and a pooled one.
Ours reads them in the order of training, checks each against its checksum and can begin at any
sample; webdataset and Ray Data stream tars that hold the same files, one after the other, and
shuffle in a buffer. Every reader decodes with safetensors and makes the same float32 posterior.
The files stay in the page cache, so that what is measured is the readers and not the disk.
"""

import argparse
import hashlib
import io
import logging
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load, save

from benchmarks.machine import describe, write_report
from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_train.config import TrainConfig
from kiss3d_train.data.encode import create_cache
from kiss3d_train.data.latents import (
    LATENT,
    Encoder,
    LatentShard,
    LatentSplit,
    PromptPair,
    record_of,
    tar_of,
)
from kiss3d_train.data.prompts import PromptStore
from kiss3d_train.data.shards import IndexedShard
from kiss3d_train.data.shards.writer import add_sample
from kiss3d_train.data.storage import folder_at
from kiss3d_train.data.stream import Sample, Stream

PER_SHARD = 25
SHUFFLE = 50
"""Samples in webdataset's buffer: two shards' worth."""
STORE_SECONDS = 0.05
"""Delay of a simulated store, per sample."""


def make_sets(folder: Path, num_samples: int) -> tuple[LatentSplit, list[str]]:
    """Our cache of random latents, and tars of the same tensors for the others."""
    encoder = Encoder(base="random", dtype="bfloat16", layout=PUBLISHED, scaling=1, shift=0)
    place = create_cache(encoder, folder / "latents")
    ours, prompts = folder_at(place), PromptStore(folder_at(place))
    prompts.write("bare", _prompt(-1))
    shards, tars = [], []
    for first in range(0, num_samples, PER_SHARD):
        numbers = range(first, min(first + PER_SHARD, num_samples))
        shard = IndexedShard(
            name=f"train-{len(shards):05}.tar",
            split="train",
            size=0,
            sha256=hashlib.sha256(str(first).encode()).hexdigest(),
            samples=(),
        )
        shards.append(shard.model_copy(update={"samples": _write(ours, prompts, shard, numbers)}))
        tars.append(str(_write_plain(folder / shard.name, numbers)))
    return LatentSplit(place, shards), tars


def _write(ours: Any, prompts: PromptStore, shard: IndexedShard, numbers: range) -> Any:
    samples = []
    with ours.writing(tar_of(shard)) as aside:
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                prompts.write(f"prompt-{number}", _prompt(number))
                pair = PromptPair(full=f"prompt-{number}", bare="bare")
                members = {LATENT: save(_latent(number)), "json": pair.model_dump_json().encode()}
                samples.append(add_sample(tar, f"{number:06}", members))
        size = aside.stat().st_size
    record = LatentShard(size=size, samples=tuple(samples), prompts=("bare",))
    with ours.writing(record_of(shard)) as aside:
        aside.write_text(record.model_dump_json())
    return tuple(samples)


def _write_plain(path: Path, numbers: range) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            members = {LATENT: save(_latent(number)), "prompt.safetensors": save(_prompt(number))}
            for extension, data in members.items():
                header = tarfile.TarInfo(f"{number:06}.{extension}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def _latent(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    mean = torch.randn(16, 128, 256, generator=generator)
    return {"mean": mean.half(), "logvar": (0.1 * mean - 6).half()}


def _prompt(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number + 1_000_000)
    states = torch.randn(512, 4096, generator=generator).bfloat16()
    return {"states": states, "pooled": torch.randn(768, generator=generator).bfloat16()}


def _decoded(latent: bytes, prompt: bytes) -> Sample:
    posterior, text = load(latent), load(prompt)
    mean, std = posterior["mean"].float(), torch.exp(0.5 * posterior["logvar"].float())
    return Sample(mean, std, text["states"], text["pooled"], text["states"], text["pooled"])


def through_ours(split: LatentSplit) -> Iterator[Sample]:
    """One epoch in the order of training, in this thread."""
    order = split.order(seed=0)
    for place in range(len(split)):
        yield split[order(0, place)]


def through_webdataset(tars: list[str]) -> Iterator[Sample]:
    """One epoch of shuffled shards through a shuffle buffer, in this thread."""
    import webdataset as wds

    for sample in wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(SHUFFLE):
        yield _decoded(sample[LATENT], sample["prompt.safetensors"])


def through_ray(tars: list[str]) -> Iterator[Sample]:
    """One epoch that one Ray worker reads, shuffled by files."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data = ray.data.read_webdataset(tars, decoder=False, shuffle="files", concurrency=1)
    for row in data.iter_rows():
        yield _decoded(row[LATENT], row["prompt.safetensors"])


class Delayed:
    """Samples of a store that takes a while to answer."""

    def __init__(self, split: LatentSplit) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Sample:
        time.sleep(STORE_SECONDS)
        return self._split[index]


def through_stream(samples: Any, split: LatentSplit, readers: int) -> Iterator[Any]:
    """One epoch as batches of one, everything random drawn: what a training step takes."""
    config = TrainConfig.model_validate(
        {
            "run": {"dir": "unused", "steps": 1},
            "base": {"path": "unused"},
            "data": {"shards": "x", "global_batch": 1, "prefetch": 2 * readers, "readers": readers},
            "scaling": {"use_gpu": torch.cuda.is_available()},
        }
    )
    stream = Stream(samples, split.order(0), config, 0, 1)
    for step in range(len(split)):
        yield from stream.micro_batches(step)
    stream.close()


def rates(split: LatentSplit, tars: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Samples/s of each reader; the rounds of all are interleaved, as others use the machine."""
    delayed = Delayed(split)
    readers: dict[str, Callable[[], Iterator[Any]]] = {
        "ours, one thread": lambda: through_ours(split),
        "webdataset, one thread": lambda: through_webdataset(tars),
        "ray.data.read_webdataset, one reader": lambda: through_ray(tars),
        "tars to batch, 1 reader": lambda: through_stream(split, split, 1),
        "tars to batch, 2 readers": lambda: through_stream(split, split, 2),
        "tars to batch, store of 50 ms, 1 reader": lambda: through_stream(delayed, split, 1),
        "tars to batch, store of 50 ms, 8 readers": lambda: through_stream(delayed, split, 8),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            began, busy = time.perf_counter(), time.process_time()
            count = sum(1 for _ in read())
            busy, seconds = time.process_time() - busy, time.perf_counter() - began
            assert count == len(split), f"{name} gave {count} samples"
            found[name].append((count / seconds, 1000 * busy / count))
            print(f"{name}: {count / seconds:.1f} samples/s", flush=True)
    return {name: _summed_up(measured) for name, measured in found.items()}


def _summed_up(measured: list[tuple[float, float]]) -> dict[str, float]:
    speeds = [speed for speed, _ in measured]
    return {
        "samples_per_s": round(median(speeds), 1),
        "lowest": round(min(speeds), 1),
        "highest": round(max(speeds), 1),
        # Of this process, all its threads; Ray Data's workers are others.
        "cpu_ms_per_sample": round(median(busy for _, busy in measured), 1),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from kiss3d_train.ray_session import ray_session

    with tempfile.TemporaryDirectory() as folder, ray_session(2):
        split, tars = make_sets(Path(folder), arguments.samples)
        result = {
            "command": f"python -m benchmarks.data.streaming --samples {arguments.samples}"
            f" --rounds {arguments.rounds}",
            "machine": describe("webdataset", "ray"),
            "load_before": round(os.getloadavg()[0], 1),
            "samples": arguments.samples,
            "rounds": arguments.rounds,
            "mib_per_sample": 6.0,
            "readers": rates(split, tars, arguments.rounds),
        }
    print(write_report(result, "streaming-cpu"))


if __name__ == "__main__":
    main()
