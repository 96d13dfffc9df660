import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from tiny_data import NUM_CAPTIONS, NUM_SAMPLES, bundle_of, caption_of, encode_here

from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import base_identity, load_base
from kiss3d_infer.flux.prompt import encode_captions
from kiss3d_train.data.encode import (
    ShardEncoder,
    create_cache,
    describe_encoder,
    encode_shards,
)
from kiss3d_train.data.encoder_room import num_encoders
from kiss3d_train.data.latents import (
    LatentSplit,
    not_encoded,
    open_split,
    read_encoder,
    read_latent_shard,
    record_of,
    tar_of,
)
from kiss3d_train.data.shards import ShardReader, load_index
from kiss3d_train.data.storage import LocalFolder


def number_of(shards: Path, row: int) -> int:
    reader = ShardReader(shards)
    return int(json.loads(reader.read("train", row)["json"])["number"])


@pytest.fixture
def copied(latents: Path, tmp_path: Path) -> Path:
    """A cache that a test may damage."""
    copy = tmp_path / latents.name
    shutil.copytree(latents, copy)
    return copy


def training(folder: Path, shards: Path) -> LatentSplit:
    return open_split(folder, load_index(shards), "train")


def test_a_sample_is_what_the_encoders_say(latents: Path, shards: Path, base: Path) -> None:
    pipeline = load_base(base, dtype="float32", parts=("vae", "text_encoder", "text_encoder_2"))
    split = training(latents, shards)
    for row in (0, len(split) - 1):
        number = number_of(shards, row)
        sample = split[row]
        with torch.no_grad():
            posterior = pipeline.vae.encode(bundle_of(number).image[None] * 2 - 1).latent_dist
        factor, shift = pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor
        expected = (posterior.mean[0] - shift) * factor
        assert torch.allclose(sample.mean_chw, expected, atol=2e-3)
        assert torch.allclose(sample.std_chw, posterior.std[0] * factor, rtol=2e-2)
        states, pooled = encode_captions(pipeline, [caption_of(number), ""])
        assert torch.allclose(sample.prompt_LD, states[0], atol=1e-5)
        assert torch.allclose(sample.pooled_P, pooled[0], atol=1e-5)
        assert torch.allclose(sample.bare_prompt_LD, states[1], atol=1e-5)


def test_all_samples_of_both_splits_are_there_in_order(latents: Path, shards: Path) -> None:
    index = load_index(shards)
    split, held_out = training(latents, shards), open_split(latents, index, "val")
    assert (len(split), len(held_out)) == (sum(index.counts("train")), sum(index.counts("val")))
    assert len(split) + len(held_out) == NUM_SAMPLES
    order = split.order(seed=1)
    for epoch in (0, 1):
        assert sorted(order(epoch, p) for p in range(len(split))) == list(range(len(split)))


def test_each_caption_is_stored_once_for_the_whole_set(latents: Path, shards: Path) -> None:
    assert len(list((latents / "prompts").iterdir())) == NUM_CAPTIONS + 1
    for shard in load_index(shards).shards:
        with tarfile.open(latents / tar_of(shard)) as tar:
            names = tar.getnames()
        assert len([n for n in names if n.endswith(".latent.safetensors")]) == len(shard.samples)


def test_encoding_again_gives_the_same_bytes(
    latents: Path, shards: Path, base: Path, copied: Path
) -> None:
    shard = load_index(shards).of("train")[0]
    (copied / tar_of(shard)).unlink()
    shutil.rmtree(copied / "prompts")
    assert not_encoded(copied, [shard]) == [shard]
    ShardEncoder(shards, base, copied, "cpu").encode("train", 0)
    assert not_encoded(copied, [shard]) == []
    assert (copied / tar_of(shard)).read_bytes() == (latents / tar_of(shard)).read_bytes()
    for prompt in (copied / "prompts").iterdir():
        assert prompt.read_bytes() == (latents / "prompts" / prompt.name).read_bytes()


@pytest.mark.parametrize("damage", ["no tar", "truncated tar", "no record", "broken record"])
def test_an_incomplete_shard_counts_as_not_encoded(copied: Path, shards: Path, damage: str) -> None:
    shard = load_index(shards).of("train")[0]
    tar = copied / tar_of(shard)
    if damage == "no tar":
        tar.unlink()
    elif damage == "truncated tar":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif damage == "no record":
        (copied / record_of(shard)).unlink()
    else:
        (copied / record_of(shard)).write_text("{}")
    assert not_encoded(copied, [shard]) == [shard]
    with pytest.raises(InputError):
        training(copied, shards)


