"""The cache of latents in an object store, over an append, and damaged."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_data import NUM_CAPTIONS, encode_here, make_rendered

from kiss3d_infer.errors import InputError
from kiss3d_train.data.cache import DiskCache
from kiss3d_train.data.encode import ShardEncoder
from kiss3d_train.data.latents import LatentSplit, not_encoded, open_split, record_of
from kiss3d_train.data.prompts import PromptStore
from kiss3d_train.data.shards import append_shards, load_index, write_shards
from kiss3d_train.data.storage import DamageError, LocalFolder, Place, RemoteFolder, folder_at


def upload(folder: Path, url: str) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            upload(path, f"{url}/{path.name}")
        else:
            with folder_at(url).writing(path.name) as aside:
                shutil.copy(path, aside)


@pytest.fixture
def remote(latents: Path, tmp_path: Path) -> str:
    """The cache in an object store."""
    url = f"memory://{tmp_path.name}/{latents.name}"
    upload(latents, url)
    return url


def same(one: LatentSplit, other: LatentSplit) -> bool:
    fields = ("mean_chw", "std_chw", "prompt_LD", "pooled_P", "bare_prompt_LD", "bare_pooled_P")
    return len(one) == len(other) and all(
        torch.equal(getattr(one[i], field), getattr(other[i], field))
        for i in range(len(one))
        for field in fields
    )


def test_encoding_into_a_store_gives_what_encoding_on_disk_gives(
    latents: Path, shards: Path, base: Path, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path.name}"
    upload(shards, f"{url}/shards")
    place = encode_here(f"{url}/shards", base, f"{url}/latents")
    index = load_index(f"{url}/shards")
    assert not_encoded(place, index.shards) == []
    assert same(open_split(place, index, "train"), open_split(latents, index, "train"))


def test_a_second_epoch_comes_from_the_disk_cache(
    latents: Path, remote: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = load_index(shards)
    cache = DiskCache(tmp_path / "cache", 10**9)
    local = open_split(latents, index, "train")
    assert same(open_split(remote, index, "train", cache), local)
    again = open_split(remote, index, "train", cache)
    monkeypatch.setattr(RemoteFolder, "read_ranges", lambda *_: pytest.fail("asked the store"))
    monkeypatch.setattr(RemoteFolder, "read", lambda *_: pytest.fail("asked the store"))
    assert same(again, local)


@pytest.mark.parametrize("fault", ["prompt gone", "prompt altered", "tar gone"])
def test_what_is_gone_or_altered_is_damage(
    latents: Path, shards: Path, tmp_path: Path, fault: str
) -> None:
    copied = Path(shutil.copytree(latents, tmp_path / latents.name))
    split = open_split(copied, load_index(shards), "train")
    for path in copied.glob("*.tar" if fault == "tar gone" else "prompts/*"):
        if fault == "prompt altered":
            content = bytearray(path.read_bytes())
            content[-3] ^= 1
            path.write_bytes(content)
        else:
            path.unlink()
    with pytest.raises(DamageError):
        _ = split[0]


def test_any_altered_byte_of_a_prompt_is_noticed(tmp_path: Path) -> None:
    store = PromptStore(LocalFolder(tmp_path))
    store.write("abc", {"states": torch.randn(3, 4), "pooled": torch.randn(2)})
    assert store.digests() == {"abc"} and store.has("abc") and not store.has("abd")
    path = tmp_path / "prompts" / "abc.safetensors"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamageError):
            store.read("abc")
    for size in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DamageError):
            store.read("abc")


def test_a_missing_prompt_is_embedded_without_encoding_the_pictures_again(
    latents: Path, shards: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(latents, tmp_path / latents.name))
    lost = sorted((copied / "prompts").iterdir())[0]
    lost.unlink()
    index = load_index(shards)
    lacking = not_encoded(copied, index.shards)
    assert lacking != []
    monkeypatch.setattr(
        "kiss3d_train.data.encode.encode_image", lambda *_: pytest.fail("it encoded a picture")
    )
    encoder = ShardEncoder(shards, base, copied, "cpu")
    encoder.encode(lacking[0].split, index.of(lacking[0].split).index(lacking[0]))
    assert not_encoded(copied, index.shards) == [] and lost.exists()


def test_after_an_append_only_the_new_is_encoded(base: Path, tmp_path: Path) -> None:
    make_rendered(tmp_path / "some", range(6))
    make_rendered(tmp_path / "all", range(9))
    shards: Place = tmp_path / "shards"
    write_shards(tmp_path / "some", shards, max_samples=3)
    folder = Path(encode_here(shards, base, tmp_path / "latents"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    append_shards(tmp_path / "all", shards, max_samples=3)
    index = load_index(shards)
    new = not_encoded(folder, index.shards)
    assert 0 < len(new) < len(index.shards)
    with pytest.raises(InputError, match="is missing"):
        open_split(folder, index, new[0].split)
    encoder = ShardEncoder(shards, base, folder, "cpu")
    for shard in new:
        encoder.encode(shard.split, index.of(shard.split).index(shard))
        assert (folder / record_of(shard)).exists()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list((folder / "prompts").iterdir())) == NUM_CAPTIONS + 1
    assert len(open_split(folder, index, "train")) + len(open_split(folder, index, "val")) == 9
