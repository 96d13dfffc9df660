from pathlib import Path

import pytest

from kiss3d_infer.flux.base import create_random_base

CONFIGS = Path(__file__).parents[3] / "configs" / "models"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_random_base(CONFIGS / "tiny", tmp_path_factory.mktemp("base") / "tiny", seed=0)
