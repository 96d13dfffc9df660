import json
import shutil
import threading
from pathlib import Path

import pytest
from sample_folder import NUM_SAMPLES, copied_samples, described, redescribe

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import locked
from kiss3d_train.data.captions import CaptionSource, caption_samples
from kiss3d_train.data.captions.captioner import Sample
from kiss3d_train.data.captions.job import CAPTION_QUARANTINE
from kiss3d_train.data.captions.metadata import MetadataCaptioner
from kiss3d_train.data.shards import ShardReader, write_shards


class Namer:
    """Captions each sample by its key; `fails` are raised instead, by key."""

    def __init__(self, model: str = "1", num_threads: int = 1) -> None:
        self.source = CaptionSource("test", model)
        self.num_threads = num_threads
        self.figures: dict[str, float] = {}
        self.asked: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.stopped = threading.Event()

    def caption(self, sample: Sample) -> str:
        self.asked.append(sample.key)
        if sample.key in self.fails:
            raise self.fails[sample.key]
        return f"a {sample.key}"

    def stop(self) -> None:
        self.stopped.set()


def keys(folder: Path) -> list[str]:
    return [meta["key"] for meta in described(folder)]


def test_exact_captions_stay_unless_they_are_to_be_replaced(rendered: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rendered, tmp_path / "toys"))
    before = described(folder)
    assert before[0]["caption_source"] == {"captioner": "source", "model": "", "prompt": ""}
    assert caption_samples(folder, Namer()).kept == len(before)
    assert described(folder) == before
    assert caption_samples(folder, Namer(), overwrite=True).captioned == len(before)
    assert [meta["caption"] for meta in described(folder)] == [f"a {m['key']}" for m in before]
    assert caption_samples(folder, Namer(), overwrite=True).kept == len(before)


def test_another_captioner_or_model_describes_anew(samples: Path) -> None:
    assert caption_samples(samples, Namer("1")).captioned == NUM_SAMPLES
    assert caption_samples(samples, Namer("1")).kept == NUM_SAMPLES
    assert caption_samples(samples, Namer("2")).captioned == NUM_SAMPLES
    assert caption_samples(samples, MetadataCaptioner()).captioned == NUM_SAMPLES


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(samples: Path) -> None:
    namer = Namer()
    third = keys(samples)[2]
    namer.fails[third] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        caption_samples(samples, namer)
    assert namer.stopped.is_set()
    again = Namer()
    summary = caption_samples(samples, again)
    assert summary.kept == 2 and summary.captioned == 2
    assert not list(samples.glob(".*.partial.*"))
    assert [meta["caption"] for meta in described(samples)] == [f"a {k}" for k in keys(samples)]


def test_what_a_kill_left_half_written_is_removed_and_no_sample(samples: Path) -> None:
    (samples / ".toybox-0-0000000.7.abc.partial.json").write_text("{")
    assert caption_samples(samples, Namer()).captioned == NUM_SAMPLES
    assert not list(samples.glob(".*.partial.*"))


def test_a_bug_in_a_captioner_is_not_taken_for_a_bad_sample(samples: Path) -> None:
    namer = Namer()
    namer.fails[keys(samples)[1]] = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        caption_samples(samples, namer)
    assert (samples / CAPTION_QUARANTINE).read_text() == ""


def test_a_damaged_picture_is_quarantined(samples: Path) -> None:
    broken = min(samples.glob("*.bundle.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    summary = caption_samples(samples, MetadataCaptioner())
    assert (summary.captioned, summary.quarantined) == (NUM_SAMPLES - 1, 1)
    record = json.loads((samples / CAPTION_QUARANTINE).read_text())
    assert "no readable image" in record["reason"]


def test_only_the_first_samples_are_captioned_within_a_limit(samples: Path) -> None:
    assert caption_samples(samples, Namer(), limit=2).captioned == 2
    assert caption_samples(samples, Namer(), limit=3).captioned == 1


def test_a_folder_without_samples_or_with_another_job_is_refused(
    samples: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no rendered samples"):
        caption_samples(tmp_path / "nowhere", Namer())
    assert not (tmp_path / "nowhere").exists()
    with locked(samples), pytest.raises(InputError, match="another job"):
        caption_samples(samples, Namer())
    redescribe(min(samples.glob("*.json")))
    min(samples.glob("*.json")).write_text("[]")
    with pytest.raises(InputError, match="not the description of a sample"):
        caption_samples(samples, Namer())


def test_threads_share_the_work_without_losing_any(rendered: Path, tmp_path: Path) -> None:
    folder = copied_samples(rendered, tmp_path / "all", count=14)
    namer = Namer(num_threads=4)
    assert caption_samples(folder, namer).captioned == 14
    assert sorted(namer.asked) == keys(folder)


def test_shards_carry_the_captions_and_their_source(samples: Path, tmp_path: Path) -> None:
    caption_samples(samples, Namer())
    write_shards(samples, tmp_path / "shards", val_share=0.0)
    reader = ShardReader(tmp_path / "shards")
    said = [reader.describe("train", i) for i in range(NUM_SAMPLES)]
    assert sorted(meta["caption"] for meta in said) == [f"a {key}" for key in keys(samples)]
    assert {meta["caption_source"]["captioner"] for meta in said} == {"test"}
