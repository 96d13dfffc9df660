from pathlib import Path

import pytest

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_train.data.render import RenderJob, render_item
from kiss3d_train.data.sources import open_source

NUM_SAMPLES = 14


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 rendered toybox samples with 24-pixel tiles."""
    out = tmp_path_factory.mktemp("rendered")
    job = RenderJob(f"toybox:{NUM_SAMPLES}", out, 24, PUBLISHED)
    for item in open_source(job.spec).items():
        assert render_item(job, item) is None
    return out
