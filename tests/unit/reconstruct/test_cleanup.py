import numpy as np
import pytest
import trimesh

from kiss3d_infer.reconstruct.cleanup import clean, simplified, without_contacts, without_debris
from kiss3d_infer.reconstruct.topology import is_closed_manifold


def arrays(mesh):
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


def ball(radius=1.0, center=(0, 0, 0), subdivisions=4):
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    mesh.apply_translation(center)
    return mesh


def test_debris_goes_and_real_parts_stay():
    crumb = ball(0.02, (1.5, 0, 0), 1)
    second = ball(0.4, (-2, 0, 0), 2)
    parts = trimesh.util.concatenate([ball(), crumb, second])
    vertices, faces = without_debris(*arrays(parts))
    kept = trimesh.Trimesh(vertices, faces, process=False)
    assert kept.body_count == 2
    assert kept.volume == pytest.approx(ball().volume + second.volume, rel=1e-4)


def test_the_inside_of_a_hollow_goes():
    inner = ball(0.5)
    inner.invert()
    vertices, faces = without_debris(*arrays(trimesh.util.concatenate([ball(), inner])))
    assert trimesh.Trimesh(vertices, faces, process=False).volume == pytest.approx(
        ball().volume, rel=1e-4
    )


def test_a_mesh_inside_out_is_turned():
    mesh = ball()
    mesh.invert()
    vertices, faces = without_debris(*arrays(mesh))
    assert trimesh.Trimesh(vertices, faces, process=False).volume > 0


def test_simplifying_meets_the_budget_without_opening_or_deforming():
    vertices, faces = simplified(*arrays(ball(subdivisions=5)), num_faces=3000)
    assert 1000 < len(faces) <= 3000
    assert is_closed_manifold(faces, len(vertices))
    radius = np.linalg.norm(vertices, axis=1)
    np.testing.assert_allclose(radius, 1, atol=0.02)


def test_a_light_mesh_keeps_its_faces():
    vertices, faces = clean(*arrays(ball(subdivisions=2)), num_faces=20_000)
    assert len(faces) == 320
    assert is_closed_manifold(faces, len(vertices))


def test_a_mesh_that_is_no_manifold_is_returned_as_it_is():
    vertices, faces = arrays(ball(subdivisions=2))
    kept_vertices, kept_faces = simplified(vertices, faces[1:], num_faces=100)
    np.testing.assert_array_equal(kept_vertices, vertices)
    np.testing.assert_array_equal(kept_faces, faces[1:])


def test_parts_that_touch_along_an_edge_stay_closed_when_welded():
    first, second = trimesh.creation.box([1, 1, 1]), trimesh.creation.box([1, 1, 1])
    second.apply_translation([1, 1, 0])
    vertices, faces = arrays(trimesh.util.concatenate([first, second]))
    assert not trimesh.Trimesh(vertices, faces).is_watertight
    apart = without_contacts(vertices, faces)
    assert trimesh.Trimesh(apart, faces).is_watertight
    np.testing.assert_allclose(apart, vertices, atol=2e-4)
