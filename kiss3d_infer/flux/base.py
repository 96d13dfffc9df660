"""Base models: a `FluxPipeline` from a folder or a single file, and small ones made on the spot."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import sha256_of, writing_folder
from kiss3d_infer.flux.packed import is_packed, load_packed
from kiss3d_infer.flux.single_file import load_transformer, require_unscaled
from kiss3d_infer.flux.tokenizers import everyday_words, make_clip_tokenizer, make_t5_tokenizer

if TYPE_CHECKING:
    from diffusers import FluxPipeline

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
"""The networks of a base. `text_encoder` is CLIP, `text_encoder_2` is T5."""

_TOKENIZER_OF = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_CONFIGURATIONS = (
    *(f"{part}/config.json" for part in PARTS),
    *(f"{tokenizer}/tokenizer_config.json" for tokenizer in _TOKENIZER_OF.values()),
    "scheduler/scheduler_config.json",
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}


def create_random_base(config_folder: Path, out: Path, seed: int) -> Path:
    """Write a complete base with random weights, the same for the same configuration and seed.

    The VAE's scaling and shift factors are measured, so that its latents have mean 0 and standard
    deviation 1 over smooth random images, as a trained VAE's have over photographs.

    Args:
        config_folder: the configuration of every part, e.g. `configs/models/mini`.
        out: the diffusers folder to make; appears only when whole.
        seed: of the weights.

    Returns:
        `out`.

    Raises:
        InputError: the configuration of a part is missing or no JSON, or `out` exists.
    """
    require_base(config_folder)
    # transformers would look for a missing one on the network.
    for name in _CONFIGURATIONS:
        _json_object(config_folder / name)
    with writing_folder(out) as aside, torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(seed)
        _random_pipeline(config_folder).save_pretrained(aside, safe_serialization=True)
    return out


def load_base(
    path: Path,
    *,
    dtype: str = "bfloat16",
    device: str = "cpu",
    parts: Collection[str] = PARTS,
) -> "FluxPipeline":
    """Load a base from a diffusers folder, or from one .safetensors file in such a folder.

    A single file (bf16 or fp8, as published for FLUX.1-dev, or with scales as ComfyUI has it) gives
    the parts it holds; the folder it lies in gives the configuration, the tokenizers and the rest.
    Parts that are packed (`kiss3d_infer.flux.packed`) are restored.

    Nothing is downloaded and nothing is unpickled.

    Args:
        path: the folder or the file.
        dtype: bfloat16, float16 or float32; the weights are converted to it.
        device: where the weights go.
        parts: which of `PARTS` to load; the others are None in the pipeline. A text encoder comes
            with its tokenizer, and the scheduler always comes.

    Raises:
        InputError: something is missing, is not Flux, or cannot be read.
    """
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", fix=f"choose one of {', '.join(_DTYPES)}")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"unknown parts: {sorted(unknown)}")
    _folder_of(path)
    load = _load_file if path.is_file() else _load_folder
    with quiet_libraries():
        pipeline = load(path, _DTYPES[dtype], parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def base_identity(path: Path) -> str:
    """SHA-256 over the names and contents of a base's configuration, vocabulary and weights.

    It does not depend on where the base lies. 34 GB of FLUX.1-dev take about half a minute.

    Raises:
        InputError: there is no base, or it is not Flux.
    """
    folder = _folder_of(path)
    index = require_base(folder)
    names = sorted(name for name in index if not name.startswith("_"))
    files = [file for name in names for file in sorted((folder / name).glob("*"))]
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    if path.is_file():
        files.append(path)
    digest = hashlib.sha256()
    for file in [folder / "model_index.json", *files]:
        line = f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def read_config(base: Path, name: str) -> dict[str, Any]:
    """A configuration file of a base, such as `vae/config.json`.

    Raises:
        InputError: there is no base, or the file is missing or no JSON.
    """
    file = _folder_of(base) / name
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config
    except (OSError, ValueError) as error:
        raise InputError(
            "this part of the base's configuration cannot be read",
            where=file,
            fix="set base.path to a diffusers folder of a Flux model",
        ) from error


def _folder_of(base: Path) -> Path:
    """The folder of a base that is a folder or a file in one."""
    if not base.exists():
        raise InputError(
            "there is no base model here",
            where=base,
            fix="give the folder of a FLUX.1-dev download, or make a small random one "
            "with 'kiss3d convert random-base'",
        )
    return base if base.is_dir() else base.parent


def _load_folder(folder: Path, dtype: torch.dtype, parts: Collection[str]) -> "FluxPipeline":
    from diffusers import FluxPipeline

    require_base(folder)
    _require_scheduler_and_tokenizers(folder, parts)
    networks = {part: load_part(folder / part, dtype) for part in parts}
    with _explaining(folder):
        return FluxPipeline.from_pretrained(
            folder, local_files_only=True, **networks, **_absent(parts)
        )


def _load_file(file: Path, dtype: torch.dtype, parts: Collection[str]) -> "FluxPipeline":
    from diffusers import FluxPipeline

    if file.suffix != ".safetensors":
        raise InputError(
            "a single-file base must be .safetensors",
            where=file,
            fix="convert it; pickles may run code",
        )
    folder = file.parent
    require_base(folder)
    _require_scheduler_and_tokenizers(folder, parts)
    beside = [part for part in parts if part != "transformer" and _has_weights(folder / part)]
    networks = {part: load_part(folder / part, dtype) for part in beside}
    with _explaining(file):
        if "transformer" in parts:
            networks["transformer"], missing = load_transformer(file, folder / "transformer", dtype)
            _require_complete(missing, file)
        if networks.keys() == set(parts):
            return FluxPipeline.from_pretrained(
                folder, local_files_only=True, **networks, **_absent(parts)
            )
        require_unscaled(file)
        pipeline = FluxPipeline.from_single_file(
            str(file),
            config=str(folder),
            dtype=dtype,
            local_files_only=True,
            **networks,
            **_absent(parts),
        )
    for part in parts:
        weights = getattr(pipeline, part).named_parameters()
        _require_complete([name for name, tensor in weights if tensor.is_meta], file)
    return pipeline


def load_part(folder: Path, dtype: torch.dtype) -> Any:
    """Load one network, refusing the random values that libraries give to missing weights.

    Args:
        folder: one of `PARTS` in a base; it tells which network.
        dtype: the weights are converted to it.

    Raises:
        InputError: weights are missing, packed by another version, or cannot be read.
    """
    import diffusers
    import transformers

    require_weights(folder)
    config = read_config(folder, "config.json")
    is_tiny = config.get("_class_name") == "AutoencoderTiny"
    network = {
        "transformer": diffusers.FluxTransformer2DModel,
        "vae": diffusers.AutoencoderTiny if is_tiny else diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.T5EncoderModel,
    }[folder.name]
    if is_packed(folder):
        with _explaining(folder):
            model, missing = load_packed(network, folder, dtype)
        _require_complete(missing, folder)
        return model
    with _explaining(folder):
        model, info = network.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    _require_complete(sorted(info["missing_keys"]), folder)
    return model


def _absent(parts: Collection[str]) -> dict[str, None]:
    """Keywords that tell diffusers to leave out the parts nobody asked for."""
    names = [part for part in PARTS if part not in parts]
    return dict.fromkeys([*names, *(_TOKENIZER_OF[n] for n in names if n in _TOKENIZER_OF)])


def require_base(folder: Path) -> dict[str, Any]:
    """The index of a base's folder.

    Raises:
        InputError: there is none, or it is not Flux.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise InputError(
            "a base folder needs model_index.json and one folder per part",
            where=folder,
            fix="give a diffusers folder; for a single file, put the contents of "
            "configs/models/flux1-dev and FLUX.1-dev's tokenizers beside it",
        )
    index = _json_object(file)
    if index.get("_class_name") != "FluxPipeline":
        raise InputError(
            f"this is a {index.get('_class_name')}", where=folder, fix="give a FluxPipeline"
        )
    return index


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=file) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("not valid JSON", where=file, fix="fetch the base again") from error
    if not isinstance(content, dict):
        raise InputError("not a JSON object", where=file, fix="fetch the base again")
    return content


