import pytest
import torch
import trimesh

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct import ReconstructSettings, reconstruct
from kiss3d_infer.reconstruct.measure import agreement
from kiss3d_infer.reconstruct.refine import COARSE, COARSE_LOSS, FINE, LossSettings, refine
from kiss3d_infer.reconstruct.starts import make_start
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import is_closed_manifold
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle

QUICK = ReconstructSettings(coarse_steps=20, fine_steps=4, num_faces=2000, texture_size=128)


def changed(**values):
    return QUICK.model_copy(update=values)


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
    assert "view 1 (azimuth 90)" in result.warnings[0]
    for name in ("silhouette_iou", "normal_error", "view_shift", "view_confidence"):
        views = [key for key in result.measurements if key.startswith(f"{name}/")]
        assert views == [f"{name}/0", f"{name}/2", f"{name}/3"]


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
    made = refine(start.vertices, start.faces, target, COARSE, 80, COARSE_LOSS, records_losses=True)
    vertices, faces = made.vertices, made.faces
    assert is_closed_manifold(faces, len(vertices))
    assert len(made.losses) == 80 and made.losses[-1] < 0.2 * made.losses[0]
    before = agreement(Mesh(torch.tensor(start.vertices), torch.tensor(start.faces)), target)
    after = agreement(Mesh(torch.tensor(vertices), torch.tensor(faces)), target)
    assert before["silhouette_iou"] < 0.8
    assert after["silhouette_iou"] > 0.93


def test_the_explicit_target_fits_as_the_views_do(bundle):
    target = Target.of(bundle)
    start = make_start("carve", target)
    loss = LossSettings(explicit_every=10, is_two_sided=False)
    made = refine(start.vertices, start.faces, target, FINE, 20, loss)
    fitted = agreement(Mesh(torch.tensor(made.vertices), torch.tensor(made.faces)), target)
    assert fitted["silhouette_iou"] > 0.93 and fitted["normal_error"] < 12


def test_views_that_are_shifted_are_moved_back_and_reported(bundle):
    moved = bundle.image.clone()
    moved[:, :, 64:128] = moved[:, :, 64:128].roll(3, 2)
    result = reconstruct(Bundle(moved), changed(coarse_steps=80))
    straight = reconstruct(bundle, changed(coarse_steps=80))
    assert result.measurements["view_shift/1"] > 0.01
    assert max(straight.measurements[f"view_shift/{v}"] for v in range(4)) < 0.006
    assert any("view 1 (azimuth 90)" in warning for warning in result.warnings)
    assert straight.warnings == ()


def test_a_view_of_another_object_counts_less_and_is_named(bundle):
    ball = trimesh.creation.icosphere(3)
    mesh = Mesh(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).int())
    other = render_bundle(mesh, tile=64).image
    mixed = bundle.image.clone()
    mixed[:, :, 128:192] = other[:, :, 128:192]
    result = reconstruct(Bundle(mixed), QUICK)
    confidence = [result.measurements[f"view_confidence/{v}"] for v in range(4)]
    assert min(confidence) < 0.6
    assert any("does not fit view 2 (azimuth 180)" in warning for warning in result.warnings)


def test_a_given_mesh_is_the_start_whatever_its_topology(bundle):
    box = trimesh.creation.box([0.5, 0.5, 1.9])
    twice = trimesh.util.concatenate([box, box])  # four faces meet at every edge
    mesh = Mesh(torch.tensor(twice.vertices).float(), torch.tensor(twice.faces).int())
    result = reconstruct(bundle, changed(coarse_steps=100), start_mesh=mesh)
    assert result.measurements["watertight"] == 1
    assert result.measurements["silhouette_iou"] > 0.93


def test_albedo_and_normal_map_are_options(bundle):
    settings = changed(albedo=True, normal_map=True)
    made = reconstruct(bundle, settings)
    material = made.mesh.materials[0]
    assert material.normal_map.shape == (128, 128, 3)
    assert not torch.equal(material.normal_map, torch.full_like(material.normal_map, 0.5))
    seen = material.texture[material.texture.amin(-1) > 0.05]
    # The capsule has one colour; without its light the texture has, too.
    assert seen.std(0).max() < 0.03


def test_debug_pictures_tell_every_stage(bundle, tmp_path):
    reconstruct(bundle, QUICK, debug=tmp_path / "debug")
    assert {path.name for path in (tmp_path / "debug").iterdir()} == {
        "targets.png", "stage_1_start.png", "stage_2_coarse.png", "stage_3_fine.png",
        "stage_4_clean.png", "losses.png", "unseen.png", "turntable.gif",
    }  # fmt: skip
