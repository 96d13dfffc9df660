import re

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as diffusers_converters
from safetensors.torch import load_file, save_file

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import LoraMetadata, apply_lora, convert_lora, save_lora
from kiss3d_infer.flux.lora_names import Pair, from_layers, to_layers

DIM, RANK = 64, 4
X_FLUX = re.compile(r"blocks\.\d+\.(attn\.|proj_out)")


@pytest.fixture(scope="module")
def linears(tiny_base):
    transformer = load_base(tiny_base, dtype="float32", parts=("transformer",)).transformer
    return {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def that_fit(shapes, to):
    """The layers that have a name in a layout; x-flux knows few."""
    if to != "x-flux":
        return shapes
    return {name: shape for name, shape in shapes.items() if X_FLUX.search(name)}


def random_layers(shapes, rank=RANK):
    generator = torch.Generator().manual_seed(0)
    return {
        name: Pair(
            torch.randn(rank, fan_in, generator=generator),
            torch.randn(fan_out, rank, generator=generator),
        )
        for name, (fan_in, fan_out) in shapes.items()
    }


def deltas(layers):
    return {name: pair.up @ pair.down for name, pair in layers.items()}


def responses(layers):
    """delta W times a vector, for layers too wide to multiply out."""

    def response(pair):
        vector = torch.linspace(-1, 1, pair.down.shape[1]).double()
        return pair.up.double() @ (pair.down.double() @ vector)

    return {name: response(pair) for name, pair in layers.items()}


def assert_same_deltas(found, expected):
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta)


@pytest.mark.parametrize("to", ["kohya", "comfyui", "x-flux"])
def test_every_linear_of_flux_goes_out_and_comes_back_the_same(linears, to):
    layers = random_layers(that_fit(linears, to))
    found = to_layers(from_layers(layers, to))
    assert {name: pair.down.shape for name, pair in found.items()} == {
        name: pair.down.shape for name, pair in layers.items()
    }
    assert_same_deltas(deltas(found), deltas(layers))


@pytest.mark.parametrize("to", ["kohya", "comfyui", "x-flux"])
def test_layers_of_a_fusion_that_have_no_lora_stay_without_one(to):
    block = "single_transformer_blocks.3"
    layers = random_layers({f"{block}.attn.to_k": (DIM, DIM), f"{block}.attn.to_v": (DIM, DIM)})
    assert_same_deltas(deltas(to_layers(from_layers(layers, to))), deltas(layers))


def test_layers_that_share_a_matrix_are_fused_at_their_rank():
    layers = random_layers(
        {f"transformer_blocks.0.attn.to_{x}": (DIM, DIM) for x in ("q", "k", "v")}
    )
    down = layers["transformer_blocks.0.attn.to_q"].down
    shared = {name: Pair(down, pair.up) for name, pair in layers.items()}
    tensors = from_layers(shared, "comfyui")
    module = "diffusion_model.double_blocks.0.img_attn.qkv"
    assert tensors[f"{module}.lora_up.weight"].shape == (3 * DIM, RANK)
    assert_same_deltas(deltas(to_layers(tensors)), deltas(shared))


@pytest.mark.parametrize(
    ("to", "converter"), [("kohya", "kohya"), ("comfyui", "kohya"), ("x-flux", "xlabs")]
)
def test_diffusers_converter_reads_an_export_of_flux1_dev_as_we_do(to, converter):
    dim, mlp = 3072, 12288
    single, double = "single_transformer_blocks.37", "transformer_blocks.18"
    qkv = {f"{single}.attn.to_{x}": (dim, dim) for x in "qkv"}
    shapes = qkv | {
        f"{single}.proj_mlp": (dim, mlp),
        f"{single}.proj_out": (dim + mlp, dim),
        f"{double}.attn.add_k_proj": (dim, dim),
        f"{double}.ff.net.2": (mlp, dim),
        "norm_out.linear": (dim, 2 * dim),
        "proj_out": (dim, 64),
    }
    layers = random_layers(that_fit(shapes, to), rank=2)
    convert = getattr(diffusers_converters, f"_convert_{converter}_flux_lora_to_diffusers")
    theirs = convert(from_layers(layers, to))
    # theirs names layers outside the blocks without the prefix
    named = {key.removeprefix("transformer."): tensor for key, tensor in theirs.items()}
    pairs = {
        key.removesuffix(".lora_A.weight"): Pair(tensor, named[key.replace("lora_A", "lora_B")])
        for key, tensor in named.items()
        if key.endswith(".lora_A.weight")
    }
    # It keeps the zeros that stand for layers that are not there.
    zero = {name for name, pair in pairs.items() if not pair.up.any()}
    assert {f"{double}.attn.add_q_proj", f"{double}.attn.add_v_proj"} <= zero
    assert_same_deltas(
        responses({name: pair for name, pair in pairs.items() if name not in zero}),
        responses(layers),
    )


