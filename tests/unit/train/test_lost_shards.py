"""Tars of a data set that are missing or cut, before and after they were encoded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_data import encode_here, make_shards
from tiny_training import tiny_config

from kiss3d_infer.bundle.layout import Domains
from kiss3d_train.data.encode import ShardEncoder, encode_shards
from kiss3d_train.data.latents import LatentSplit, not_encoded, open_split, record_of, tar_of
from kiss3d_train.data.lost import OnCorrupt, lost_shards, require_encodable, require_tars
from kiss3d_train.data.shards import load_index
from kiss3d_train.data.storage import DamageError
from kiss3d_train.data.stream import Stream
from kiss3d_train.objective import Batch

LOST = "train-00000.tar"


def delete(tar: Path) -> None:
    tar.unlink()


def cut(tar: Path) -> None:
    tar.write_bytes(tar.read_bytes()[:1000])


def alter(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A data set of a test's own."""
    return make_shards(tmp_path)


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("kiss3d_train.data.encode._encode_over_ray", start)


def without(latents: Path, shards: Path, folder: Path, *names: str) -> Path:
    """A copy of a cache that lacks some of the shards."""
    copied = Path(shutil.copytree(latents, folder / latents.name))
    for shard in load_index(shards).shards:
        if shard.name in names:
            (copied / tar_of(shard)).unlink()
            (copied / record_of(shard)).unlink()
    return copied


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
@pytest.mark.parametrize("damage", [delete, cut])
def test_what_is_encoded_is_used_without_its_tars(
    own: Path,
    latents: Path,
    base: Path,
    damage: Callable[[Path], None],
    on_corrupt: OnCorrupt,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in (LOST, "val-00000.tar"):
        damage(own / name)
    index = load_index(own)
    require_encodable(own, index, latents, on_corrupt)
    assert encode_shards(own, base, latents.parent, on_corrupt=on_corrupt) == latents
    assert capsys.readouterr().err.count("warning: 2 shards") == 1
    assert open_split(latents, index, "train")[0].mean_chw.isfinite().all()


@pytest.mark.usefixtures("no_worker")
@pytest.mark.parametrize(
    ("name", "on_corrupt"), [(LOST, "stop"), ("val-00000.tar", "stop"), ("val-00000.tar", "skip")]
)
@pytest.mark.parametrize(
    ("damage", "message"), [(delete, "a shard is missing"), (cut, "a shard is 1000 bytes long")]
)
def test_what_a_run_cannot_do_without_stops_it(
    own: Path,
    base: Path,
    tmp_path: Path,
    name: str,
    on_corrupt: OnCorrupt,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(own / name)
    with pytest.raises(DamageError, match=rf"{message}.*{name}"):
        require_encodable(own, load_index(own), tmp_path / "none", on_corrupt)
    with pytest.raises(DamageError, match=rf"{message}.*{name}"):
        encode_shards(own, base, tmp_path / "latents", on_corrupt=on_corrupt)


def test_what_trains_on_pictures_needs_every_tar(own: Path) -> None:
    index = load_index(own)
    require_tars(own, index)
    delete(own / LOST)
    with pytest.raises(DamageError, match=rf"a shard is missing.*{LOST}"):
        require_tars(own, index)


@pytest.mark.parametrize("damage", [delete, cut])
def test_a_lost_shard_may_be_skipped_and_is_told(
    own: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = load_index(own)
    assert lost_shards(own, index, tmp_path / "none", "stop") == set()
    damage(own / LOST)
    require_encodable(own, index, tmp_path / "none", "skip")
    assert lost_shards(own, index, tmp_path / "none", "skip") == {LOST}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a shard's samples are skipped") and LOST in line


@pytest.mark.parametrize("damage", [delete, cut, alter])
def test_damage_that_an_encoder_meets_is_told_and_leaves_nothing(
    own: Path, latents: Path, base: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    index, shard = load_index(own), load_index(own).of("train")[0]
    folder = without(latents, own, tmp_path, LOST)
    damage(own / LOST)
    found = ShardEncoder(own, base, folder, "cpu").encode_if_sound("train", 0)
    assert isinstance(found, DamageError) and LOST in str(found)
    assert not_encoded(folder, index.shards) == [shard]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("domains", ["bundle", "switch"])
def test_the_samples_of_a_lost_shard_keep_their_places(
    shards: Path, base: Path, tmp_path: Path, domains: Domains
) -> None:
    whole = Path(encode_here(shards, base, tmp_path / "whole", domains))
    index = load_index(shards)
    counts = [n * (2 if domains == "switch" else 1) for n in index.counts("train")]
    lacking = without(whole, shards, tmp_path, LOST)
    with pytest.raises(DamageError, match="missing or unreadable"):
        open_split(lacking, index, "train")
    full = open_split(whole, index, "train")
    some = open_split(lacking, index, "train", may_lack=True)
    assert len(some) == len(full) == sum(counts)
    for place in range(counts[0]):
        with pytest.raises(DamageError, match=f"{LOST} is missing"):
            _ = some[place]
    for place in range(counts[0], len(full)):
        assert torch.equal(some[place].mean_chw, full[place].mean_chw)
    order, expected = some.order(seed=1), full.order(seed=1)
    assert [order(2, p) for p in range(len(full))] == [expected(2, p) for p in range(len(full))]


def batches_of(split: LatentSplit, world_size: int, steps: range) -> tuple[list[Batch], int]:
    """The global batches of some steps, and how many samples were skipped for them."""
    changes = {"scaling.workers": world_size, "data.on_corrupt": "skip"}
    config, order = tiny_config(changes), split.order(3)
    streams = [Stream(split, order, config, rank, world_size) for rank in range(world_size)]
    batches = [Batch.stacked([b for s in streams for b in s.micro_batches(n)]) for n in steps]
    for stream in streams:
        stream.close()
    return batches, sum(stream.num_skipped for stream in streams)


def test_others_take_the_place_of_a_lost_shards_samples_the_same_for_any_number_of_workers(
    latents: Path, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lacking = without(latents, shards, tmp_path, LOST)
    split = open_split(lacking, load_index(shards), "train", may_lack=True)
    straight, num_skipped = batches_of(split, 1, range(12))
    assert num_skipped >= load_index(shards).counts("train")[0]
    assert sum(LOST in record.message for record in caplog.records) == 1
    shared, also_skipped = batches_of(split, 2, range(12))
    resumed, _ = batches_of(split, 1, range(7, 12))  # in a process that has skipped nothing yet
    assert also_skipped == num_skipped
    for one, other in zip(straight + straight[7:], shared + resumed, strict=True):
        assert torch.equal(one.x0_BNC, other.x0_BNC)
        assert torch.equal(one.prompt_BLD, other.prompt_BLD)


def test_a_split_of_which_nothing_is_left_is_refused(
    latents: Path, shards: Path, tmp_path: Path
) -> None:
    index = load_index(shards)
    lacking = without(latents, shards, tmp_path, *(shard.name for shard in index.of("train")))
    with pytest.raises(DamageError, match="missing or unreadable"):
        open_split(lacking, index, "train", may_lack=True)
