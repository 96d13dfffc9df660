import pytest
import torch

from kiss3d_infer.scene.camera import Cameras, all_around

FOUR = Cameras((0, 90, 180, 270), (5, 5, 5, 5))


def test_azimuth_0_sees_the_front_and_90_stands_on_plus_x() -> None:
    positions = Cameras((0, 90, 180, 270), (0, 0, 0, 0)).positions
    expected = torch.tensor([[0, 0, 4.5], [4.5, 0, 0], [0, 0, -4.5], [-4.5, 0, 0]])
    assert torch.allclose(positions, expected, atol=1e-6)


def test_rotations_are_proper_and_upright() -> None:
    rotations = FOUR.rotations
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).expand(4, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(4), atol=1e-6)
    assert torch.all(rotations[:, 1, 0].abs() < 1e-6)
    assert torch.all(rotations[:, 1, 1] > 0.99)


def test_origin_projects_to_the_centre_and_plus_x_to_the_right_of_the_front_view() -> None:
    clip = FOUR.clip(torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]]))
    ndc = clip[..., :2] / clip[..., 3:]
    assert torch.allclose(ndc[:, 0], torch.zeros(4, 2), atol=1e-6)
    assert ndc[0, 1, 0] > 0.3 and ndc[0, 2, 1] > 0.3


def test_focal_matches_a_pinhole_of_30_degrees() -> None:
    clip = Cameras((0.0,), (0.0,)).clip(torch.tensor([[0.0, 1, 0]]))
    assert (clip[0, 0, 1] / clip[0, 0, 3]).item() == pytest.approx(3.732051 / 4.5, abs=1e-5)


def test_depth_grows_away_from_the_camera_within_the_clip_range() -> None:
    clip = Cameras((0.0,), (0.0,)).clip(torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 0, -1]]))
    depth = (clip[0, :, 2] / clip[0, :, 3]).tolist()
    assert -1 < depth[0] < depth[1] < depth[2] < 1


def test_nearness_is_what_clip_w_says() -> None:
    clip = FOUR.clip(torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    nearness = FOUR.nearness(clip[..., 2] / clip[..., 3])
    torch.testing.assert_close(1 / nearness, clip[..., 3], atol=1e-4, rtol=0)


def test_directions_all_around_are_even() -> None:
    cameras = Cameras(*all_around(60))
    places = cameras.rotations[:, :, 2]
    assert places.mean(0).abs().max() < 0.02
    nearest = (places @ places.T - 2 * torch.eye(60)).amax(1).acos()
    assert nearest.min() > 0.3 and nearest.max() < 0.55
