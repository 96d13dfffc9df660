"""How others name and fuse the linears of Flux in a LoRA file, to diffusers' layers and back.

One table says which of diffusers' layers stand behind each layer of the original code. kohya's
trainer writes its names with underscores, ComfyUI with dots, x-flux names processors of its own.
diffusers' converters are not used: they drop keys they do not know, and hold FLUX.1-dev's widths.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from kiss3d_infer.errors import first_of

Exported = Literal["comfyui", "kohya", "x-flux"]

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_DOUBLE = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
_OUTSIDE = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
_X_FLUX_DOUBLE = {
    "processor.qkv_lora1": _DOUBLE["img_attn.qkv"],
    "processor.proj_lora1": _DOUBLE["img_attn.proj"],
    "processor.qkv_lora2": _DOUBLE["txt_attn.qkv"],
    "processor.proj_lora2": _DOUBLE["txt_attn.proj"],
}
_X_FLUX_SINGLE = {"processor.qkv_lora": _QKV, "processor.proj_lora": _SINGLE["linear2"]}
_MLP_RATIO = 4
"""Of Flux: width of `proj_mlp` per token width, for a LoRA that leaves that layer out."""
_SCALE_THEN_SHIFT = "norm_out.linear"
"""diffusers holds this layer's two halves in the other order than the original code."""

_PREFIX = re.compile(r"lora_unet_|lora_transformer_|diffusion_model\.|transformer\.")
_BLOCK = re.compile(
    r"(?P<kind>double_blocks|transformer_blocks|single_blocks|single_transformer_blocks)"
    r"[._](?P<number>\d+)[._](?P<layer>.+)"
)
_TENSOR = re.compile(
    r"(?P<module>.+)\.(?:(?P<down>lora_down|lora_A|down)\.weight"
    r"|(?P<up>lora_up|lora_B|up)\.weight|alpha)"
)
_BLOCKS_OF = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


@dataclass(frozen=True)
class Pair:
    """The two matrices of a layer, delta W = up @ down: [rank, in] and [out, rank]."""

    down: Tensor
    up: Tensor


class LoraNameError(ValueError):
    """Tensors that belong to no layer, or not to one another; the message names them."""


