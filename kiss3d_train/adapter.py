"""LoRA on the Flux transformer: which linears, in which precision, and how it starts."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiss3d_infer.errors import InputError, first_of
from kiss3d_infer.flux.lora import read_lora
from kiss3d_train.config import AdapterSection

_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
_MLP = (
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
    "proj_out",
)
_PRESETS = {"attention": _ATTENTION, "all-linear": _ATTENTION + _MLP}
_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
_PEFT_NAME = ".default"


def target_modules(transformer: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """Full names of the linears that get an adapter: those in a block with one of the endings.

    Raises:
        InputError: an ending given by the user matches no linear.
    """
    endings = _PRESETS[targets] if isinstance(targets, str) else targets
    linears = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(_BLOCKS)
    ]
    matches = {end: [name for name in linears if f".{name}".endswith(f".{end}")] for end in endings}
    unmatched = [end for end, names in matches.items() if not names]
    if unmatched and not isinstance(targets, str):
        raise InputError(
            f"no linear of the transformer's blocks ends in {', '.join(unmatched)}",
            where="adapter.targets",
            fix="name modules as diffusers does, e.g. attn.to_q or ff.net.2",
        )
    return sorted({name for names in matches.values() for name in names})


def add_adapter(transformer: Any, config: AdapterSection, seed: int) -> None:
    """Freeze the transformer and add float32 LoRA weights.

    Float32 is needed whatever the base's precision: a LoRA weight of 0.01 stored in bfloat16 does
    not change by an Adam step of 2e-5. Each matrix starts from its own generator, keyed by
    (seed, module name): A uniform in +-1/sqrt(in_features) as in the reference LoRA, B zero. With
    `init_from`, they start from the weights of that LoRA.

    Raises:
        InputError: `init_from` cannot be read or does not fit.
    """
    from peft import LoraConfig

    names = target_modules(transformer, config.targets)
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=config.rank, lora_alpha=config.resolved_alpha, target_modules=names)
    )
    parameters = trainable_parameters(transformer)
    if config.init_from is not None:
        _start_from(config.init_from, parameters, config)
        return
    for name, parameter in parameters.items():
        parameter.data = _initial(name, parameter, seed)


def trainable_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA parameters by their name in a checkpoint, sorted, so that all ranks agree."""
    found = {
        name.replace(_PEFT_NAME, ""): parameter
        for name, parameter in transformer.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(found.items()))


def _start_from(path: Path, parameters: Mapping[str, nn.Parameter], config: AdapterSection) -> None:
    weights, alpha = read_lora(path)
    problems = [f"{name} is missing" for name in parameters if name not in weights]
    for name, tensor in weights.items():
        if name not in parameters:
            problems.append(f"{name} has no place in it")
        elif tensor.shape != parameters[name].shape:
            found, expected = tuple(tensor.shape), tuple(parameters[name].shape)
            problems.append(f"{name} is {found}, must be {expected}")
    if alpha is not None and alpha != config.resolved_alpha:
        problems.append(f"its alpha is {alpha:g}, must be {config.resolved_alpha:g}")
    if problems:
        raise InputError(
            f"this LoRA does not fit the adapter: {first_of(problems)}",
            where=path,
            fix="give adapter.rank, alpha and targets, and the base, that it was trained with",
        )
    for name, parameter in parameters.items():
        parameter.data = weights[name].to(parameter.device, torch.float32)


def _initial(name: str, parameter: nn.Parameter, seed: int) -> Tensor:
    if ".lora_B." in f"{name}.":
        return torch.zeros_like(parameter, dtype=torch.float32)
    key = hashlib.sha256(repr((seed, name)).encode()).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
    bound = 1 / math.sqrt(parameter.shape[1])
    values = rng.random(tuple(parameter.shape), dtype=np.float32) * (2 * bound) - bound
    return torch.from_numpy(values).to(parameter.device)
