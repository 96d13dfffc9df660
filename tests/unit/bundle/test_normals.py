import math

import torch

from kiss3d_infer.bundle import PUBLISHED, Bundle, BundleLayout
from kiss3d_infer.bundle import normals as code


def angle_degrees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    cross = torch.linalg.cross(a.double(), b.double(), dim=1).norm(dim=1)
    return torch.rad2deg(torch.atan2(cross, (a.double() * b.double()).sum(1)))


def test_red_faces_image_left_green_up_blue_the_viewer() -> None:
    axes = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).view(3, 3, 1, 1)
    colors = code.encode(axes)[..., 0, 0]
    assert torch.allclose(colors, torch.full((3, 3), 0.5) + torch.eye(3) / 2)


def test_wall_facing_the_camera_shows_the_elevation() -> None:
    front = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1)
    camera = code.to_camera(front.expand(4, 3, 1, 1), PUBLISHED)[0, :, 0, 0]
    tilt = math.radians(5)
    assert torch.allclose(camera, torch.tensor([0, -math.sin(tilt), math.cos(tilt)]), atol=1e-6)
    assert [round(255 * c) for c in code.encode(camera.view(3, 1, 1)).flatten().tolist()] == [
        128,
        116,
        255,
    ]


def test_normals_survive_the_round_trip_within_a_tenth_of_a_degree() -> None:
    layout = BundleLayout(azimuths=(0, 45, 200, 310), elevations=(5, -30, 60, 0))
    normals = torch.nn.functional.normalize(torch.randn(4, 3, 64, 64), dim=1)
    alpha = torch.ones(4, 1, 64, 64)
    bundle = Bundle.from_views(torch.ones(4, 3, 64, 64), normals, alpha, layout)
    exact = code.to_world(code.decode(bundle.normal_colors), layout)
    assert angle_degrees(exact, normals).max() < 0.1
    quantised = Bundle((bundle.image * 255).round() / 255, layout)
    rounded = code.to_world(code.decode(quantised.normal_colors), layout)
    assert angle_degrees(rounded, normals).max() < 0.4


def test_decoding_renormalises_generated_colours() -> None:
    colors = torch.rand(2, 3, 8, 8)
    assert torch.allclose(code.decode(colors).norm(dim=1), torch.ones(2, 8, 8), atol=1e-5)
