"""The transformer of a single file: under the original code's names, and in scaled fp8."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.single_file import to_diffusers

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
WIDTH = 64
E4M3 = torch.float8_e4m3fn
QKV = "attn.to_q attn.to_k attn.to_v"
ADDED_QKV = "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
LINEARS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": QKV,
    "txt_attn.qkv": ADDED_QKV,
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
SINGLE = {
    "modulation.lin": "norm.linear",
    "linear1": f"{QKV} proj_mlp",
    "linear2": "proj_out",
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
SINGLE_NORMS = {
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}


def original(weights, num_double=2, num_single=2):
    """A diffusers state dict as the original code names and fuses it."""
    linears, norms = dict(LINEARS), {}
    blocks = [
        ("double_blocks", "transformer_blocks", num_double, DOUBLE, DOUBLE_NORMS),
        ("single_blocks", "single_transformer_blocks", num_single, SINGLE, SINGLE_NORMS),
    ]
    for theirs, ours, number, layers, scales in blocks:
        for i in range(number):
            for name, parts in layers.items():
                linears[f"{theirs}.{i}.{name}"] = re.sub(r"(\S+)", rf"{ours}.{i}.\1", parts)
            norms |= {f"{theirs}.{i}.{a}": weights[f"{ours}.{i}.{b}"] for a, b in scales.items()}
    fused = {
        f"{name}.{kind}": torch.cat([weights[f"{part}.{kind}"] for part in parts.split()])
        for name, parts in linears.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        scale, shift = fused[f"final_layer.adaLN_modulation.1.{kind}"].chunk(2)
        fused[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    return {name: tensor.contiguous() for name, tensor in (fused | norms).items()}


def transformer_of(path):
    return load_base(path, dtype="float32", parts=("transformer",)).transformer


@pytest.fixture(scope="module")
def expected(tiny_base):
    """A transformer whose every weight differs from all others."""
    transformer = transformer_of(tiny_base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return transformer


@pytest.fixture
def file(tmp_path):
    """Where a single file goes, in a folder of configurations alone."""
    return Path(shutil.copytree(CONFIGS / "tiny", tmp_path / "base")) / "flux.safetensors"


@torch.no_grad()
def output_of(transformer):
    def normal(*shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))

    return transformer(
        hidden_states=normal(1, 8, 16),
        encoder_hidden_states=normal(1, 5, 32),
        pooled_projections=normal(1, 32),
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=torch.zeros(8, 3),
        txt_ids=torch.zeros(5, 3),
    ).sample


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_original_names_give_the_same_transformer(expected, file, prefix):
    weights = original(expected.state_dict())
    save_file({f"{prefix}{name}": tensor for name, tensor in weights.items()}, file)
    found = transformer_of(file)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    torch.testing.assert_close(output_of(found), output_of(expected))
    assert output_of(found).std() > 1e-3


def test_the_original_names_mean_what_they_mean_to_diffusers():
    # diffusers' converter knows the width of FLUX.1-dev alone; tensors of one column are enough.
    width, generator = 3072, torch.Generator().manual_seed(0)
    names = [*LINEARS, *(f"double_blocks.0.{x}" for x in DOUBLE)]
    names += [f"single_blocks.0.{x}" for x in SINGLE]
    rows = {"qkv": 3 * width, "linear1": 7 * width}
    weights = {
        f"{name}.{kind}": torch.randn(
            rows.get(name.rpartition(".")[2], 6), *shape, generator=generator
        )
        for name in names
        for kind, shape in (("weight", (1,)), ("bias", ()))
    }
    scales = [f"double_blocks.0.{x}" for x in DOUBLE_NORMS]
    scales += [f"single_blocks.0.{x}" for x in SINGLE_NORMS]
    weights |= {name: torch.randn(6, generator=generator) for name in scales}
    found = to_diffusers(weights.items(), width, Path("flux.safetensors"))
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(weights))
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in theirs.items())


def in_scaled_fp8(weights, suffix, per_row):
    """As ComfyUI stores them, and what they stand for."""
    stored, restored = {"scaled_fp8": torch.zeros(2).to(E4M3)}, {}
    for name, tensor in weights.items():
        if not name.endswith(".weight"):
            stored[name] = restored[name] = tensor
            continue
        largest = tensor.abs().amax(1) if per_row else tensor.abs().max()
        scale = largest / torch.finfo(E4M3).max
        small = (tensor / (scale[:, None] if per_row else scale)).to(E4M3)
        module = name.removesuffix(".weight")
        stored |= {name: small, f"{module}.{suffix}": scale}
        of_input = "scale_input" if suffix == "scale_weight" else "input_scale"
        stored[f"{module}.{of_input}"] = torch.ones(())
        restored[name] = small.float() * (scale[:, None] if per_row else scale)
    return stored, restored


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_multiplied_by_its_scales(expected, file, suffix, per_row):
    stored, restored = in_scaled_fp8(original(expected.state_dict()), suffix, per_row)
    save_file(stored, file)
    found = transformer_of(file).state_dict()
    for name, tensor in to_diffusers(restored.items(), WIDTH, file).items():
        assert torch.equal(found[name], tensor), name
        torch.testing.assert_close(found[name], expected.state_dict()[name], rtol=0.07, atol=1e-3)


def changed(expected, changes):
    return original(expected.state_dict()) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"img_in.lora_A.weight": torch.ones(2), "extra.bias": torch.ones(2)},
            r"config.json has no place for (img_in.lora_A.weight; extra.bias"
            r"|extra.bias; img_in.lora_A.weight)",
        ),
        (
            {"double_blocks.2.img_attn.proj.bias": torch.ones(WIDTH)},
            r"no place for transformer_blocks.2.attn.to_out.0.bias",
        ),
        ({"img_in.weight": torch.ones(64, 16).char()}, "int8 are not read, such as img_in.weight"),
        ({"img_in.weight_scale": torch.ones(2, 8)}, "neither one scale nor one for each row"),
        ({"other.scale_weight": torch.ones(1)}, "other.scale_weight scales nothing"),
        ({"img_in.weight_scale_2": torch.ones(1)}, "no place for img_in.weight_scale_2"),
        (
            {"single_blocks.0.linear1.bias": torch.ones(100)},
            "single_blocks.0.linear1.bias has 100 rows",
        ),
        ({"proj_out.bias": torch.ones(16)}, "proj_out.bias is there twice"),
        ({"img_in.weight": torch.ones(64, 17)}, "do not fit config.json.*x_embedder.weight"),
    ],
)
def test_what_is_not_understood_is_named(expected, file, changes, message):
    save_file(changed(expected, changes), file)
    with pytest.raises(InputError, match=rf"{message}.*flux\.safetensors"):
        transformer_of(file)


def test_what_is_missing_is_named(expected, file):
    weights = original(expected.state_dict())
    del weights["single_blocks.1.linear1.bias"]
    save_file(weights, file)
    with pytest.raises(InputError, match=r"4 weights are missing, e\.g\. single_transformer_block"):
        transformer_of(file)


def test_scales_of_other_parts_are_refused_where_the_file_would_give_them(
    expected, tiny_base, tmp_path
):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    text = "text_encoders.t5xxl.transformer.shared"
    others = {f"{text}.weight": torch.ones(2, 2), f"{text}.scale_weight": torch.ones(1)}
    file = base / "flux.safetensors"
    save_file(changed(expected, others), file)
    both = ("transformer", "text_encoder_2")
    assert load_base(file, parts=both).text_encoder_2 is not None  # from its folder
    for weights in (base / "text_encoder_2").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(InputError, match=rf"not read: {text}\.scale_weight"):
        load_base(file, parts=both)


def test_a_file_may_hold_text_encoders_too(expected, tiny_base, tmp_path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    prefixes = {
        "text_encoder": "text_encoders.clip_l.transformer.text_model.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    }
    before = load_base(base, dtype="float32", parts=tuple(prefixes))
    weights = {f"model.diffusion_model.{k}": w for k, w in original(expected.state_dict()).items()}
    for part, prefix in prefixes.items():
        state = getattr(before, part).state_dict()
        weights |= {f"{prefix}{name}": tensor.clone() for name, tensor in state.items()}
        for file in (base / part).glob("*.safetensors"):
            file.unlink()
    save_file(weights, base / "flux.safetensors")
    found = load_base(base / "flux.safetensors", dtype="float32", parts=("transformer", *prefixes))
    for part in prefixes:
        for name, tensor in getattr(before, part).state_dict().items():
            assert torch.equal(getattr(found, part).state_dict()[name], tensor), name
    assert torch.equal(found.transformer.proj_out.weight, expected.proj_out.weight)
