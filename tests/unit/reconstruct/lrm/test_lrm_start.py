import dataclasses
import math

import numpy as np
import pytest
import torch
import trimesh

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.lrm import extract
from kiss3d_infer.reconstruct.lrm.extract import extract_mesh
from kiss3d_infer.reconstruct.lrm.network import plane_features
from kiss3d_infer.reconstruct.lrm.start import camera_embedding, lrm_start, solve_scale, start_with
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import is_closed_manifold
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle

# Half-extents along the model's x, y, z: front, left and up.
AXES = np.array([0.3, 0.5, 0.7])
CENTER = np.array([0.05, 0.07, -0.1])


def box(half=AXES, center=CENTER):
    return trimesh.creation.box(2 * half, trimesh.transformations.translation_matrix(center))


def planes_with_coordinates(network):
    """Planes with the coordinates along a row and down a column, and 1 (they read 0 outside)."""
    side, channels = 2 * network.config.triplane_size, network.config.triplane_dim
    center = (torch.arange(side) + 0.5) / side * 2 - 1
    planes = torch.zeros(3, channels, side, side)
    planes[:, 0], planes[:, 1], planes[:, 2] = center, center[:, None], 1
    return planes


def make_box(network):
    """Set the decoder to max(|x - cx| / hx, |y - cy| / hy, |z - cz| / hz) - 1, undeformed."""
    decoder, channels = network.synthesizer.decoder, network.config.triplane_dim
    for name, tensor in decoder.state_dict().items():
        if "net_sdf" in name or "net_deformation" in name:
            tensor.zero_()
    first, second, third, last = (decoder.net_sdf[k] for k in (0, 2, 4, 6))
    # x and y from the plane (x, y), z from the second coordinate of (x, z); both halves of each.
    for k, column in enumerate((0, 1, channels + 1)):
        for sign, row in ((1, 2 * k), (-1, 2 * k + 1)):
            first.weight[row, column] = sign / AXES[k]
            first.bias[row] = -sign * CENTER[k] / AXES[k]
    for row, column in ((6, 2), (7, channels + 2)):  # 1 outside the planes
        first.weight[row, column], first.bias[row] = -1, 1
    # max(a, b) = a + relu(b - a), twice; what lies outside the planes counts as far away.
    second.weight[0, 0:2] = 1
    second.weight[1, 0:2], second.weight[1, 2:4] = -1, 1
    second.weight[2, 4:6] = 1
    second.weight[3, 6:8] = 10
    third.weight[0, [0, 1]] = 1
    third.weight[1, [0, 1]], third.weight[1, 2] = -1, 1
    third.weight[2, 3] = 1
    last.weight[0, :3] = 1
    last.bias[0] = -1
    return network


def shown(mesh, layout=PUBLISHED, tile=128):
    vertices = torch.tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    faces = torch.tensor(np.asarray(mesh.faces), dtype=torch.int32)
    return Target.of(render_bundle(Mesh(vertices, faces), layout, tile))


@pytest.fixture
def target():
    return shown(box())


def with_surface(network, planes):
    """Stretch and shift the field of random weights so that half of it is inside."""
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    last = network.synthesizer.decoder.net_sdf[6]
    last.weight *= 1000
    values = network.synthesizer.decoder.sdf(plane_features(planes, points))
    last.bias -= values.median()
    return network