def _has_weights(part: Path) -> bool:
    return any(part.glob("*.safetensors"))


def require_weights(part: Path) -> None:
    """Refuse a part's folder without weights that may be loaded."""
    if _has_weights(part):
        return
    pickled = any(part.glob("*.bin")) or any(part.glob("*.pt"))
    raise InputError(
        "only pickled weights here, which are never loaded" if pickled else "no weights here",
        where=part,
        fix="convert them to .safetensors" if pickled else "the download may be incomplete",
    )


def _require_scheduler_and_tokenizers(folder: Path, parts: Collection[str]) -> None:
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise InputError("no scheduler_config.json here", where=folder / "scheduler")
    for tokenizer in (folder / _TOKENIZER_OF[part] for part in parts if part in _TOKENIZER_OF):
        if not any((tokenizer / name).is_file() for name in _VOCABULARIES):
            raise InputError(
                "no vocabulary here",
                where=tokenizer,
                fix="copy this folder from the FLUX.1-dev download",
            )


def _require_complete(missing: list[str], where: Path) -> None:
    if missing:
        raise InputError(
            f"{len(missing)} weights are missing, e.g. {missing[0]}",
            where=where,
            fix="fetch or make the base again",
        )


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn the libraries' errors about a broken file into ours."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the base cannot be read: {reason}", where=path, fix="fetch or make it again"
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the libraries' progress bars and hints; what matters is raised as an error."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()


def _random_pipeline(folder: Path) -> "FluxPipeline":
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    words = everyday_words()
    clip_tokenizer = make_clip_tokenizer(words, _max_length(folder / "tokenizer"))
    t5_tokenizer = make_t5_tokenizer(words, _max_length(folder / "tokenizer_2"))
    clip = CLIPTextConfig.from_pretrained(folder / "text_encoder", vocab_size=len(clip_tokenizer))
    t5 = T5Config.from_pretrained(folder / "text_encoder_2", vocab_size=len(t5_tokenizer))
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
    _narrow_posterior(vae)
    _measure_latents(vae)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=vae,
        text_encoder=CLIPTextModel(clip),
        tokenizer=clip_tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=t5_tokenizer,
        transformer=FluxTransformer2DModel.from_config(
            FluxTransformer2DModel.load_config(folder / "transformer")
        ),
    )


def _max_length(tokenizer: Path) -> int:
    return int(_json_object(tokenizer / "tokenizer_config.json")["model_max_length"])


def _narrow_posterior(vae: Any) -> None:
    """Make the encoder certain, as training does; at random its noise would drown the images."""
    with torch.no_grad():
        log_variance = slice(vae.config.latent_channels, None)
        vae.encoder.conv_out.weight[log_variance] = 0
        vae.encoder.conv_out.bias[log_variance] = -12


def _measure_latents(vae: Any) -> None:
    """Set the factors with which (latents - shift) * scaling has mean 0 and deviation 1."""
    coarse = torch.rand(16, 3, 4, 4)
    images = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        latents = vae.encode(images * 2 - 1).latent_dist.mean
    vae.register_to_config(
        shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item()
    )
