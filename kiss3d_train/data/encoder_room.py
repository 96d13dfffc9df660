"""How many encoders a cluster has room for."""

from collections.abc import Mapping
from pathlib import Path

from kiss3d_infer.errors import InputError

ENCODER_PARTS = ("vae", "text_encoder", "text_encoder_2")
"""What encodes, of a base's parts."""
_PROCESS_BYTES = 2**30
"""Memory of an encoder's process beside its weights."""
_SMALL_BASE_BYTES = 2**29
_MOST_PER_GPU = 8
"""Encoders of a small base on one GPU, which reading and packing would leave idle."""


def num_encoders(base: Path, resources: Mapping[str, float], use_gpu: bool) -> int:
    """How many encoders a cluster can hold: see `encoders_per_gpu`, else by cores and memory.

    Raises:
        InputError: GPUs are wanted and there are none.
    """
    if use_gpu:
        return int(resources.get("GPU", 0)) * encoders_per_gpu(base, resources)
    # Twice: files in half precision become float32.
    needed = _PROCESS_BYTES + 2 * _weight_bytes(base)
    return max(1, int(min(resources["CPU"], resources["memory"] // needed)))


def encoders_per_gpu(base: Path, resources: Mapping[str, float]) -> int:
    """How many encoders share a GPU: one, or of a small base as many as there are cores for.

    Raises:
        InputError: the cluster has no GPU.
    """
    num_gpus = int(resources.get("GPU", 0))
    if not num_gpus:
        raise InputError("the cluster has no GPU to encode on", fix="use the CPU, or add one")
    if _weight_bytes(base) > _SMALL_BASE_BYTES:
        return 1
    return max(1, min(_MOST_PER_GPU, int(resources["CPU"]) // num_gpus))


def _weight_bytes(base: Path) -> int:
    folder = base if base.is_dir() else base.parent
    files = [file for part in ENCODER_PARTS for file in (folder / part).glob("*.safetensors")]
    if base.is_file():
        files.append(base)  # it may hold any part
    return sum(file.stat().st_size for file in files)
