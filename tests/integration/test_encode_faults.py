"""Encoding over Ray, killed at its driver and at a worker."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from kiss3d_train.data.encode import encode_shards
from kiss3d_train.data.latents import not_encoded, open_split, tar_of
from kiss3d_train.data.shards import load_index, write_shards

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "unit" / "train"))

from tiny_data import NUM_CAPTIONS, encode_here, make_base, make_rendered  # noqa: E402

NUM_SHARDS = 24
DRIVER = """
import sys
from pathlib import Path
from kiss3d_train.data.encode import encode_shards
encode_shards(*map(Path, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of 24 shards of one sample, and a base."""
    folder = tmp_path_factory.mktemp("faults")
    make_rendered(folder / "rendered", range(NUM_SHARDS))
    write_shards(folder / "rendered", folder / "shards", max_samples=1)
    return folder / "shards", make_base(folder)


@contextmanager
def killing_a_worker() -> Iterator[threading.Event]:
    """Kill the first process seen to encode a shard; the event says that it was done."""
    done, over = threading.Event(), threading.Event()

    def hunt() -> None:
        while not over.is_set() and not done.is_set():
            for process in psutil.Process().children(recursive=True):
                if _title(process).startswith("ray::ShardEncoder.encode"):
                    process.kill()
                    done.set()
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=hunt, daemon=True)
    thread.start()
    yield done
    over.set()
    thread.join()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_killed_driver_and_a_killed_worker_leave_nothing_out_and_nothing_twice(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    shards, base = data
    index = load_index(shards)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, shards, base, tmp_path / "latents"])
    while driver.poll() is None and len(list((tmp_path / "latents").glob("*/[!.]*.json"))) < 3:
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    (folder,) = (tmp_path / "latents").iterdir()
    assert 0 < len(not_encoded(folder, index.shards)) < NUM_SHARDS
    with killing_a_worker() as killed:
        assert encode_shards(shards, base, tmp_path / "latents") == folder
    assert killed.is_set()
    assert not_encoded(folder, index.shards) == []
    assert len(open_split(folder, index, "train")) + len(open_split(folder, index, "val")) == 24
    assert {p.name for p in folder.glob("[!.]*.tar")} == {tar_of(shard) for shard in index.shards}
    assert len(list((folder / "prompts").iterdir())) == NUM_CAPTIONS + 1
    whole = Path(encode_here(shards, base, tmp_path / "undisturbed"))
    for shard in index.shards:
        assert (folder / tar_of(shard)).read_bytes() == (whole / tar_of(shard)).read_bytes()
