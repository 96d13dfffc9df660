"""Bundles drawn on a CUDA device against the CPU's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kiss3d_infer.bundle import PUBLISHED
from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.image import load_bundle
from kiss3d_infer.bundle.masks import normal_masks
from kiss3d_infer.bundle.validate import validate
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.environment import Environment
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.lighting import random_lights
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.render import ALBEDO, render_bundle, render_views
from kiss3d_train.data.render import render_source
from kiss3d_train.data.sources.toybox import make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _needs_nvdiffrast() -> None:
    pytest.importorskip("nvdiffrast")


def _toy(index: int) -> Mesh:
    return framed(make(index).mesh(), PUBLISHED.cameras)


@pytest.mark.parametrize("index", range(8))  # plain, textured and many materials
def test_a_bundle_is_the_same_on_both_devices(index: int) -> None:
    on_cpu, on_cuda = (render_bundle(_toy(index), tile=256, device=d) for d in ("cpu", "cuda"))
    assert on_cuda.image.device.type == "cpu"
    # nvdiffrast snaps vertices to 1/16 pixel: edges differ, and little else.
    difference = (on_cpu.image - on_cuda.image).abs().amax(0)
    assert difference.mean() < 0.003
    assert (difference > 2 / 255).float().mean() < 0.03
    masks = [torch.from_numpy(normal_masks(bundle)) for bundle in (on_cpu, on_cuda)]
    assert (masks[0] != masks[1]).float().mean() < 2e-3
    inner = masks[0] & masks[1]
    a, b = (normal_code.decode(bundle.normal_colors) for bundle in (on_cpu, on_cuda))
    degrees = (a * b).sum(1).clamp(-1, 1).acos().rad2deg()[inner]
    assert degrees.median() < 0.1


def test_metal_in_an_environment_looks_the_same_on_both_devices() -> None:
    material = Material("lacquer", (0.8, 0.5, 0.2), metallic=0.7, roughness=0.4)
    mesh = replace(_toy(2), materials=(material,), material_index=None)
    random = torch.rand(16, 32, 3, generator=torch.Generator().manual_seed(0))
    for light in (random_lights(0, "toy"), Environment.of(random).turned(70)):
        on_cpu, on_cuda = (
            render_bundle(mesh, tile=128, lighting=light, device=device).rgb
            for device in ("cpu", "cuda")
        )
        assert (on_cpu - on_cuda).abs().mean() < 0.003


def test_views_drawn_together_are_those_drawn_alone() -> None:
    mesh = _toy(3)
    cameras = Cameras((0, 80, 160, 240, 320), (5, -20, 40, 0, 10))
    together = render_views(mesh, cameras, 128, lighting=ALBEDO, device="cuda")
    for view in range(len(cameras)):
        camera = Cameras((cameras.azimuths[view],), (cameras.elevations[view],))
        alone = render_views(mesh, camera, 128, lighting=ALBEDO, device="cuda")
        for name in ("rgb", "normals", "alpha", "depth"):
            torch.testing.assert_close(getattr(together, name)[view], getattr(alone, name)[0])


def test_a_job_renders_on_the_gpu(tmp_path: Path) -> None:
    summary = render_source("toybox:6", tmp_path, tile=128, num_workers=2, device="cuda")
    assert (summary.rendered, summary.quarantined) == (6, 0)
    for path in tmp_path.glob("*.bundle.png"):
        report = validate(load_bundle(path))
        assert report.ok, (path.name, report.problems)
