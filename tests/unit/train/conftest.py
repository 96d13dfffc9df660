from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from tiny_data import encode_here, make_base, make_shards
from tiny_training import free_port, join_group


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a dozen bundles with 32-pixel tiles, in shards of 5."""
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Flux."""
    return make_base(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def latents(shards: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoded form of `shards`; not to be changed."""
    return encode_here(shards, base, tmp_path_factory.mktemp("latents"))


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    join_group(0, 1, free_port())
    yield
    dist.destroy_process_group()
