import pytest
import torch
import trimesh

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct import ReconstructSettings, reconstruct
from kiss3d_infer.reconstruct.measure import agreement
from kiss3d_infer.reconstruct.refine import COARSE, refine
from kiss3d_infer.reconstruct.starts import make_start
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import is_closed_manifold
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle

QUICK = ReconstructSettings(coarse_steps=20, fine_steps=4, num_faces=2000, texture_size=128)


def capsule_bundle(layout=PUBLISHED, tile=64):
    mesh = trimesh.creation.capsule(1.0, 0.4)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    colors = torch.tensor([0.2, 0.5, 0.8]).expand(len(vertices), 3)
    faces = torch.tensor(mesh.faces, dtype=torch.int32)
    return render_bundle(Mesh(vertices, faces, vertex_colors=colors).normalized(), layout, tile)


@pytest.fixture(scope="module")
def bundle():
    return capsule_bundle()


@pytest.fixture(scope="module")
def result(bundle):
    return reconstruct(bundle, QUICK)


def test_the_result_reports_its_agreement_and_its_times(result):
    measured = result.measurements
    assert measured["silhouette_iou"] > 0.93 and measured["normal_error"] < 12
    assert {f"silhouette_iou/{v}" for v in range(4)} <= measured.keys()
    assert measured["watertight"] == 1 and 0 < measured["num_faces"] <= 2000
    assert 0 < measured["unseen_share"] < 0.5
    assert list(result.seconds) == [
        "target", "start", "coarse", "fine", "clean", "texture", "measure",
    ]  # fmt: skip
    assert result.warnings == ()
    assert result.mesh.materials[0].texture.shape == (128, 128, 3)


def test_the_same_bundle_gives_the_same_mesh(bundle, result):
    again = reconstruct(bundle, QUICK)
    assert torch.equal(again.mesh.vertices, result.mesh.vertices)
    assert torch.equal(again.mesh.faces, result.mesh.faces)
    assert torch.equal(again.mesh.materials[0].texture, result.mesh.materials[0].texture)


def test_a_white_bundle_is_refused_before_any_work():
    with pytest.raises(InputError, match="every view is white"):
        reconstruct(Bundle(torch.ones(3, 128, 256)), QUICK)


def test_progress_names_the_stages_in_order_and_can_cancel(bundle):
    class Cancelled(Exception):
        pass

    seen = []

    def on_progress(stage, fraction):
        assert 0 <= fraction <= 1
        seen.append(stage)
        if stage == "coarse" and fraction > 0.5:
            raise Cancelled

    threads = torch.get_num_threads()
    with pytest.raises(Cancelled):
        reconstruct(bundle, QUICK, on_progress=on_progress)
    assert list(dict.fromkeys(seen)) == ["target", "start", "coarse"]
    assert torch.get_num_threads() == threads


def test_another_layout_works_through_the_same_code():
    layout = BundleLayout(azimuths=(30, 150, 270), elevations=(20, -10, 20), distance=4.0)
    result = reconstruct(capsule_bundle(layout), QUICK)
    assert result.measurements["silhouette_iou"] > 0.93
    assert "silhouette_iou/3" not in result.measurements


def test_an_empty_view_is_survived_with_a_warning(bundle):
    image = bundle.image.clone()
    image[:, :, 64:128] = 1
    result = reconstruct(Bundle(image), QUICK)
    assert result.measurements["watertight"] == 1
    assert "azimuth 90" in result.warnings[0]


def test_soft_noisy_bundles_are_survived(bundle):
    torch.manual_seed(0)
    blurred = torch.nn.functional.avg_pool2d(bundle.image[None], 3, 1, 1, count_include_pad=False)
    noisy = (blurred[0] + 0.03 * torch.randn_like(bundle.image)).clamp(0, 1)
    noisy = torch.where(bundle.image.amin(0) > 0.999, bundle.image, noisy)
    result = reconstruct(Bundle(noisy), QUICK)
    assert result.measurements["watertight"] == 1
    assert result.measurements["silhouette_iou"] > 0.9


def test_refinement_grows_and_shrinks_a_ball_into_the_object(bundle):
    target = Target.of(bundle)
    start = make_start("sphere", target)
    vertices, faces = refine(start.vertices, start.faces, target, COARSE, 80, expansion=0.02)
    assert is_closed_manifold(faces, len(vertices))
    before = agreement(Mesh(torch.tensor(start.vertices), torch.tensor(start.faces)), target)
    after = agreement(Mesh(torch.tensor(vertices), torch.tensor(faces)), target)
    assert before["silhouette_iou"] < 0.8
    assert after["silhouette_iou"] > 0.93