@pytest.mark.parametrize("to", ["kohya", "comfyui", "x-flux", "diffusers"])
def test_a_trained_lora_does_the_same_in_every_layout(linears, tiny_base, tmp_path, to):
    names = [name for name in linears if "blocks.1." in name and ".norm" not in name]
    layers = random_layers(that_fit({name: linears[name] for name in names}, to))
    weights = {f"{name}.lora_A.weight": pair.down for name, pair in layers.items()}
    weights |= {f"{name}.lora_B.weight": pair.up for name, pair in layers.items()}
    metadata = LoraMetadata(rank=RANK, alpha=2, base="b", data="d", layout=PUBLISHED)
    save_lora(tmp_path / "ours", weights, metadata)
    convert_lora(tmp_path / "ours", tmp_path / "theirs.safetensors", to)
    pipeline = load_base(tiny_base, dtype="float32", parts=("transformer",))
    info = apply_lora(pipeline, tmp_path / "theirs.safetensors")
    assert (info.rank, info.num_layers, info.format) == (RANK, len(layers), to)
    assert info.layout == PUBLISHED
    for name, delta in deltas(layers).items():
        module = pipeline.transformer.get_submodule(name)
        (adapter,) = module.active_adapters
        torch.testing.assert_close(module.get_delta_weight(adapter), delta * 2 / RANK)
    convert_lora(tmp_path / "theirs.safetensors", tmp_path / "back.safetensors", "diffusers")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == {f"transformer.{key}" for key in weights}


def test_processors_of_x_flux_are_whole_and_of_one_rank():
    """Its loader builds a block's processor at the rank of the first key, and wants every key."""
    rank, single = 3 * RANK, "single_blocks.3.processor"
    shapes = {"transformer_blocks.0.attn.to_k": (DIM, DIM)}
    shapes["single_transformer_blocks.3.proj_out"] = (5 * DIM, DIM)
    expected = {f"{single}.qkv_lora": (DIM, 3 * DIM), f"{single}.proj_lora": (5 * DIM, DIM)}
    for stream in (1, 2):
        expected[f"double_blocks.0.processor.qkv_lora{stream}"] = (DIM, 3 * DIM)
        expected[f"double_blocks.0.processor.proj_lora{stream}"] = (DIM, DIM)
    found = from_layers(random_layers(shapes), "x-flux")
    downs = {f"{name}.down.weight": (rank, fan_in) for name, (fan_in, _) in expected.items()}
    ups = {f"{name}.up.weight": (fan_out, rank) for name, (_, fan_out) in expected.items()}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == downs | ups


def test_layers_that_x_flux_does_not_know_are_named_and_refused(linears, tmp_path):
    names = [name for name in linears if "blocks.1." in name and ".norm" not in name]
    layers = random_layers({name: linears[name] for name in names})
    save_file(from_layers(layers, "kohya"), tmp_path / "l.safetensors")
    kinds = "ff.net.0.proj, ff.net.2, ff_context.net.0.proj, ff_context.net.2, proj_mlp have no"
    with pytest.raises(InputError, match=f"to x-flux: {kinds} name.*targets=attention"):
        convert_lora(tmp_path / "l.safetensors", tmp_path / "o.safetensors", "x-flux")
    assert not (tmp_path / "o.safetensors").exists()


def test_x_flux_keys_become_diffusers_with_the_same_delta(tmp_path):
    shapes = {
        "double_blocks.0.processor.qkv_lora1": (DIM, 3 * DIM),
        "double_blocks.0.processor.proj_lora2": (DIM, DIM),
        "single_blocks.1.processor.qkv_lora": (DIM, 3 * DIM),
        "single_blocks.1.processor.proj_lora": (5 * DIM, DIM),
    }
    layers = random_layers(shapes)
    tensors = {f"{name}.down.weight": pair.down for name, pair in layers.items()}
    tensors |= {f"{name}.up.weight": pair.up for name, pair in layers.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    convert_lora(tmp_path / "x.safetensors", tmp_path / "out.safetensors", "diffusers")
    found = deltas(to_layers(load_file(tmp_path / "out.safetensors")))
    expected = deltas(layers)
    assert len(found) == 8
    qkv = torch.cat([found[f"single_transformer_blocks.1.attn.to_{x}"] for x in "qkv"])
    torch.testing.assert_close(qkv, expected["single_blocks.1.processor.qkv_lora"])
    out = found["transformer_blocks.0.attn.to_add_out"]
    torch.testing.assert_close(out, expected["double_blocks.0.processor.proj_lora2"])


@pytest.mark.parametrize(
    "stranger",
    [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_unet_double_blocks_0_img_attn_qkv.diff_b",
        "lora_unet_double_blocks_0_img_attn_qkv.dora_scale",
        "diffusion_model.double_blocks.0.img_attn.norm.lora_down.weight",
        "a_note",
    ],
)
def test_a_key_that_is_not_understood_is_named_and_never_dropped(tmp_path, stranger):
    layers = random_layers({"transformer_blocks.0.ff.net.2": (4 * DIM, DIM)})
    tensors = from_layers(layers, "kohya") | {stranger: torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(InputError, match=f"cannot be converted: {stranger} has no place"):
        convert_lora(tmp_path / "l.safetensors", tmp_path / "o.safetensors", "diffusers")
    assert not (tmp_path / "o.safetensors").exists()


def test_rows_that_are_no_fusion_and_lone_matrices_are_refused(tmp_path):
    qkv = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{qkv}.lora_down.weight": torch.ones(2, DIM)}
    for up, message in ((torch.ones(100, 2), "no fusion of 3"), (None, "only one of its two")):
        more = {} if up is None else {f"{qkv}.lora_up.weight": up}
        save_file(tensors | more, tmp_path / "l.safetensors")
        with pytest.raises(InputError, match=message):
            convert_lora(tmp_path / "l.safetensors", tmp_path / "o.safetensors", "comfyui")
