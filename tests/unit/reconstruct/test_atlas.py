import numpy as np
import pytest
import torch
import trimesh

from kiss3d_infer.reconstruct.atlas import axis_labels, unwrap
from kiss3d_infer.scene.raster import rasterizer_for


def arrays(mesh):
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


def spring(num_rings=181, around=12):
    """A tube wound three times around the y axis: its upper side lies over itself."""
    turn = np.linspace(0, 6 * np.pi, num_rings)[:, None]
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)[None]
    radius = 0.6 + 0.08 * np.cos(angle)
    points = np.stack(
        [
            radius * np.cos(turn),
            0.05 * turn - 0.5 + 0.08 * np.sin(angle),
            radius * np.sin(turn),
        ],
        -1,
    ).reshape(-1, 3)
    faces = []
    for ring in range(num_rings - 1):
        for k in range(around):
            a, b = ring * around + k, ring * around + (k + 1) % around
            faces += [[a, a + around, b], [b, a + around, b + around]]
    last = (num_rings - 1) * around
    for k in range(1, around - 1):
        faces += [[0, k, k + 1], [last, last + k + 1, last + k]]
    mesh = trimesh.Trimesh(points, faces, process=False)
    assert mesh.is_watertight
    return mesh


def areas(atlas):
    a, b, c = atlas.uv[atlas.faces.long()].double().unbind(1)
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2


def covered_area(atlas):
    """The share of the square that the charts cover, each place once."""
    clip = torch.cat([atlas.uv * 2 - 1, torch.zeros(len(atlas.uv), 1)], 1)
    clip = torch.nn.functional.pad(clip, (0, 1), value=1.0)[None]
    face = rasterizer_for("cpu").rasterize(clip, atlas.faces, (4096, 4096)).face
    return float((face > 0).float().mean())


@pytest.mark.parametrize(
    "shape", [lambda: trimesh.creation.icosphere(3), spring], ids=["ball", "spring"]
)
def test_every_face_keeps_its_vertices_and_has_a_place_of_its_own(shape):
    vertices, faces = arrays(shape())
    atlas = unwrap(vertices, faces, 512)
    np.testing.assert_array_equal(atlas.source[atlas.faces.long()], faces)
    assert atlas.uv.min() >= 0 and atlas.uv.max() <= 1
    total = float(areas(atlas).sum())
    assert 0.25 < total < 1
    assert covered_area(atlas) == pytest.approx(total, rel=2e-3)


def test_texels_are_spread_evenly_over_the_surface():
    vertices, faces = arrays(trimesh.creation.torus(0.6, 0.25))
    atlas = unwrap(vertices, faces, 512)
    triangles = torch.from_numpy(vertices)[torch.from_numpy(faces).long()].double()
    normals = torch.linalg.cross(*(triangles[:, 1:] - triangles[:, :1]).unbind(1))
    density = areas(atlas) / (normals.norm(dim=1) / 2)
    assert density.min() > 0.12 * density.max()


def test_a_box_gets_one_chart_per_side():
    vertices, faces = arrays(trimesh.creation.box().subdivide().subdivide())
    labels = axis_labels(vertices, faces)
    assert np.bincount(labels).tolist() == [len(faces) // 6] * 6
    assert len(unwrap(vertices, faces, 256).uv) == 6 * 25


def test_stray_faces_join_the_region_around_them():
    ball = trimesh.creation.icosphere(4)
    vertices, faces = arrays(ball)
    rng = np.random.default_rng(0)
    labels = axis_labels(vertices + rng.normal(0, 0.01, vertices.shape).astype("f4"), faces)
    toward = np.argmax(np.abs(ball.face_normals), 1)
    changes = sum(labels[a] != labels[b] for a, b in ball.face_adjacency)
    noisy = trimesh.Trimesh(vertices + rng.normal(0, 0.01, vertices.shape), faces).face_normals
    plain = np.argmax(np.abs(noisy), 1)
    assert changes < 1.5 * sum(toward[a] != toward[b] for a, b in ball.face_adjacency)
    assert changes < 0.7 * sum(plain[a] != plain[b] for a, b in ball.face_adjacency)
