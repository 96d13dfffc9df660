import numpy as np
import pytest
import torch

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.target import Target

SIZE = 48


def disc_views(radius=0.6, color=(0.8, 0.1, 0.1)):
    """Four views of a coloured disc that faces each camera, with one soft edge pixel."""
    center = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    distance = torch.hypot(center[:, None], center[None, :])
    alpha = ((radius - distance) * SIZE / 2 + 0.5).clamp(0, 1).expand(4, 1, SIZE, SIZE)
    angles = torch.deg2rad(torch.tensor([0.0, 90.0, 180.0, 270.0]))
    normals = torch.stack([angles.sin(), torch.zeros(4), angles.cos()], 1)
    normals = normals[:, :, None, None].expand(4, 3, SIZE, SIZE)
    rgb = torch.tensor(color).view(1, 3, 1, 1).expand(4, 3, SIZE, SIZE)
    return rgb, normals, alpha


def test_edges_carry_the_colour_and_normal_of_the_object_not_of_the_background():
    rgb, normals, alpha = disc_views()
    target = Target.of(Bundle.from_views(rgb, normals, alpha))
    edge = (target.alpha[..., 0] > 0.1) & (target.alpha[..., 0] < 0.9)
    assert edge.any()
    # A pixel counts as covered from 95 % on.
    assert (target.rgb[edge] - rgb[0, :, 0, 0]).abs().max() < 0.05
    unit = target.normals[edge] / target.alpha[edge]
    expected = normals.permute(0, 2, 3, 1)[edge]
    assert (unit - expected).abs().max() < 0.06


def test_coverage_survives_the_round_trip():
    rgb, normals, alpha = disc_views()
    target = Target.of(Bundle.from_views(rgb, normals, alpha))
    assert (target.alpha[..., 0] - alpha[:, 0]).abs().max() < 0.1
    assert target.warnings == ()


def test_generated_normals_of_another_length_come_out_unit():
    rgb, normals, alpha = disc_views()
    target = Target.of(Bundle.from_views(rgb, normals * 0.9, alpha))
    length = target.normals[target.alpha[..., 0] == 1].norm(dim=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)


def test_shrinking_keeps_normals_unit_times_coverage():
    rgb, normals, alpha = disc_views()
    target = Target.of(Bundle.from_views(rgb, normals, alpha)).resized(20)
    assert target.size == 20
    np.testing.assert_allclose(target.normals.norm(dim=-1), target.alpha[..., 0], atol=1e-5)


def test_a_white_bundle_is_refused():
    with pytest.raises(InputError, match="every view is white"):
        Target.of(Bundle(torch.ones(3, 2 * SIZE, 4 * SIZE)))


def test_an_empty_view_is_left_out_and_named():
    rgb, normals, alpha = disc_views()
    alpha = alpha.clone()
    alpha[1] = 0
    target = Target.of(Bundle.from_views(rgb, normals, alpha))
    assert target.cameras.azimuths == (0, 180, 270)
    assert len(target.alpha) == 3
    assert "view 1 (azimuth 90)" in target.warnings[0]
