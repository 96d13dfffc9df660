import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.lora import LoraMetadata, apply_lora, lora_identity, save_lora

CONFIGS = Path(__file__).parents[3] / "configs" / "models"
DIM = 64  # of the tiny base
QKV = ("to_q", "to_k", "to_v")


@pytest.fixture
def pipeline(tiny_base):
    return load_base(tiny_base, dtype="float32", parts=("transformer",))


def random_(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def delta(pipeline, layer):
    module = pipeline.transformer.get_submodule(layer)
    (adapter,) = module.active_adapters
    return module.get_delta_weight(adapter)


def metadata(rank, alpha):
    return LoraMetadata(rank=rank, alpha=alpha, base="b" * 64, data="d" * 64, layout=PUBLISHED)


@pytest.fixture
def trained(tiny_base):
    """peft's state dict of a LoRA whose B is not zero, its rank and alpha, and its delta W."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    transformer = load_base(tiny_base, dtype="float32", parts=("transformer",)).transformer
    targets = ["attn.to_q", "attn.add_k_proj", "proj_mlp", "ff.net.0.proj", "attn.to_out.0"]
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=targets))
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            parameter.data = random_(*parameter.shape)
    deltas = {
        name: module.get_delta_weight("default").detach()
        for name, module in transformer.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return get_peft_model_state_dict(transformer), deltas


def test_the_layout_of_a_lora_is_the_one_it_was_trained_with(trained, pipeline, tmp_path):
    raised = BundleLayout(elevations=(20.0,) * 4)
    ours = metadata(rank=4, alpha=2).model_copy(update={"layout": raised})
    save_lora(tmp_path, trained[0], ours)
    assert apply_lora(pipeline, tmp_path).layout == raised


def test_a_saved_lora_gives_the_same_delta_when_applied(trained, pipeline, tmp_path):
    weights, deltas = trained
    save_lora(tmp_path / "adapter", weights, metadata(rank=4, alpha=2))
    info = apply_lora(pipeline, tmp_path / "adapter")
    assert (info.rank, info.num_layers, info.format) == (4, len(deltas), "diffusers")
    assert info.metadata == metadata(rank=4, alpha=2)
    for layer, expected in deltas.items():
        torch.testing.assert_close(delta(pipeline, layer), expected)


def test_diffusers_alone_loads_a_saved_lora(trained, pipeline, tmp_path):
    weights, deltas = trained
    save_lora(tmp_path, weights, metadata(rank=4, alpha=2))
    pipeline.load_lora_weights(tmp_path)
    for layer, expected in deltas.items():
        torch.testing.assert_close(delta(pipeline, layer), expected)


def test_scale_multiplies_the_delta_and_a_second_lora_replaces_the_first(
    trained, pipeline, tmp_path
):
    weights, deltas = trained
    layer = next(iter(deltas))
    save_lora(tmp_path / "a", weights, metadata(rank=4, alpha=2))
    save_lora(tmp_path / "b", weights, metadata(rank=4, alpha=8))
    apply_lora(pipeline, tmp_path / "a", scale=0.5)
    torch.testing.assert_close(delta(pipeline, layer), 0.5 * deltas[layer])
    apply_lora(pipeline, tmp_path / "b")
    torch.testing.assert_close(delta(pipeline, layer), 4 * deltas[layer])
    apply_lora(pipeline, tmp_path / "a")
    torch.testing.assert_close(delta(pipeline, layer), deltas[layer])
    assert lora_identity(tmp_path / "a") != lora_identity(tmp_path / "b")


def test_a_lora_without_alpha_has_scale_one(pipeline, tmp_path):
    down, up = random_(4, DIM), random_(DIM, 4)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    save_file(
        {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, tmp_path / "l.safetensors"
    )
    info = apply_lora(pipeline, tmp_path / "l.safetensors")
    assert info.metadata is None
    assert info.layout == PUBLISHED
    torch.testing.assert_close(delta(pipeline, "transformer_blocks.0.attn.to_q"), up @ down)


def test_a_diffusers_lora_with_alpha_tensors(pipeline, tmp_path):
    down, up = random_(4, DIM), random_(DIM, 4)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    save_file(
        {
            f"{layer}.lora_A.weight": down,
            f"{layer}.lora_B.weight": up,
            f"{layer}.alpha": torch.tensor(1.0),
        },
        tmp_path / "l.safetensors",
    )
    apply_lora(pipeline, tmp_path / "l.safetensors")
    torch.testing.assert_close(delta(pipeline, "transformer_blocks.0.attn.to_q"), up @ down / 4)


def test_kohya_keys_and_alpha(pipeline, tmp_path):
    qkv = "lora_unet_double_blocks_1_img_attn_qkv"
    out = "lora_unet_single_blocks_0_linear2"
    final = "lora_unet_final_layer_linear"
    tensors = {
        f"{qkv}.lora_down.weight": random_(4, DIM),
        f"{qkv}.lora_up.weight": random_(3 * DIM, 4),
        f"{qkv}.alpha": torch.tensor(1.0),
        f"{out}.lora_down.weight": random_(4, 5 * DIM),
        f"{out}.lora_up.weight": random_(DIM, 4),
        f"{out}.alpha": torch.tensor(8.0),
        f"{final}.lora_down.weight": random_(4, DIM),
        f"{final}.lora_up.weight": random_(16, 4),
        f"{final}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    info = apply_lora(pipeline, tmp_path / "kohya.safetensors")
    assert (info.rank, info.num_layers, info.format) == (4, 5, "kohya")

    def product(name):
        return tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]

    for i, projection in enumerate(QKV):
        expected = product(qkv)[i * DIM : (i + 1) * DIM] / 4
        found = delta(pipeline, f"transformer_blocks.1.attn.{projection}")
        torch.testing.assert_close(found, expected)
    found = delta(pipeline, "single_transformer_blocks.0.proj_out")
    torch.testing.assert_close(found, product(out) * 2)
    torch.testing.assert_close(delta(pipeline, "proj_out"), product(final) / 2)
    untouched = pipeline.transformer.single_transformer_blocks[1].proj_out
    assert isinstance(untouched, torch.nn.Linear)


def test_a_whole_kohya_lora_fits_flux1_dev(tmp_path):
    """Every linear layer of the 57 blocks, named as kohya's trainer names them."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    config = FluxTransformer2DModel.load_config(CONFIGS / "flux1-dev" / "transformer")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config)
    nothing = dict.fromkeys(["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = FluxPipeline(transformer=transformer, scheduler=scheduler, **nothing)

    double = {"attn_qkv": (1, 3), "attn_proj": (1, 1), "mlp_0": (1, 4), "mlp_2": (4, 1)}
    single = {"linear1": (1, 7), "linear2": (5, 1), "modulation_lin": (1, 3)}
    widths = {
        f"double_blocks_{i}_{stream}_{layer}": width
        for i in range(19)
        for stream in ("img", "txt")
        for layer, width in (double | {"mod_lin": (1, 6)}).items()
    } | {f"single_blocks_{i}_{layer}": w for i in range(38) for layer, w in single.items()}
    tensors = {}
    for name, (fan_in, fan_out) in widths.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.ones(1, 3072 * fan_in).bfloat16()
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.ones(3072 * fan_out, 1).bfloat16()
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "whole.safetensors")
    info = apply_lora(pipeline, tmp_path / "whole.safetensors")
    assert (info.rank, info.num_layers) == (1, 19 * 14 + 38 * 6)


def test_x_flux_keys(pipeline, tmp_path):
    down, up = random_(4, DIM), random_(3 * DIM, 4)
    processor = "double_blocks.0.processor.qkv_lora2"
    tensors = {f"{processor}.down.weight": down, f"{processor}.up.weight": up}
    save_file(tensors, tmp_path / "x.safetensors")
    info = apply_lora(pipeline, tmp_path / "x.safetensors")
    assert (info.num_layers, info.format) == (3, "x-flux")
    found = delta(pipeline, "transformer_blocks.0.attn.add_v_proj")
    torch.testing.assert_close(found, (up @ down)[2 * DIM :])


LAYER = "transformer.transformer_blocks.0.attn.to_q"
RANK_0 = {f"{LAYER}.lora_A.weight": (0, DIM), f"{LAYER}.lora_B.weight": (DIM, 0)}
KOHYA = {
    "lora_unet_final_layer_linear.lora_down.weight": (4, DIM),
    "lora_unet_final_layer_linear.lora_up.weight": (16, 4),
    "lora_unet_final_layer_linear.alpha": (),
}
X_FLUX = "double_blocks.0.processor.qkv_lora2.{}.weight"
GOOD = {f"{LAYER}.lora_A.weight": (4, DIM), f"{LAYER}.lora_B.weight": (DIM, 4)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {f"{LAYER}.lora_A.weight": (4, 3072), f"{LAYER}.lora_B.weight": (3072, 4)},
            r"\(4, 3072\)",
        ),
        (GOOD | {f"{LAYER}.lora_magnitude_vector": (DIM,)}, "lora_magnitude_vector has no place"),
        ({key.replace("blocks.0", "blocks.9"): shape for key, shape in GOOD.items()}, "blocks.9"),
        ({f"{LAYER}.lora_A.weight": (4, DIM)}, "only one of its two"),
        (GOOD | {f"{LAYER}.lora_B.weight": (DIM, 2)}, "different ranks"),
        (GOOD | {f"{LAYER}.lora_A.weight": ()}, r"\(\), not a matrix"),
        (GOOD | {f"{LAYER}.lora_B.weight": (DIM,)}, r"\(64,\), not a matrix"),
        (RANK_0, r"\(0, 64\), not a matrix"),
        (RANK_0 | {f"{LAYER}.alpha": ()}, r"\(0, 64\), not a matrix"),
        (GOOD | {f"{LAYER}.alpha": (3,)}, r"\(3,\), not a number"),
        (KOHYA | {"lora_unet_final_layer_linear.lora_down.weight": ()}, "not a matrix"),
        (KOHYA | {"lora_unet_final_layer_linear.lora_up.weight": (16, 0)}, "not a matrix"),
        ({X_FLUX.format("down"): (4, DIM), X_FLUX.format("up"): ()}, "not a matrix"),
        ({X_FLUX.format("down"): (4, DIM), X_FLUX.format("up"): (3 * DIM, 4)}, "weights are zero"),
        (
            GOOD | {"transformer.x_embedder.alpha": ()},
            "x_embedder has an alpha and none of its two",
        ),
        ({"lora_unet_mystery.lora_down.weight": (4, DIM)}, "cannot be converted"),
        ({"first_stage_model.weight": (4, DIM)}, "no LoRA weights"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_and_nothing_is_applied(
    pipeline, tmp_path, shapes, message
):
    save_file(
        {key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "l.safetensors"
    )
    before = {name: tuple(p.shape) for name, p in pipeline.transformer.named_parameters()}
    with pytest.raises(InputError, match=message):
        apply_lora(pipeline, tmp_path / "l.safetensors")
    assert {name: tuple(p.shape) for name, p in pipeline.transformer.named_parameters()} == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "invalid JSON"),
        ("[]", "the file"),
        ("{}", "'rank': field required"),
        ({"version": 2}, "'version'.*use the version of kiss3d that wrote it"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"layout": {"azimuths": [0, 90]}}, "must be equally many"),
    ],
)
def test_a_strange_header_is_refused_before_anything_is_applied(
    trained, pipeline, tmp_path, header, message
):
    file = save_lora(tmp_path, trained[0], metadata(4, 2))
    if isinstance(header, dict):
        header = json.dumps(json.loads(metadata(4, 2).model_dump_json()) | header)
    save_file(load_file(file), file, metadata={"format": "pt", "kiss3d": header})
    with pytest.raises(InputError, match=message):
        apply_lora(pipeline, file)
    assert not hasattr(pipeline.transformer, "peft_config")


