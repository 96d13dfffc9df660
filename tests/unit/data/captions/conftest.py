from pathlib import Path

import pytest
from sample_folder import copied_samples


@pytest.fixture
def samples(rendered: Path, tmp_path: Path) -> Path:
    """A folder of four rendered samples, none of which has an exact caption."""
    return copied_samples(rendered, tmp_path / "samples")
