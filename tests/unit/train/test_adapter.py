import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import tiny_transformer

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.lora import FILE_NAME, LoraMetadata, save_lora
from kiss3d_train.adapter import add_adapter, target_modules, trainable_parameters
from kiss3d_train.config import AdapterSection


def test_presets_cover_attention_and_mlp_of_every_block_and_nothing_else() -> None:
    transformer = tiny_transformer()
    attention = target_modules(transformer, "attention")
    every = target_modules(transformer, "all-linear")
    # A double block has 8 attention and 4 MLP linears, a single one 3 and 2.
    assert len(attention) == 8 + 3
    assert len(every) == 8 + 4 + 3 + 2
    assert not [name for name in every if "norm" in name or "embed" in name]
    assert "proj_out" not in every


def test_custom_endings_select_modules() -> None:
    names = target_modules(tiny_transformer(), ("attn.to_q", "proj_mlp"))
    assert names == [
        "single_transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.proj_mlp",
        "transformer_blocks.0.attn.to_q",
    ]


def test_an_ending_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"attn\.to_z"):
        target_modules(tiny_transformer(), ("attn.to_q", "attn.to_z"))


def test_only_the_adapter_trains_and_stays_float32_on_a_bfloat16_base() -> None:
    transformer = tiny_transformer().to(torch.bfloat16)
    add_adapter(transformer, AdapterSection(rank=2), seed=0)
    trainable = trainable_parameters(transformer)
    assert all(".lora_" in name for name in trainable)
    assert len(trainable) == 2 * 17
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    frozen = [p for p in transformer.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}


def test_initial_weights_depend_on_the_seed_and_the_name_only() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        transformer = tiny_transformer()
        torch.manual_seed(torch.seed())
        add_adapter(transformer, AdapterSection(rank=2), seed=seed)
        return {n: p.detach() for n, p in trainable_parameters(transformer).items()}

    one, same, other = weights(1), weights(1), weights(2)
    name = "transformer_blocks.0.attn.to_q.lora_A.weight"
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[name.replace("to_q", "to_k")])
    assert one[name].abs().max() <= 1 / 32**0.5
    assert not one[name.replace("lora_A", "lora_B")].any()


def test_a_new_adapter_changes_nothing() -> None:
    inputs = {
        "hidden_states": torch.randn(1, 8, 16),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 8),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": torch.zeros(8, 3),
        "return_dict": False,
    }
    transformer = tiny_transformer()
    before = transformer(**inputs)[0]
    add_adapter(transformer, AdapterSection(rank=2), seed=0)
    assert torch.equal(before, transformer(**inputs)[0])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of an adapter of rank 2, as training leaves it."""
    transformer = tiny_transformer()
    add_adapter(transformer, AdapterSection(rank=2), seed=5)
    weights = {n: p.detach() + 1 for n, p in trainable_parameters(transformer).items()}
    metadata = LoraMetadata(rank=2, alpha=2.0, base="b", data="d", layout=PUBLISHED)
    save_lora(tmp_path, weights, metadata)
    return tmp_path


def test_an_adapter_starts_from_the_weights_of_another(trained: Path) -> None:
    transformer = tiny_transformer().to(torch.bfloat16)
    add_adapter(transformer, AdapterSection(rank=2, init_from=trained), seed=0)
    started = trainable_parameters(transformer)
    expected = load_file(trained / FILE_NAME)
    assert {f"transformer.{name}" for name in started} == set(expected)
    assert all(torch.equal(expected[f"transformer.{n}"], p) for n, p in started.items())
    assert {p.dtype for p in started.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4, "alpha": 2}, r"lora_A.weight is \(2, 32\), must be \(4, 32\)"),
        ({"alpha": 4}, "its alpha is 2, must be 4"),
        ({"targets": "attention"}, "proj_mlp.*has no place in it"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(
    trained: Path, change: dict[str, Any], message: str
) -> None:
    config = AdapterSection(**{"rank": 2, "init_from": trained} | change)
    with pytest.raises(InputError, match=message):
        add_adapter(tiny_transformer(), config, seed=0)


def test_an_adapter_that_lacks_linears_is_refused(trained: Path) -> None:
    file = trained / FILE_NAME
    weights = {name: t for name, t in load_file(file).items() if ".ff." not in name}
    save_file(weights, file)
    with pytest.raises(InputError, match=r"ff\.net\.0\.proj\.lora_A\.weight is missing"):
        add_adapter(tiny_transformer(), AdapterSection(rank=2, init_from=trained), seed=0)


def test_an_adapter_in_another_layout_is_refused(trained: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, trained / FILE_NAME)
    with pytest.raises(InputError, match="not a LoRA of the transformer in diffusers' layout"):
        add_adapter(tiny_transformer(), AdapterSection(rank=2, init_from=trained), seed=0)


@pytest.mark.parametrize("own", [{"alpha_pattern": {"to_q": 1}}, {"use_rslora": True}])
def test_an_adapter_with_scales_of_its_own_is_refused(trained: Path, own: dict[str, Any]) -> None:
    header = json.dumps({f"transformer.{key}": value for key, value in own.items()})
    file = trained / FILE_NAME
    save_file(load_file(file), file, metadata={"lora_adapter_metadata": header})
    with pytest.raises(InputError, match="does not scale all layers by alpha / rank"):
        add_adapter(tiny_transformer(), AdapterSection(rank=2, init_from=trained), seed=0)
