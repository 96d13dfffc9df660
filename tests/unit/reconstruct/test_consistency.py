from dataclasses import replace

import pytest
import torch
import trimesh

from kiss3d_infer.reconstruct.consistency import Registration, confidences
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle


@pytest.fixture(scope="module")
def target():
    shape = trimesh.creation.torus(0.7, 0.3)
    mesh = Mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces).int())
    return Target.of(render_bundle(mesh.normalized(), tile=96))


def found_shifts(given, surface):
    registration = Registration(given)
    registration.update(surface.geometry)
    return registration.shifts


def test_registration_finds_how_far_views_were_moved(target):
    # Opposite views move alike, so that no translation of the object has a part in it.
    shifts = torch.tensor([[0.02, 0.01], [-0.015, -0.01], [0.02, 0.01], [-0.015, -0.01]])
    found = found_shifts(target.shifted(shifts), target)
    assert torch.allclose(found, -shifts, atol=0.002)


def test_registration_leaves_exact_views_alone_and_knows_its_limit(target):
    nothing = found_shifts(target, target)
    assert nothing.abs().max() < 1e-4
    turned = torch.tensor([[0.2, 0.0]]).repeat(4, 1)
    far = found_shifts(target.shifted(turned), target)
    assert far.abs().max() <= 0.04 + 1e-6


def test_an_object_that_moved_as_a_whole_moves_no_view(target):
    moved = torch.tensor([[0.0, 0.02]]).repeat(4, 1)  # all views down
    assert found_shifts(target.shifted(moved), target).abs().max() < 1e-3


def test_a_shift_moves_all_that_a_view_shows_right_and_down(target):
    moved = target.shifted(torch.tensor([[2 / 96, 1 / 96]]).repeat(4, 1))
    for name in ("rgb", "normals", "alpha"):
        before, after = getattr(target, name), getattr(moved, name)
        assert torch.allclose(after[:, 1:, 2:], before[:, :-1, :-2], atol=1e-4), name


def test_a_view_that_disagrees_counts_less_and_equal_views_count_alike(target):
    alike = target.shifted(torch.full((4, 2), 0.01))
    assert torch.equal(confidences(target, alike.geometry), torch.ones(4))
    normals = target.normals.clone()
    normals[2] = normals[2].flip(0)
    found = confidences(replace(target, normals=normals), target.geometry)
    assert found[2] < 0.5 and bool((found[[0, 1, 3]] == 1).all())