@pytest.mark.parametrize("header", ["{", "[]", "{}", '{"transformer.colour": "red"}'])
def test_a_damaged_diffusers_header_is_refused(pipeline, tmp_path, header):
    tensors = {key: torch.zeros(shape) for key, shape in GOOD.items()}
    save_file(tensors, tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": header})
    with pytest.raises(InputError, match="'lora_adapter_metadata' is damaged"):
        apply_lora(pipeline, tmp_path / "l.safetensors")
    assert not hasattr(pipeline.transformer, "peft_config")


def test_missing_truncated_and_pickled_files_are_refused(pipeline, trained, tmp_path):
    with pytest.raises(InputError, match="no LoRA here"):
        apply_lora(pipeline, tmp_path)
    file = save_lora(tmp_path, trained[0], metadata(4, 2))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a readable safetensors"):
        apply_lora(pipeline, file)
    (tmp_path / "l.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"must be \.safetensors"):
        apply_lora(pipeline, tmp_path / "l.bin")


def test_saving_refuses_keys_that_are_no_lora(tmp_path):
    with pytest.raises(ValueError, match="not LoRA weights"):
        save_lora(tmp_path, {"x_embedder.weight": torch.zeros(1)}, metadata(4, 2))
    assert list(tmp_path.iterdir()) == []


def test_the_file_header_is_readable_by_others(trained, tmp_path):
    from safetensors import safe_open

    file = save_lora(tmp_path, trained[0], metadata(4, 2))
    with safe_open(file, "pt") as content:
        header = content.metadata()
    assert json.loads(header["lora_adapter_metadata"])["transformer.lora_alpha"] == 2
    assert json.loads(header["kiss3d"])["layout"]["azimuths"] == [0, 90, 180, 270]
    assert all(key.startswith("transformer.") for key in load_file(file))
