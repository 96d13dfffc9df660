"""The model's weights: which tensors they must be, and loading them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.lrm.config import PUBLISHED_SIZES, LrmConfig
from kiss3d_infer.reconstruct.lrm.network import Lrm

Shape = tuple[int, ...]
_MOST_NAMED = 5


def load_lrm(path: Path, *, device: str = "cpu", config: LrmConfig = PUBLISHED_SIZES) -> Lrm:
    """Load the network in float32, ready for inference.

    Args:
        path: a .safetensors file as `convert` writes it.
        device: where the weights go.
        config: the sizes of the network in the file.

    Raises:
        InputError: no such file, another format, or a tensor is missing, unknown or misshapen.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise InputError(
            "the LRM's weights must be .safetensors",
            where=path,
            fix="convert the published checkpoint: kiss3d convert lrm final_ckpt.ckpt -o FILE",
        )
    if not path.is_file():
        raise InputError("no such file", where=path, fix="see docs/lrm.md for the LRM's weights")
    try:
        with safe_open(path, framework="pt", device=device) as content:
            names = list(content.keys())
            require_fit({n: tuple(content.get_slice(n).get_shape()) for n in names}, config, path)
            tensors = {name: content.get_tensor(name).float() for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a readable safetensors file: {error}", where=path) from error
    network = _skeleton(config)
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def require_fit(shapes: Mapping[str, Shape], config: LrmConfig, where: Path) -> None:
    """Compare tensors with the network's.

    Raises:
        InputError: naming the first tensors that are missing, unknown or misshapen, and how many
            more there are.
    """
    expected = {name: tuple(t.shape) for name, t in _skeleton(config).state_dict().items()}
    problems = [f"{name} is missing" for name in expected if name not in shapes]
    problems += [f"{name} is unknown" for name in shapes if name not in expected]
    problems += [
        f"{name} is {shape}, must be {expected[name]}"
        for name, shape in shapes.items()
        if expected.get(name, shape) != shape
    ]
    if problems:
        more = len(problems) - _MOST_NAMED
        named = problems[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else [])
        raise InputError(
            f"these are not the LRM's weights: {'; '.join(named)}",
            where=where,
            fix="give PRM's final_ckpt.ckpt, or what it was converted to",
        )


def _skeleton(config: LrmConfig) -> Lrm:
    """The network without memory behind its weights."""
    with torch.device("meta"):
        return Lrm(config)
