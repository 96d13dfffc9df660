import numpy as np
import torch
import trimesh

from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import is_closed_manifold
from kiss3d_infer.reconstruct.unseen import seen_vertices, with_film
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle


def target_of(shape):
    mesh = Mesh(torch.tensor(shape.vertices).float(), torch.tensor(shape.faces).int())
    return Target.of(render_bundle(mesh, tile=64))


def test_a_bulge_that_no_view_sees_becomes_flat():
    box = trimesh.creation.box([1.2, 1.2, 1.2]).subdivide_to_size(0.1)
    target = target_of(box)
    vertices = box.vertices.astype(np.float32)
    faces = box.faces.astype(np.int32)
    underneath = (vertices[:, 1] < -0.59) & (np.abs(vertices[:, [0, 2]]).max(1) < 0.55)
    bulged = vertices.copy()
    bulged[underneath, 1] -= 0.08 * (0.6 - np.abs(vertices[underneath][:, [0, 2]]).max(1))
    flat = with_film(bulged, faces, target)
    assert np.abs(bulged[underneath, 1] + 0.6).max() > 0.04
    assert np.abs(flat[underneath, 1] + 0.6).max() < 0.002
    assert is_closed_manifold(faces, len(flat))


def test_what_a_view_sees_stays_where_it_is():
    ball = trimesh.creation.icosphere(4, radius=0.8)
    vertices, faces = ball.vertices.astype(np.float32), ball.faces.astype(np.int32)
    target = target_of(ball)
    seen = seen_vertices(vertices, faces, target)
    assert 0.8 < seen.mean() < 1
    assert not seen[vertices[:, 1].argmin()] and seen[vertices[:, 2].argmax()]
    moved = with_film(vertices, faces, target)
    np.testing.assert_array_equal(moved[seen], vertices[seen])
    assert np.isfinite(moved).all() and (moved[~seen] != vertices[~seen]).any()
