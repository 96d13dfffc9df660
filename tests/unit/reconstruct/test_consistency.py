from dataclasses import replace

import pytest
import torch
import trimesh

from kiss3d_infer.reconstruct.consistency import confidences, registered
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle


@pytest.fixture(scope="module")
def target():
    shape = trimesh.creation.torus(0.7, 0.3)
    mesh = Mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces).int())
    return Target.of(render_bundle(mesh.normalized(), tile=96))


def drawn(target):
    return torch.cat([target.normals, target.alpha], -1)


def test_registration_finds_how_far_views_were_moved(target):
    # Opposite views move alike, so that no translation of the object has a part in it.
    shifts = torch.tensor([[0.02, 0.01], [-0.015, -0.01], [0.02, 0.01], [-0.015, -0.01]])
    found = registered(target.shifted(shifts), drawn(target), torch.zeros(4, 2))
    assert torch.allclose(found, -shifts, atol=0.002)


def test_registration_leaves_exact_views_alone_and_knows_its_limit(target):
    nothing = registered(target, drawn(target), torch.zeros(4, 2))
    assert nothing.abs().max() < 1e-4
    turned = torch.tensor([[0.2, 0.0]]).repeat(4, 1)
    far = registered(target.shifted(turned), drawn(target), torch.zeros(4, 2))
    assert far.abs().max() <= 0.04 + 1e-6


def test_an_object_that_moved_as_a_whole_moves_no_view(target):
    moved = torch.tensor([[0.0, 0.02]]).repeat(4, 1)  # all views down
    assert registered(target.shifted(moved), drawn(target), torch.zeros(4, 2)).abs().max() < 1e-3


def test_a_shift_moves_all_that_a_view_shows_right_and_down(target):
    moved = target.shifted(torch.tensor([[2 / 96, 1 / 96]]).repeat(4, 1))
    for name in ("rgb", "normals", "alpha"):
        before, after = getattr(target, name), getattr(moved, name)
        assert torch.allclose(after[:, 1:, 2:], before[:, :-1, :-2], atol=1e-4), name


def test_a_view_that_disagrees_counts_less_and_equal_views_count_alike(target):
    assert torch.equal(confidences(target, drawn(target.shifted(torch.full((4, 2), 0.01)))),
                       torch.ones(4))  # fmt: skip
    normals = target.normals.clone()
    normals[2] = normals[2].flip(0)
    found = confidences(replace(target, normals=normals), drawn(target))
    assert found[2] < 0.5 and bool((found[[0, 1, 3]] == 1).all())
