import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import PARTS, base_identity, create_random_base, load_base, read_config

CONFIGS = Path(__file__).parents[3] / "configs" / "models"


@pytest.fixture
def copied_base(tiny_base, tmp_path):
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_seed_decides_the_weights(tiny_base, tmp_path):
    same = create_random_base(CONFIGS / "tiny", tmp_path / "same", seed=0)
    other = create_random_base(CONFIGS / "tiny", tmp_path / "other", seed=1)
    assert base_identity(same) == base_identity(tiny_base)
    assert base_identity(other) != base_identity(tiny_base)


def test_creating_leaves_the_global_seed_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    create_random_base(CONFIGS / "tiny", tmp_path / "base", seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_creating_over_something_is_refused(tiny_base):
    with pytest.raises(InputError, match="exists already"):
        create_random_base(CONFIGS / "tiny", tiny_base, seed=0)


PART_CONFIGS = [
    *(f"{part}/config.json" for part in PARTS),
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/tokenizer_config.json",
    "scheduler/scheduler_config.json",
]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "not valid JSON"), ("[]", "not a JSON object")],
)
@pytest.mark.parametrize("file", PART_CONFIGS)
def test_a_part_without_a_configuration_is_refused(tmp_path, no_network, file, content, message):
    config = Path(shutil.copytree(CONFIGS / "tiny", tmp_path / "config"))
    (config / file).unlink()
    if content:
        (config / file).write_text(content)
    with pytest.raises(InputError, match=rf"{message}.*{file}"):
        create_random_base(config, tmp_path / "out" / "base", seed=0)
    assert not (tmp_path / "out").exists()


def test_a_failed_creation_leaves_nothing_behind(tmp_path):
    config = Path(shutil.copytree(CONFIGS / "tiny", tmp_path / "config"))
    (config / "tokenizer" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(KeyError, match="model_max_length"):
        create_random_base(config, tmp_path / "out" / "base", seed=0)
    assert list((tmp_path / "out").iterdir()) == []


def test_random_latents_have_unit_scale(tiny_base):
    vae = load_base(tiny_base, dtype="float32", parts=("vae",)).vae
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    images = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        raw = vae.encode(images * 2 - 1).latent_dist.mean
    latents = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(latents.mean()) < 0.2
    assert 0.7 < latents.std() < 1.4


def test_a_base_loads_whole_without_the_network(tiny_base, no_network):
    pipeline = load_base(tiny_base)
    assert all(getattr(pipeline, part).dtype == torch.bfloat16 for part in PARTS)
    assert not any(getattr(pipeline, part).training for part in PARTS)


def test_only_the_parts_asked_for_are_loaded(tiny_base):
    encoders = load_base(tiny_base, parts=("vae", "text_encoder", "text_encoder_2"))
    assert encoders.transformer is None
    assert encoders.tokenizer_2 is not None
    trainable = load_base(tiny_base, dtype="float32", parts=("transformer",))
    assert trainable.transformer.dtype == torch.float32
    assert (trainable.vae, trainable.text_encoder, trainable.tokenizer) == (None, None, None)


def test_a_single_file_replaces_the_transformer_of_its_folder(copied_base, no_network):
    original = load_base(copied_base, dtype="float32").transformer.state_dict()
    doubled = {name: 2 * tensor for name, tensor in original.items()}
    file = copied_base / "finetuned.safetensors"
    save_file(doubled, file)
    pipeline = load_base(file, dtype="float32")
    loaded = pipeline.transformer.state_dict()
    assert all(torch.equal(loaded[name], doubled[name]) for name in doubled)
    assert pipeline.text_encoder_2 is not None
    assert base_identity(file) != base_identity(copied_base)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_single_file_in_8_or_16_bits_may_hold_the_transformer_only(copied_base, stored):
    transformer = load_base(copied_base, dtype="float32", parts=("transformer",)).transformer
    alone = copied_base.parent / "alone"
    shutil.copytree(CONFIGS / "tiny", alone)
    small = {name: w.to(stored) for name, w in transformer.state_dict().items()}
    save_file(small, alone / "flux.safetensors")
    loaded = load_base(alone / "flux.safetensors", parts=("transformer",)).transformer
    assert all(
        torch.equal(w, small[name].to(torch.bfloat16)) for name, w in loaded.state_dict().items()
    )
    with pytest.raises(InputError, match=r"no vocabulary here.*tokenizer"):
        load_base(alone / "flux.safetensors", parts=("text_encoder",))


def test_identity_ignores_the_place_and_sees_every_weight(copied_base, tiny_base):
    assert base_identity(copied_base) == base_identity(tiny_base)
    weights = copied_base / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert base_identity(copied_base) != base_identity(tiny_base)


def test_a_text_encoder_with_the_names_of_older_releases_loads(copied_base, tiny_base):
    file = copied_base / "text_encoder" / "model.safetensors"
    older = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(older, file, metadata={"format": "pt"})
    expected = load_base(tiny_base, parts=("text_encoder",)).text_encoder.state_dict()
    found = load_base(copied_base, parts=("text_encoder",)).text_encoder.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_single_file_without_some_weights_is_refused(copied_base):
    weights = load_file(copied_base / "transformer" / "diffusion_pytorch_model.safetensors")
    weights.pop("proj_out.weight")
    save_file(weights, copied_base / "flux.safetensors")
    with pytest.raises(InputError, match=r"flux\.safetensors"):
        load_base(copied_base / "flux.safetensors", parts=("transformer",))


def drop_a_weight(part):
    (file,) = part.glob("*.safetensors")
    weights = load_file(file)
    weights.pop(next(name for name in sorted(weights) if name.endswith("weight")))
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda base: (base / "model_index.json").unlink(), "needs model_index.json"),
        (lambda base: (base / "model_index.json").write_text("{"), "not valid JSON"),
        (
            lambda base: (base / "model_index.json").write_text('{"_class_name": "SDPipeline"}'),
            "this is a SDPipeline",
        ),
        (lambda base: shutil.rmtree(base / "text_encoder_2"), "no weights here.*text_encoder_2"),
        (lambda base: shutil.rmtree(base / "tokenizer_2"), "no vocabulary here.*tokenizer_2"),
        (lambda base: shutil.rmtree(base / "scheduler"), "no scheduler_config.json"),
        (lambda base: drop_a_weight(base / "vae"), "1 weights are missing, e.g. decoder"),
        (lambda base: drop_a_weight(base / "text_encoder"), "1 weights are missing"),
        (
            lambda base: (base / "vae" / "diffusion_pytorch_model.safetensors").rename(
                base / "vae" / "diffusion_pytorch_model.bin"
            ),
            "only pickled weights.*vae",
        ),
        (
            lambda base: (base / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(
                b"no weights"
            ),
            "cannot be read",
        ),
    ],
)
def test_a_broken_base_says_what_is_wrong(copied_base, breakage, message):
    breakage(copied_base)
    with pytest.raises(InputError, match=message):
        load_base(copied_base)


