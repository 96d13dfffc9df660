import sys
from pathlib import Path

import pytest
import torch

from kiss3d_infer.errors import InputError
from kiss3d_infer.serve.config import ReconstructorConfig, ServeConfig
from kiss3d_infer.serve.deployments import Reconstructor


def test_a_gpu_reconstructor_without_nvdiffrast_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    config = ServeConfig(data=tmp_path, reconstructor=ReconstructorConfig(num_gpus=0.5))
    with pytest.raises(InputError, match="needs nvdiffrast, which is not installed"):
        Reconstructor(config)


def test_a_cpu_reconstructor_starts_anywhere(tmp_path: Path) -> None:
    Reconstructor(ServeConfig(data=tmp_path))
