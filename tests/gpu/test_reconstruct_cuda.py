"""A bundle becomes a mesh on a CUDA device as on the CPU."""

from pathlib import Path

import pytest
import torch

from kiss3d_infer.bundle import PUBLISHED
from kiss3d_infer.reconstruct import reconstruct
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.render import render_bundle
from kiss3d_train.data.sources import open_source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("index", [0, 1, 2], ids=["chair", "car", "robot"])
def test_exact_bundles_are_reconstructed_on_cuda(tmp_path: Path, index: int) -> None:
    pytest.importorskip("nvdiffrast")
    source = open_source("toybox:3?seed=2")
    mesh = framed(source.load(source.items()[index]), PUBLISHED.cameras)
    bundle = render_bundle(mesh, tile=256, device="cuda")
    on_cpu = render_bundle(mesh, tile=256)
    assert (bundle.image - on_cpu.image).abs().mean() < 0.002
    made = reconstruct(bundle, device="cuda")
    print(index, made.measurements, made.seconds)
    assert made.measurements["silhouette_iou"] >= 0.95
    assert made.measurements["normal_error"] <= 12
    assert made.measurements["watertight"] == 1
    save_mesh(made.mesh, tmp_path / "asset.glb")
    assert len(load_mesh(tmp_path / "asset.glb").faces) == made.measurements["num_faces"]