def test_a_missing_base_and_a_wrong_dtype_are_input_errors(tiny_base, tmp_path):
    nowhere = tmp_path / "nowhere"
    for look in (load_base, base_identity, lambda path: read_config(path, "vae/config.json")):
        with pytest.raises(InputError, match=rf"no base model here \({nowhere}\)"):
            look(nowhere)
    with pytest.raises(InputError, match="unknown dtype 'fp8'"):
        load_base(tiny_base, dtype="fp8")
    (tmp_path / "flux.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"must be \.safetensors"):
        load_base(tmp_path / "flux.ckpt")


def test_flux1_dev_has_the_published_shapes():
    from diffusers import FluxTransformer2DModel

    config = FluxTransformer2DModel.load_config(CONFIGS / "flux1-dev" / "transformer")
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert sum(tensor.numel() for tensor in model.parameters()) == 11_901_408_320
    assert shapes["x_embedder.weight"] == (3072, 64)
    assert shapes["context_embedder.weight"] == (3072, 4096)
    assert shapes["time_text_embed.guidance_embedder.linear_1.weight"] == (3072, 256)
    assert shapes["time_text_embed.text_embedder.linear_1.weight"] == (3072, 768)
    assert shapes["transformer_blocks.18.attn.add_q_proj.weight"] == (3072, 3072)
    assert shapes["transformer_blocks.18.ff_context.net.2.weight"] == (3072, 12288)
    assert shapes["single_transformer_blocks.37.proj_out.weight"] == (3072, 15360)
    assert shapes["proj_out.weight"] == (64, 3072)


@pytest.mark.parametrize("name", ["tiny", "mini", "flux1-dev"])
def test_every_configuration_agrees_with_itself(name):
    def read(part, file="config.json"):
        return json.loads((CONFIGS / name / part / file).read_text())

    transformer, vae = read("transformer"), read("vae")
    assert transformer["in_channels"] == 4 * vae["latent_channels"]
    assert transformer["pooled_projection_dim"] == read("text_encoder")["hidden_size"]
    assert transformer["joint_attention_dim"] == read("text_encoder_2")["d_model"]
    assert sum(transformer["axes_dims_rope"]) == transformer["attention_head_dim"]
    assert len(vae["block_out_channels"]) == 4  # factor 8