def to_layers(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """The pairs of a LoRA in any layout by diffusers' name of the layer, without a prefix.

    Every alpha is multiplied into its pair. A fused layer is split: its block-diagonal form into
    pairs of the blocks, any other into pairs that share `down`.

    Raises:
        LoraNameError: names every key that is not understood.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        if match is None or not layers_of(match["module"]):
            problems.append(f"{key} has no place in it")
            continue
        role = "down" if match["down"] else "up" if match["up"] else "alpha"
        modules.setdefault(match["module"], {})[role] = tensor
    layers: dict[str, Pair] = {}
    for module, roles in modules.items():
        try:
            pair = _scaled(roles)
            parts = _split(layers_of(module), _swapped(pair) if "adaLN" in module else pair)
        except LoraNameError as error:
            problems.append(f"{module} {error}")
            continue
        problems += [f"{module} changes {name} once more" for name in parts.keys() & layers.keys()]
        layers |= parts
    if not layers and not problems:
        problems.append("all of its weights are zero")
    if problems:
        raise LoraNameError(first_of(problems))
    return layers


def from_layers(layers: Mapping[str, Pair], to: Exported) -> dict[str, Tensor]:
    """The tensors of a file as others name them; an alpha, where there is one, is the rank.

    Args:
        layers: by diffusers' name of the layer.
        to: "kohya" writes `lora_unet_double_blocks_0_...`, "comfyui" `diffusion_model....`, and
            "x-flux" `double_blocks.0.processor....`, which holds nothing but attention's layers
            and the last one of single blocks.

    Raises:
        LoraNameError: names the kinds of layers that have no name there.
    """
    modules = _modules(layers, to)
    named = {name for names in modules.values() for name in names}
    if strangers := {_BLOCK.sub(r"\g<layer>", name) for name in layers.keys() - named}:
        raise LoraNameError(f"{', '.join(sorted(strangers))} have no name in this layout")
    if to == "x-flux":
        return _processors(layers, modules)
    tensors = {}
    for original, names in modules.items():
        parts = [layers.get(name) for name in names]
        if not any(parts):
            continue
        pair = _swapped(_join(parts)) if names == (_SCALE_THEN_SHIFT,) else _join(parts)
        module = (
            f"lora_unet_{original.replace('.', '_')}"
            if to == "kohya"
            else f"diffusion_model.{original}"
        )
        tensors[f"{module}.lora_down.weight"] = pair.down.contiguous()
        tensors[f"{module}.lora_up.weight"] = pair.up.contiguous()
        tensors[f"{module}.alpha"] = torch.tensor(float(pair.down.shape[0]))
    return tensors


def _processors(
    layers: Mapping[str, Pair], modules: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """x-flux's tensors. Its loader wants a block's processor whole, one rank for all, no alpha."""
    like = next(iter(layers.values()))
    width = like.up.shape[0]  # of every layer that has a name there

    def pair_of(name: str) -> Pair:
        fan_in = (1 + _MLP_RATIO) * width if name.endswith("proj_out") else width
        nothing = Pair(like.down.new_zeros(0, fan_in), like.up.new_zeros(width, 0))
        return layers.get(name, nothing)

    pairs = {module: _join([pair_of(x) for x in names]) for module, names in modules.items()}
    rank = max(pair.down.shape[0] for pair in pairs.values())
    tensors = {}
    for module, pair in pairs.items():
        missing = rank - pair.down.shape[0]
        tensors[f"{module}.down.weight"] = pad(pair.down, (0, 0, 0, missing)).contiguous()
        tensors[f"{module}.up.weight"] = pad(pair.up, (0, missing)).contiguous()
    return tensors


def layers_of(module: str) -> tuple[str, ...]:
    """diffusers' layers behind a module of any layout; none if it is not understood."""
    name = _PREFIX.sub("", module, count=1) if _PREFIX.match(module) else module
    match = _BLOCK.fullmatch(name)
    if match is None:
        return _lookup(name, _OUTSIDE)
    kind = match["kind"]
    blocks = _BLOCKS_OF.get(kind, kind)
    is_single = blocks.startswith("single")
    table = _SINGLE | _X_FLUX_SINGLE if is_single else _DOUBLE | _X_FLUX_DOUBLE
    return tuple(f"{blocks}.{match['number']}.{x}" for x in _lookup(match["layer"], table))


def _lookup(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    wanted = name.replace(".", "_")
    for original, layers in table.items():
        if original.replace(".", "_") == wanted:
            return layers
        for layer in layers:
            if layer.replace(".", "_") == wanted:
                return (layer,)
    return ()


def _modules(layers: Mapping[str, Pair], to: Exported) -> dict[str, tuple[str, ...]]:
    """diffusers' names by the original one, of all of the blocks that occur, and outside."""
    is_x_flux = to == "x-flux"
    double = _X_FLUX_DOUBLE if is_x_flux else _DOUBLE
    single = _X_FLUX_SINGLE if is_x_flux else _SINGLE
    modules: dict[str, tuple[str, ...]] = {} if is_x_flux else {**_OUTSIDE}
    numbers = {(m["kind"], int(m["number"])) for m in map(_BLOCK.fullmatch, layers) if m}
    for kind, number in sorted(numbers):
        is_single = kind.startswith("single")
        original = "single_blocks" if is_single else "double_blocks"
        for name, parts in (single if is_single else double).items():
            whole = tuple(f"{kind}.{number}.{part}" for part in parts)
            modules[f"{original}.{number}.{name}"] = whole
    return modules


def _scaled(roles: Mapping[str, Tensor]) -> Pair:
    if "down" not in roles or "up" not in roles:
        found = "an alpha and none" if "alpha" in roles and len(roles) == 1 else "only one"
        raise LoraNameError(f"has {found} of its two matrices")
    down, up = roles["down"], roles["up"]
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise LoraNameError("has matrices of different ranks")
    if "alpha" in roles and (scale := float(roles["alpha"]) / rank) != 1:
        # In float32: half precision has no room for the small products of a small alpha.
        down = down.float() * scale
    return Pair(down, up)


def _swapped(pair: Pair) -> Pair:
    return Pair(pair.down, torch.cat(pair.up.chunk(2)[::-1]))


def _split(names: tuple[str, ...], pair: Pair) -> dict[str, Pair]:
    # Zeros fill x-flux's processors up: to one rank, and where a layer has no pair.
    is_used = pair.down.any(dim=1) | pair.up.any(dim=0)
    if not is_used.any():
        return {}
    if len(names) == 1:
        return {names[0]: Pair(pair.down[is_used], pair.up[:, is_used])}
    width, rank = pair.down.shape[1], pair.down.shape[0]
    sizes = [width] * 3 + [pair.up.shape[0] - 3 * width] * (len(names) == 4)
    if min(sizes) <= 0 or sum(sizes) != pair.up.shape[0]:
        raise LoraNameError(f"has {pair.up.shape[0]} rows, which is no fusion of {len(names)}")
    ups = torch.split(pair.up, sizes)
    each = rank // len(names)
    columns = [slice(each * i, each * (i + 1)) for i in range(len(names))]
    if rank % len(names) or not all(map(_is_zero_outside, ups, columns)) or not pair.up.any():
        return {
            name: Pair(pair.down.clone(), up.clone()) for name, up in zip(names, ups, strict=True)
        }
    return {
        name: Pair(pair.down[column].clone(), up[:, column].clone())
        for name, up, column in zip(names, ups, columns, strict=True)
        if up.any()  # a block of zeros stands for a layer that has no pair
    }


def _is_zero_outside(up: Tensor, columns: slice) -> bool:
    return not up[:, : columns.start].any() and not up[:, columns.stop :].any()


def _join(parts: Sequence[Pair | None]) -> Pair:
    """One pair for a fused layer: with the common `down`, or block-diagonal."""
    found = [part for part in parts if part]
    first = found[0]
    if len(found) == len(parts) and all(torch.equal(first.down, x.down) for x in found):
        return Pair(first.down, torch.cat([x.up for x in found]))
    rank, width = max(x.down.shape[0] for x in found), first.down.shape[1]
    sizes = [width] * 3 + [_MLP_RATIO * width] * (len(parts) == 4)
    down = first.down.new_zeros(len(parts) * rank, width)
    up = first.up.new_zeros(sum(sizes), len(parts) * rank)
    for i, part in enumerate(parts):
        if part:
            row, column = sum(sizes[:i]), i * rank
            down[column : column + part.down.shape[0]] = part.down
            up[row : row + sizes[i], column : column + part.up.shape[1]] = part.up
    return Pair(down, up)