def test_an_altered_byte_is_noticed_when_it_is_read(copied: Path, shards: Path) -> None:
    shard = load_index(shards).of("train")[0]
    tar = copied / tar_of(shard)
    offset, size = (
        read_latent_shard(LocalFolder(copied), shard).samples[1].members["latent.safetensors"]
    )
    content = bytearray(tar.read_bytes())
    content[offset + size // 2] ^= 1
    tar.write_bytes(content)
    split = training(copied, shards)
    assert split[0].mean_chw.isfinite().all()
    with pytest.raises(InputError, match="differ from the index"):
        _ = split[1]


def test_another_encoder_gets_another_folder(latents: Path, shards: Path, base: Path) -> None:
    layout = load_index(shards).layout
    identity = base_identity(base)
    same = describe_encoder(base, identity, layout, "float32")
    assert create_cache(same, latents.parent) == latents
    for other in (
        describe_encoder(base, "another base", layout, "float32"),
        describe_encoder(base, identity, layout, "bfloat16"),
    ):
        assert other.name != latents.name


def test_a_base_without_a_vae_is_told_by_the_missing_part(
    base: Path, shards: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    shutil.rmtree(broken / "vae")
    with pytest.raises(InputError, match=r"cannot be read .*vae/config\.json"):
        describe_encoder(broken, "broken", load_index(shards).layout, "float32")


def test_a_base_may_have_a_tiny_autoencoder(base: Path, shards: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    channels = {f"{side}_block_out_channels": (8,) * 4 for side in ("encoder", "decoder")}
    blocks = {f"num_{side}_blocks": (1,) * 4 for side in ("encoder", "decoder")}
    taesd = AutoencoderTiny(**channels, **blocks, latent_channels=4)
    other = Path(shutil.copytree(base, tmp_path / "base"))
    shutil.rmtree(other / "vae")
    taesd.save_pretrained(other / "vae")
    index = (other / "model_index.json").read_text()
    (other / "model_index.json").write_text(index.replace("AutoencoderKL", "AutoencoderTiny"))
    sample = training(encode_here(shards, other, tmp_path / "latents"), shards)[0]
    pixels = bundle_of(number_of(shards, 0)).image[None] * 2 - 1
    with torch.no_grad():
        assert torch.allclose(sample.mean_chw, taesd.encode(pixels).latents[0], atol=2e-3)
    assert sample.std_chw.max() < 1e-5  # it has no posterior to draw from


def test_encoders_are_as_many_as_cores_memory_or_gpus_allow(base: Path, tmp_path: Path) -> None:
    gib = 2**30
    assert num_encoders(base, {"CPU": 4.0, "memory": 64.0 * gib}, use_gpu=False) == 4
    assert num_encoders(base, {"CPU": 64.0, "memory": 8.0 * gib}, use_gpu=False) == 7
    assert num_encoders(base, {"CPU": 64.0, "memory": 0.1 * gib}, use_gpu=False) == 1
    # A small base leaves a GPU room for several.
    assert num_encoders(base, {"CPU": 64.0, "memory": 1.0, "GPU": 2.0}, use_gpu=True) == 16
    assert num_encoders(base, {"CPU": 8.0, "memory": 1.0, "GPU": 2.0}, use_gpu=True) == 8
    assert num_encoders(base, {"CPU": 1.0, "memory": 1.0, "GPU": 2.0}, use_gpu=True) == 2
    single = tmp_path / "flux.safetensors"
    with single.open("wb") as file:
        file.truncate(gib)  # read once as it is and once as float32
    assert num_encoders(single, {"CPU": 64.0, "memory": 12.0 * gib}, use_gpu=False) == 4
    assert num_encoders(single, {"CPU": 64.0, "memory": 1.0, "GPU": 8.0}, use_gpu=True) == 8
    with pytest.raises(InputError, match="no GPU"):
        num_encoders(base, {"CPU": 64.0, "memory": 8.0 * gib}, use_gpu=True)


@pytest.mark.parametrize(
    ("damage", "message"), [("tar", "a shard is 1000 bytes long"), ("tile", "a tile of 100 pixels")]
)
def test_damage_and_wrong_tiles_are_told_before_any_worker_starts(
    shards: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    message: str,
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("kiss3d_train.data.encode._encode_over_ray", start)
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    if damage == "tar":
        (copy / "train-00000.tar").write_bytes(bytes(1000))
    else:
        index = copy / "index.json"
        index.write_text(index.read_text().replace('"tile": 32', '"tile": 100'))
    with pytest.raises(InputError, match=message):
        encode_shards(copy, base, tmp_path / "latents")


def test_an_encoder_reads_nothing_until_it_encodes(latents: Path, tmp_path: Path) -> None:
    # What a Ray actor raises in its __init__ arrives without its reason.
    encoder = ShardEncoder(tmp_path / "no shards", tmp_path / "no base", latents, "cpu")
    with pytest.raises(InputError, match="no data set"):
        encoder.encode("train", 0)


def test_latents_of_another_encoder_are_refused(copied: Path, base: Path, shards: Path) -> None:
    encoder = read_encoder(copied)
    altered = encoder.model_copy(update={"scaling": 2 * encoder.scaling})
    (copied / "encoder.json").write_text(altered.model_dump_json())
    with pytest.raises(InputError, match="another encoder"):
        training(copied, shards)
    with pytest.raises(InputError, match="another encoder"):
        create_cache(encoder, copied.parent)
