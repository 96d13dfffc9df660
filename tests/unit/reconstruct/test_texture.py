import numpy as np
import pytest
import torch
import trimesh

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.reconstruct.measure import agreement
from kiss3d_infer.reconstruct.projection import Projector, view_weights
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.texture import fill_unseen, textured
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import ALBEDO, render_bundle


def painted(mesh):
    """Colours by place: red grows with x, green with y, blue with z."""
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    colors = (vertices / vertices.abs().max() * 0.4 + 0.5).clamp(0, 1)
    faces = torch.tensor(mesh.faces, dtype=torch.int32)
    return Mesh(vertices, faces, vertex_colors=colors).normalized()


@pytest.fixture(scope="module")
def ball():
    mesh = painted(trimesh.creation.icosphere(4))
    bundle = render_bundle(mesh, PUBLISHED, 128, lighting=ALBEDO)
    return mesh, Target.of(bundle)


def test_the_front_counts_most_and_the_sides_least():
    front, right, back, left = view_weights(PUBLISHED.cameras).tolist()
    assert front > back > right == pytest.approx(left)


def test_points_get_the_colour_that_the_views_show(ball):
    mesh, target = ball
    projector = Projector(target, mesh.vertices, mesh.faces)
    normals = torch.nn.functional.normalize(mesh.vertices, dim=1)
    colors, weights = projector.values_at(mesh.vertices, normals)
    seen = weights[:, 0] > 0.05
    assert 0.6 < seen.float().mean() < 0.99
    assert (colors[seen] - mesh.vertex_colors[seen]).abs().mean() < 0.01
    assert (colors[seen] - mesh.vertex_colors[seen]).abs().max() < 0.06


def test_poles_and_hidden_points_have_no_say(ball):
    mesh, target = ball
    projector = Projector(target, mesh.vertices, mesh.faces)
    up = torch.tensor([[0.0, 1.0, 0.0]])
    assert projector.values_at(up * -1, up * -1)[1].item() == 0
    front = torch.tensor([[0.0, 0.0, 1.0]])
    assert projector.values_at(front, front)[1].item() > 0.9
    behind_the_front = front * 0.8
    assert projector.values_at(behind_the_front, front)[1].item() == 0


def test_unseen_vertices_continue_their_neighbours():
    mesh = trimesh.creation.icosphere(3)
    height = mesh.vertices[:, 1].astype(np.float32)
    colors = np.repeat((height[:, None] + 1) / 2, 3, 1)
    weights = np.where(np.abs(height) > 0.5, 1.0, 0.0).astype(np.float32)
    shown = colors * (weights > 0)[:, None]
    faces = mesh.faces.astype(np.int32)
    filled = fill_unseen(mesh.vertices.astype(np.float32), faces, shown, weights)
    unseen = weights == 0
    assert filled[unseen].min() > 0.15 and filled[unseen].max() < 0.85
    equator = np.abs(height) < 0.05
    np.testing.assert_allclose(filled[equator], 0.5, atol=0.05)
    np.testing.assert_allclose(
        filled[np.abs(height) > 0.8], colors[np.abs(height) > 0.8], atol=0.02
    )


def test_a_shell_that_nobody_sees_takes_the_mean_colour_and_is_not_black():
    first, second = trimesh.creation.icosphere(1), trimesh.creation.icosphere(1)
    second.apply_translation([5, 0, 0])
    both = trimesh.util.concatenate([first, second])
    weights = np.r_[np.ones(len(first.vertices)), np.zeros(len(second.vertices))]
    colors = np.full((len(weights), 3), 0.6) * weights[:, None]
    arrays = both.vertices.astype("f4"), both.faces.astype("i4")
    filled = fill_unseen(*arrays, colors.astype("f4"), weights.astype("f4"))
    np.testing.assert_allclose(filled, 0.6, atol=1e-3)
    nothing = fill_unseen(*arrays, np.zeros_like(colors, "f4"), np.zeros(len(weights), "f4"))
    assert nothing.min() > 0.1


def test_the_texture_shows_the_views_the_right_way_up_without_black_patches(ball):
    mesh, target = ball
    painted = textured(mesh.vertices.numpy(), mesh.faces.numpy(), target, 256)
    result, unseen_share = painted.mesh, painted.unseen_share
    assert result.uv is not None and 0.02 < unseen_share < 0.4
    texture = result.materials[0].texture
    assert texture.shape == (256, 256, 3) and texture.min() > 0.05
    measured = agreement(result, target)
    assert measured["color_psnr"] > 32
    assert measured["silhouette_iou"] > 0.99 and measured["normal_error"] < 3
    shown = render_bundle(result, PUBLISHED, 128, lighting=ALBEDO).rgb
    wanted = render_bundle(mesh, PUBLISHED, 128, lighting=ALBEDO).rgb
    assert (shown - wanted).abs().mean() < 0.01


def test_agreement_counts_pixels_and_angles(ball):
    mesh, target = ball
    smaller = Mesh(mesh.vertices * 0.8, mesh.faces)
    measured = agreement(smaller, target)
    # Under perspective a ball of radius r at distance d looks r / sqrt(d^2 - r^2) large.
    expected = 0.8**2 * (4.5**2 - 1) / (4.5**2 - 0.8**2)
    assert measured["silhouette_iou"] == pytest.approx(expected, abs=0.01)
    assert measured["normal_error/0"] > 3
    assert "color_psnr" not in measured
