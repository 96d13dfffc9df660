"""A packed base is small, loads like any other, and says what is wrong when it is damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import PARTS, base_identity, create_random_base, load_base
from kiss3d_infer.flux.pack import pack_base
from kiss3d_infer.flux.packed import PACKED_HEADER, PACKED_NAME


@pytest.fixture(scope="module")
def packed_base(tiny_base, tmp_path_factory):
    return pack_base(tiny_base, tmp_path_factory.mktemp("packed") / "base")


@pytest.fixture
def copied(packed_base, tmp_path):
    return Path(shutil.copytree(packed_base, tmp_path / "copy"))


def num_bytes(folder):
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def states(base, dtype="float32"):
    pipeline = load_base(base, dtype=dtype)
    return {part: getattr(pipeline, part).state_dict() for part in PARTS}


def test_a_packed_base_takes_little_more_than_a_byte_per_weight(tiny_base, packed_base):
    assert num_bytes(packed_base) < 0.4 * num_bytes(tiny_base)  # of float32, with small tensors


def test_every_weight_comes_back_within_half_a_step_of_its_row(tiny_base, packed_base):
    restored = states(packed_base)
    for part, weights in states(tiny_base).items():
        assert restored[part].keys() == weights.keys()
        for name, weight in weights.items():
            error = (restored[part][name] - weight).abs()
            if weight.ndim < 2 or weight.numel() < 4096:
                assert torch.equal(restored[part][name], weight.bfloat16().float())
            else:
                largest = weight.abs().flatten(1).amax(1)
                assert (error.flatten(1).amax(1) <= 0.501 * largest / 127).all()


def test_the_dtype_asked_for_is_kept_and_nothing_trains(packed_base):
    pipeline = load_base(packed_base, dtype="bfloat16")
    networks = [getattr(pipeline, part) for part in PARTS]
    assert all(network.dtype == torch.bfloat16 for network in networks)
    assert not any(network.training for network in networks)
    assert not any(tensor.is_meta for network in networks for tensor in network.buffers())


def test_it_draws_nearly_the_same_picture(tiny_base, packed_base):
    from kiss3d_infer.flux.sampling import generate_bundle

    pictures = [
        generate_bundle(load_base(base, dtype="float32"), "a red chair", tile=32, steps=2).image
        for base in (tiny_base, packed_base)
    ]
    error = (pictures[0] - pictures[1]).square().mean()
    assert 0 < error < 1e-3  # above 30 dB


def test_packing_leaves_configuration_and_vocabulary_alone(tiny_base, packed_base):
    def others(base):
        files = [file for file in base.rglob("*") if file.is_file()]
        return {
            file.relative_to(base): file.read_bytes()
            for file in files
            if file.suffix != ".safetensors"
        }

    assert others(packed_base) == others(tiny_base)


def test_identity_sees_every_packed_weight(tiny_base, packed_base, copied):
    assert base_identity(copied) == base_identity(packed_base) != base_identity(tiny_base)
    file = copied / "vae" / PACKED_NAME
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert base_identity(copied) != base_identity(packed_base)


def test_a_part_in_several_files_is_packed_into_one(tiny_base, packed_base, tmp_path):
    split = Path(shutil.copytree(tiny_base, tmp_path / "split"))
    file = split / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    names = sorted(weights)
    halves = {"00001": names[::2], "00002": names[1::2]}
    for number, part in halves.items():
        save_file(
            {name: weights[name] for name in part}, file.with_stem(f"model-{number}-of-00002")
        )
    (file.parent / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    file.unlink()
    made = pack_base(split, tmp_path / "packed")
    assert [
        path.name for path in (made / "transformer").iterdir() if "json" not in path.suffix
    ] == [PACKED_NAME]
    whole = load_base(packed_base, parts=("transformer",)).transformer.state_dict()
    found = load_base(made, parts=("transformer",)).transformer.state_dict()
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert not (made / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()


def changed(change, part="transformer", header=PACKED_HEADER):
    def apply(base):
        file = base / part / PACKED_NAME
        weights = load_file(file)
        name = next(key for key in sorted(weights) if key.endswith("int8_scale"))
        change(weights, name.removesuffix(".int8_scale"), name)
        save_file(weights, file, metadata=header)

    return apply


def truncated(base):
    file = base / "vae" / PACKED_NAME
    file.write_bytes(file.read_bytes()[:-100])


def with_other_widths(base):
    file = base / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"joint_attention_dim": 48}))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (changed(lambda w, name, scale: w.pop(scale)), "damaged: .* no scale for each of its rows"),
        (changed(lambda w, name, scale: w.pop(name)), "scales nothing"),
        (changed(lambda w, name, scale: w[scale].fill_(float("nan"))), "no scale for each"),
        (changed(lambda w, name, scale: w.update({scale: w[scale][:-1].clone()})), "no scale for"),
        (changed(lambda w, name, scale: w.update({name: w[name].half()})), "has a scale but is"),
        (changed(lambda w, name, scale: (w.pop(name), w.pop(scale))), "1 weights are missing"),
        (
            changed(lambda w, name, scale: (w.pop(name), w.pop(scale)), "text_encoder"),
            "1 weights are missing",
        ),
        (changed(lambda w, name, scale: w.update(new=torch.ones(3))), "no place for new"),
        (
            changed(lambda w, name, scale: None, header=PACKED_HEADER | {"kiss3d_packed": "2"}),
            "cannot read these",
        ),
        (changed(lambda w, name, scale: None, header={"format": "pt"}), "cannot read these"),
        (truncated, "not a readable safetensors file"),
        (with_other_widths, "do not fit config.json"),
    ],
)
def test_a_damaged_packed_base_says_what_is_wrong(copied, breakage, message):
    breakage(copied)
    with pytest.raises(InputError, match=message):
        load_base(copied)


def test_what_cannot_be_packed_is_refused_and_nothing_is_left(tiny_base, packed_base, tmp_path):
    with pytest.raises(InputError, match="packed already"):
        pack_base(packed_base, tmp_path / "again")
    with pytest.raises(InputError, match="exists already"):
        pack_base(tiny_base, packed_base)
    with pytest.raises(InputError, match="needs model_index"):
        pack_base(tmp_path, tmp_path / "nothing")
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_in.bias"][0] = float("inf")
    save_file(weights, file)
    with pytest.raises(InputError, match=r"decoder\.conv_in\.bias holds NaN or infinity"):
        pack_base(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_random_base_of_mini_packs_to_a_quarter(tmp_path):
    configuration = Path(__file__).parents[3] / "configs" / "models" / "mini"
    base = create_random_base(configuration, tmp_path / "mini", seed=0)
    assert num_bytes(pack_base(base, tmp_path / "packed")) < 0.28 * num_bytes(base)
