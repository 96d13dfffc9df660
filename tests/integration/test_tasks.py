"""Bundles and prompts become assets on disk, or nothing at all."""

from pathlib import Path

import pytest
import torch

from kiss3d_infer.bundle import Bundle, save_bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.base import create_random_base, load_base
from kiss3d_infer.reconstruct import ReconstructSettings
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle
from kiss3d_infer.tasks import bundle_to_mesh, text_to_3d

CONFIGS = Path(__file__).parents[2] / "configs" / "models"
QUICK = ReconstructSettings(coarse_steps=5, fine_steps=1, num_faces=500, texture_size=64)


@pytest.fixture(scope="module")
def box_bundle(tmp_path_factory):
    """The exact bundle of a flat box."""
    import trimesh

    box = trimesh.creation.box((2.0, 1.0, 1.2))
    mesh = Mesh(
        vertices=torch.tensor(box.vertices, dtype=torch.float32),
        faces=torch.tensor(box.faces, dtype=torch.int32),
    )
    path = tmp_path_factory.mktemp("bundle") / "box.png"
    save_bundle(render_bundle(mesh, tile=64), path)
    return path


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    base = create_random_base(CONFIGS / "tiny", tmp_path_factory.mktemp("base") / "tiny", seed=0)
    return load_base(base, dtype="float32")


def test_an_exact_bundle_becomes_a_textured_glb(box_bundle, tmp_path):
    stages = []
    asset = bundle_to_mesh(
        box_bundle,
        tmp_path / "box.glb",
        settings=QUICK,
        on_progress=lambda stage, share: stages.append(stage),
    )
    mesh = load_mesh(asset.path)
    assert mesh.materials[0].texture is not None
    assert asset.bundle == box_bundle
    assert asset.measurements["silhouette_iou"] > 0.8
    assert asset.measurements["bundle/silhouette_iou"] > 0.85
    assert {"validate", *asset.seconds, "export"} == set(stages)


def test_a_bundle_that_fails_validation_needs_force(tmp_path):
    noise = torch.rand(3, 64, 128, generator=torch.Generator().manual_seed(0))
    save_bundle(Bundle(noise), tmp_path / "noise.png")
    with pytest.raises(InputError, match=r"fails validation.*: give another bundle, or force it"):
        bundle_to_mesh(tmp_path / "noise.png", tmp_path / "noise.glb", settings=QUICK)
    assert not (tmp_path / "noise.glb").exists()


def test_an_empty_bundle_is_refused_even_with_force(tmp_path):
    save_bundle(Bundle(torch.ones(3, 64, 128)), tmp_path / "white.png")
    for force in (False, True):
        with pytest.raises(InputError, match=r"is empty: .* white .*: give another bundle$"):
            bundle_to_mesh(
                tmp_path / "white.png", tmp_path / "white.glb", settings=QUICK, force=force
            )
    assert not (tmp_path / "white.glb").exists()


def test_a_prompt_leaves_its_bundle_although_it_fails_validation(pipeline, tmp_path):
    out = tmp_path / "new" / "chair.glb"
    with pytest.raises(InputError, match=r"fails validation.*chair\.bundle\.png.*another seed"):
        text_to_3d(pipeline, "a red chair", out, tile=32, steps=1, settings=QUICK)
    assert (out.parent / "chair.bundle.png").is_file()
    assert not out.exists()


@pytest.mark.parametrize("taken", ["chair.glb", "chair.bundle.png"])
def test_files_that_cannot_be_written_are_found_before_anything_is_drawn(taken, tmp_path):
    (tmp_path / taken).mkdir()
    with pytest.raises(InputError, match="there is a folder of that name"):
        text_to_3d(None, "a red chair", tmp_path / "chair.glb")
    with pytest.raises(InputError, match="name is too long"):
        text_to_3d(None, "a red chair", tmp_path / ("x" * 196 + ".glb"))


def test_a_forced_prompt_becomes_an_asset(pipeline, tmp_path):
    asset = text_to_3d(
        pipeline,
        "a red chair",
        tmp_path / "chair.glb",
        tile=32,
        steps=1,
        settings=QUICK.model_copy(update={"init": "sphere"}),  # noise has a ragged hull
        force=True,
    )
    assert len(load_mesh(asset.path).faces) > 0
    assert asset.warnings
    assert next(iter(asset.seconds)) == "generate"


def test_cancelling_leaves_no_mesh(box_bundle, tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(stage, share):
        if stage == "texture":
            raise Cancelled

    with pytest.raises(Cancelled):
        bundle_to_mesh(box_bundle, tmp_path / "box.glb", settings=QUICK, on_progress=cancel)
    assert list(tmp_path.iterdir()) == []