def test_the_first_camera_stands_at_the_models_front_and_the_second_at_its_left():
    embedding = camera_embedding(PUBLISHED.cameras)
    assert embedding.shape == (4, 16)
    sine, cosine = math.sin(math.radians(5)), math.cos(math.radians(5))
    focal = 0.5 / math.tan(math.radians(15))
    # Columns of the pose: right, up, backward, position; rows x, y, z with z up.
    front = [0, -sine, cosine, 3.5 * cosine, 1, 0, 0, 0, 0, cosine, sine, 3.5 * sine]
    expected = torch.tensor([*front, focal, focal, 0.5, 0.5])
    torch.testing.assert_close(embedding[0], expected, atol=1e-6, rtol=1e-6)
    left = embedding[1, :12].view(3, 4)
    torch.testing.assert_close(
        left[:, 3], torch.tensor([0, 3.5 * cosine, 3.5 * sine]), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(left[:, 0], torch.tensor([-1.0, 0, 0]), atol=1e-6, rtol=1e-6)


def test_a_known_field_is_extracted_in_place(tiny_lrm):
    vertices, faces = extract_mesh(make_box(tiny_lrm), planes_with_coordinates(tiny_lrm))
    assert is_closed_manifold(faces, len(vertices))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(box().volume, rel=0.06)  # its edges are cut
    np.testing.assert_allclose(mesh.bounds, box().bounds, atol=0.01)


def test_the_surface_does_not_depend_on_how_the_queries_are_chunked(tiny_lrm, monkeypatch):
    planes = torch.randn(3, 6, 16, 16, generator=torch.Generator().manual_seed(3))
    network = with_surface(tiny_lrm, planes)
    whole = extract_mesh(network, planes)
    monkeypatch.setattr(extract, "_CHUNK_POINTS", 700)
    parts = extract_mesh(network, planes)
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_allclose(whole[0], parts[0], atol=1e-5)


def test_the_models_front_left_and_up_become_z_x_and_y(tiny_lrm, monkeypatch):
    """The views show the box as the model made it, in our axes and a tenth larger."""
    ours = box(AXES[[1, 2, 0]], CENTER[[1, 2, 0]])
    larger = trimesh.Trimesh(ours.vertices * 1.1, ours.faces)
    planes = planes_with_coordinates(tiny_lrm)
    monkeypatch.setattr(make_box(tiny_lrm), "forward", lambda *_: planes)
    start = start_with(tiny_lrm, shown(larger, tile=256))
    assert start.vertices.dtype == np.float32 and start.faces.dtype == np.int32
    assert is_closed_manifold(start.faces, len(start.vertices))
    assert trimesh.Trimesh(start.vertices, start.faces, process=False).volume > 0
    assert start.scale == pytest.approx(1.1, rel=0.03)
    bounds = np.stack([start.vertices.min(0), start.vertices.max(0)])
    np.testing.assert_allclose(bounds, larger.bounds, atol=0.03)
    assert start.warnings == ()


@pytest.mark.parametrize("scale", [0.95, 1.07, 1.286])
def test_the_scale_is_solved_from_the_silhouettes(scale):
    small = box(np.array([0.6, 0.7, 0.5]))
    views = shown(trimesh.Trimesh(small.vertices * scale, small.faces), tile=256)
    solved, warnings = solve_scale(np.asarray(small.vertices, np.float32), views)
    assert solved == pytest.approx(scale, rel=0.01)
    assert warnings == ()


def test_one_wrong_view_does_not_spoil_the_scale():
    small = box(np.array([0.6, 0.7, 0.5]))
    views = shown(small, tile=256)
    views.alpha[2] = 1
    solved, _ = solve_scale(np.asarray(small.vertices, np.float32), views)
    assert solved == pytest.approx(1.0, rel=0.05)


def test_an_implausible_scale_is_cut_off_and_reported(target):
    tiny = np.asarray(box().vertices, np.float32) * np.float32(0.2)
    scale, warnings = solve_scale(tiny, target)
    assert scale == pytest.approx(4.5 / 4.2 * 1.25, rel=1e-3)
    assert "much smaller" in warnings[0]
    scale, warnings = solve_scale(tiny * np.float32(15), target)
    assert scale == pytest.approx(4.5 / 4.2 * 0.85, rel=1e-3)
    assert "much larger" in warnings[0]


def test_random_weights_from_a_file_give_the_same_closed_mesh_every_time(
    tmp_path, tiny_lrm, tiny_config, target
):
    from safetensors.torch import save_file

    path = tmp_path / "lrm.safetensors"
    images = target.rgb.permute(0, 3, 1, 2)[..., ::4, ::4].contiguous()
    planes = tiny_lrm(images, camera_embedding(target.cameras))
    save_file(with_surface(tiny_lrm, planes).state_dict(), path)
    first = lrm_start(target, path, config=tiny_config)
    second = lrm_start(target, path, config=tiny_config)
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.faces, second.faces)
    assert is_closed_manifold(first.faces, len(first.vertices))
    assert 0.9 < first.scale < 1.35


def test_the_model_sees_the_object_on_white(tiny_lrm, target, monkeypatch):
    seen = []

    def remember(images, cameras):
        seen.append(images)
        return planes_with_coordinates(tiny_lrm)

    monkeypatch.setattr(make_box(tiny_lrm), "forward", remember)
    start_with(tiny_lrm, target)
    (images,) = seen
    assert images.shape == (4, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1
    # Target.rgb carries the object's colour far beyond its edge.
    assert (images[:, :, :2] > 0.999).all() and (images[:, :, 16, 16] < 0.95).any()


def test_other_layouts_are_refused_by_name(tmp_path, target):
    other = BundleLayout(azimuths=(0, 90, 180, 270), elevations=(20, -10, 20, -10))
    with pytest.raises(InputError, match=r"elevations 20/-10/20/-10") as caught:
        lrm_start(shown(box(), other), tmp_path / "absent.safetensors")
    assert "azimuths 0/90/180/270 at elevations 5/5/5/5" in caught.value.what
    part = dataclasses.replace(
        target,
        cameras=dataclasses.replace(
            target.cameras, azimuths=(0.0, 90.0, 180.0), elevations=(5.0, 5.0, 5.0)
        ),
    )
    with pytest.raises(InputError, match="shows azimuths 0/90/180 at"):
        lrm_start(part, tmp_path / "absent.safetensors")


def test_a_field_without_a_surface_is_an_input_error(tiny_lrm, target):
    network = make_box(tiny_lrm)
    network.synthesizer.decoder.net_sdf[6].bias[0] = 10
    with pytest.raises(InputError, match="no surface"):
        start_with(network, target)
