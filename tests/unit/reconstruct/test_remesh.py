import numpy as np
import pytest
import trimesh

from kiss3d_infer.reconstruct.optimizer import DescentSettings, MeshDescent
from kiss3d_infer.reconstruct.remesh import remesh
from kiss3d_infer.reconstruct.topology import (
    edge_table,
    incident_faces,
    is_closed_manifold,
    neighbour_means,
)


def torus():
    mesh = trimesh.creation.torus(0.6, 0.25)
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


def state_of(vertices, length):
    return np.column_stack([vertices, np.full(len(vertices), length)]).astype(np.float32)


def euler_characteristic(vertices, faces):
    return len(vertices) - len(edge_table(faces)[0]) + len(faces)


def edge_lengths(vertices, faces):
    edges = edge_table(faces)[0]
    return np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)


def test_edge_table_names_every_edge_once_with_its_two_faces():
    mesh = trimesh.creation.icosphere(2)
    faces = mesh.faces.astype(np.int32)
    edges, face_edges, edge_faces, num_faces = edge_table(faces)
    assert {tuple(e) for e in edges} == {tuple(e) for e in mesh.edges_unique}
    assert (num_faces == 2).all()
    for face in range(0, len(faces), 37):
        for k in range(3):
            edge = face_edges[face, k]
            assert face in edge_faces[edge]
            assert set(edges[edge]) == set(faces[face]) - {faces[face, k]}


def test_incident_faces_are_those_that_name_the_vertex():
    mesh = trimesh.creation.icosphere(1)
    starts, incident = incident_faces(mesh.faces.astype(np.int32), len(mesh.vertices))
    for vertex in range(len(mesh.vertices)):
        expected = np.flatnonzero((mesh.faces == vertex).any(1))
        assert incident[starts[vertex] : starts[vertex + 1]].tolist() == expected.tolist()


def test_closed_manifold_is_told_from_open_flipped_and_doubled_ones():
    vertices, faces = torus()
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert is_closed_manifold(faces, len(vertices))
    assert not is_closed_manifold(faces[1:], len(vertices))
    assert not is_closed_manifold(flipped, len(vertices))
    assert not is_closed_manifold(np.concatenate([faces, faces[:4]]), len(vertices))


@pytest.mark.parametrize("length", [0.3, 0.1, 0.03])
def test_remeshing_reaches_the_target_length_and_keeps_closedness_and_genus(length):
    vertices, faces = torus()
    state = state_of(vertices, length)
    for _ in range(12):
        state, faces = remesh(state, faces, length_column=3)
        assert is_closed_manifold(faces, len(state))
        assert euler_characteristic(state, faces) == 0
    lengths = edge_lengths(state[:, :3], faces)
    assert 0.45 * length < lengths.mean() < 1.4 * length
    assert lengths.max() < 3 * length


def test_remeshing_survives_noise_without_opening_the_surface():
    rng = np.random.default_rng(0)
    vertices, faces = torus()
    state = state_of(vertices, 0.06)
    for _ in range(15):
        state[:, :3] += rng.normal(0, 0.01, (len(state), 3)).astype(np.float32)
        state, faces = remesh(state, faces, length_column=3)
        assert is_closed_manifold(faces, len(state))
        assert euler_characteristic(state, faces) == 0


def test_remeshing_keeps_the_shape():
    ball = trimesh.creation.icosphere(3)
    state = state_of(ball.vertices, 0.1)
    faces = ball.faces.astype(np.int32)
    for _ in range(10):
        state, faces = remesh(state, faces, length_column=3)
    remeshed = trimesh.Trimesh(state[:, :3], faces, process=False)
    assert remeshed.volume == pytest.approx(ball.volume, rel=0.03)


def test_a_tetrahedron_is_never_collapsed():
    mesh = trimesh.creation.icosphere(0)
    tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]], np.int32)
    _, kept = remesh(state_of(tetrahedron, 100.0), faces, length_column=3)
    assert len(kept) == 4
    state, faces = state_of(mesh.vertices, 100.0), mesh.faces.astype(np.int32)
    for _ in range(10):
        state, faces = remesh(state, faces, length_column=3)
    assert is_closed_manifold(faces, len(state))


def test_new_vertices_average_the_state_of_their_edge():
    vertices, faces = torus()
    state = np.column_stack([vertices, vertices[:, 0], np.full(len(vertices), 0.05)])
    grown, _ = remesh(state.astype(np.float32), faces, length_column=4)
    assert len(grown) > len(vertices)
    np.testing.assert_allclose(grown[:, 3], grown[:, 0], atol=1e-6)


def test_remeshing_leaves_its_arguments_alone_and_repeats_exactly():
    vertices, faces = torus()
    state, before = state_of(vertices, 0.05), faces.copy()
    first, second = (remesh(state, faces, length_column=3) for _ in range(2))
    np.testing.assert_array_equal(faces, before)
    np.testing.assert_array_equal(state[:, :3], vertices)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_neighbour_means_match_the_definition():
    mesh = trimesh.creation.icosphere(1)
    means = neighbour_means(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))
    for vertex in (0, 13, 41):
        expected = mesh.vertices[mesh.vertex_neighbors[vertex]].mean(0)
        np.testing.assert_allclose(means[vertex], expected, atol=1e-6)


def test_descent_moves_a_sphere_onto_a_larger_one():
    ball = trimesh.creation.icosphere(2, radius=0.5)
    settings = DescentSettings(edge_lengths=(0.2, 0.1))
    descent = MeshDescent(ball.vertices, ball.faces, settings)
    for step in range(100):
        radius = np.linalg.norm(descent.vertices, axis=1, keepdims=True)
        descent.step(descent.vertices * (1 - 0.9 / radius))
        if step % 2:
            descent.remesh()
    radius = np.linalg.norm(descent.vertices, axis=1)
    np.testing.assert_allclose(radius, 0.9, atol=0.03)
    assert is_closed_manifold(descent.faces, len(descent.vertices))


def test_vertices_with_a_faint_gradient_hold_still_beside_moving_ones():
    ball = trimesh.creation.icosphere(3, radius=0.5)
    above = ball.vertices[:, 1] > 0
    moved = {}
    for stillness in (0.0, 0.3):
        settings = DescentSettings(edge_lengths=(0.1, 0.1), stillness=stillness)
        descent = MeshDescent(ball.vertices, ball.faces, settings)
        for _ in range(20):
            pull = np.where(above[:, None], [0.0, -1.0, 0.0], [1e-3, 0.0, 0.0])
            descent.step(pull.astype(np.float32))
        hidden = ball.vertices[:, 1] < -0.2
        moved[stillness] = np.abs(descent.vertices - ball.vertices)[hidden].max()
    assert moved[0.3] < 0.01 < moved[0.0]


def test_the_mesh_gets_finer_when_vertices_slow_down():
    ball = trimesh.creation.icosphere(2)
    settings = DescentSettings(edge_lengths=(0.2, 0.01), length_gain=0.2)
    fresh, slow = (MeshDescent(ball.vertices, ball.faces, settings) for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(20):  # gradients that cancel: no net speed
        slow.step(rng.normal(size=ball.vertices.shape).astype(np.float32))
    for descent in (fresh, slow):
        descent.remesh()
    assert len(slow.vertices) > 1.2 * len(fresh.vertices)
