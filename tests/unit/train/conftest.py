from pathlib import Path

import pytest
from tiny_data import encode_here, make_base, make_shards


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
