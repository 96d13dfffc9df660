"""What tests on a GPU share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "unit" / "train"))  # tiny models and data


@pytest.fixture
def without_cudnn_attention() -> Iterator[None]:
    """As `create_engine` has it, for the reason that it gives."""
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(was_on)
