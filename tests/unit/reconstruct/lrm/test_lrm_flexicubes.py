import numpy as np
import pytest
import trimesh
from scipy import ndimage

from kiss3d_infer.errors import InputError
from kiss3d_infer.reconstruct.lrm.cube_tables import CORNERS, EDGES, cube_tables
from kiss3d_infer.reconstruct.lrm.flexicubes import CubeWeights, dual_surface, surface_cubes
from kiss3d_infer.reconstruct.topology import is_closed_manifold

SIDE = 25


def grid(side=SIDE):
    axis = np.linspace(-1, 1, side)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def random_weights(num_cubes, seed=0):
    generator = np.random.default_rng(seed)
    shapes = (num_cubes, 8), (num_cubes, 12), (num_cubes,)
    return CubeWeights(*(generator.uniform(0.5, 1.5, shape).astype("f4") for shape in shapes))


def meshed(field, weights=None, positions=None):
    """The surface of a field over [-1, 1]^3."""
    cubes = surface_cubes(np.asarray(field, np.float32))
    corners = cubes.corners
    if positions is None:
        places = corners * 2 / (len(field) - 1) - 1
    else:
        places = positions[tuple(np.moveaxis(corners, 2, 0))]
    weights = weights or CubeWeights.ones(len(cubes.cells))
    vertices, faces = dual_surface(cubes, places.astype(np.float32), weights)
    assert vertices.dtype == np.float32 and faces.dtype == np.int32
    assert is_closed_manifold(faces, len(vertices))
    return trimesh.Trimesh(vertices, faces, process=False)


def ball(center=(0, 0, 0), radius=0.6):
    return np.linalg.norm(grid() - center, axis=-1) - radius


def test_a_ball_is_round_closed_and_faces_outward():
    mesh = meshed(ball())
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.03)
    voxel = 2 / (SIDE - 1)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max() < 0.15 * voxel


def test_a_torus_keeps_its_hole():
    x, y, z = np.moveaxis(grid(), 3, 0)
    mesh = meshed(np.hypot(np.hypot(x, y) - 0.6, z) - 0.25)
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * np.pi**2 * 0.6 * 0.25**2, rel=0.05)


def test_two_balls_are_two_components():
    mesh = meshed(np.minimum(ball((-0.5, 0, 0), 0.3), ball((0.5, 0.1, 0), 0.3)))
    assert mesh.euler_number == 4
    assert mesh.body_count == 2


def test_weights_and_moved_grid_vertices_keep_the_surface_near_and_closed():
    generator = np.random.default_rng(1)
    voxel = 2 / (SIDE - 1)
    moved = grid() + generator.uniform(-0.12, 0.12, (SIDE, SIDE, SIDE, 3)) * voxel
    field = np.linalg.norm(moved, axis=-1) - 0.6
    num_cubes = len(surface_cubes(field.astype(np.float32)).cells)
    mesh = meshed(field, random_weights(num_cubes), moved)
    assert mesh.euler_number == 2 and mesh.volume > 0
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max() < 0.5 * voxel


@pytest.mark.parametrize("smoothing", [0, 0.7, 1.5])
def test_any_field_gives_a_closed_manifold(smoothing):
    for seed in range(8):
        field = np.random.default_rng(seed).normal(size=(14, 14, 14))
        field = ndimage.gaussian_filter(field, smoothing)
        num_cubes = len(surface_cubes(field.astype(np.float32)).cells)
        mesh = meshed(field, random_weights(num_cubes, seed))
        assert mesh.volume > 0
        # One fan of faces around every vertex, so no two sheets share one.
        assert len(np.unique(mesh.faces)) == len(mesh.vertices)
        assert all(n == 1 for n in fans(mesh))


def fans(mesh):
    """How many loops of faces surround each vertex."""
    following = [{} for _ in mesh.vertices]
    for a, b, c in mesh.faces:
        following[a][b], following[b][c], following[c][a] = c, a, b
    for after in following:
        start = here = next(iter(after))
        count = 0
        while True:
            here, count = after[here], count + 1
            if here == start:
                break
        yield len(after) / count


def test_a_pair_of_pinched_cubes_needs_its_inside_corners_joined():
    # Two outside vertices on the diagonal of one face, everything else near it inside.
    field = np.full((6, 6, 6), -1.0, np.float32)
    field[2, 2, 2] = field[2, 3, 3] = 1
    cubes = surface_cubes(field)
    tables = cube_tables()
    case = ((cubes.values < 0) << np.arange(8)).sum(1)
    changed = (cubes.patch != tables.patch[0, case]).any(1)
    np.testing.assert_array_equal(cubes.cells[changed], [[1, 2, 2], [2, 2, 2]])
    np.testing.assert_array_equal(cubes.patch, tables.patch[changed.astype(int), case])
    meshed(field)
    apart = type(cubes)(cubes.cells, cubes.values, tables.patch[0, case])
    places = cubes.corners.astype(np.float32)
    vertices, faces = dual_surface(apart, places, CubeWeights.ones(len(places)))
    assert not is_closed_manifold(faces, len(vertices))


def test_the_tables_hold_the_known_cases():
    tables = cube_tables()
    assert (tables.num_patches[0, [0, 255]] == 0).all()
    assert (tables.num_patches[0] == np.array([len(set(p) - {-1}) for p in tables.patch[0]])).all()
    inside = {bin(case).count("1") for case in np.flatnonzero(tables.pinched >= 0)}
    assert inside == {5, 6} and (tables.pinched >= 0).sum() == 36
    # Corners 0 and 3 lie on a face's diagonal: apart, or joined into one patch.
    assert tables.num_patches[0, 0b1001] == 2 and tables.num_patches[1, 0b1001] == 1
    # Four corners, no two of them neighbours, are four lone ones.
    lone = sum(1 << c for c in range(8) if CORNERS[c].sum() % 2 == 0)
    assert tables.num_patches[0, lone] == 4
    for case in range(256):
        crossed = (case >> EDGES[:, 0] & 1) != (case >> EDGES[:, 1] & 1)
        assert ((tables.patch[:, case] >= 0) == crossed).all()


def test_alpha_moves_a_crossing_along_its_edge_as_the_paper_says():
    field = np.where(grid(3)[..., 0] < 0.5, -1.0, 3.0)  # x = -1, 0 inside, x = 1 outside
    field = np.pad(field, 2, mode="edge").astype(np.float32)
    cubes = surface_cubes(field)
    inner = (cubes.cells == [3, 3, 3]).all(1)
    weights = CubeWeights.ones(len(inner))
    weights.alpha[:, CORNERS[:, 0] == 1] = 0.5
    vertices, _ = dual_surface(cubes, cubes.corners.astype(np.float32), weights)
    # (s_b alpha_b x_a - s_a alpha_a x_b) / (s_b alpha_b - s_a alpha_a), from x_a = 3 to x_b = 4.
    here = vertices[(np.abs(vertices[:, 1:] - 3.5) < 0.01).all(1)]
    assert np.isclose(here[:, 0], 3 + 1 / (1.5 + 1)).sum() == 1


def test_beta_pulls_the_vertex_toward_an_edge_and_gamma_turns_the_diagonal():
    plain = meshed(ball())
    cubes = surface_cubes(ball().astype(np.float32))
    weights = CubeWeights.ones(len(cubes.cells))
    edge = int(np.flatnonzero(cubes.patch[0] >= 0)[0])
    weights.beta[0, edge] = 1e6
    pulled = meshed(ball(), weights)
    a, b = cubes.corners[0, EDGES[edge]] * 2 / (SIDE - 1) - 1
    s, t = cubes.values[0, EDGES[edge]]
    np.testing.assert_allclose(pulled.vertices[0], a + (b - a) * s / (s - t), atol=1e-4)
    np.testing.assert_array_equal(pulled.vertices[1:], plain.vertices[1:])

    # A vertex lies in as many quads as its cube has crossed edges; cut through it, each gives two
    # of its faces.
    most = 2 * (cubes.patch >= 0).sum(1)
    chosen = int(np.argmin(np.bincount(plain.faces.ravel()) - most))
    assert np.bincount(plain.faces.ravel())[chosen] < most[chosen]
    weights = CubeWeights.ones(len(cubes.cells))
    weights.gamma[chosen] = 10
    turned = meshed(ball(), weights)
    assert np.bincount(turned.faces.ravel())[chosen] == most[chosen]


def test_what_touches_the_border_is_closed_there():
    mesh = meshed(grid()[..., 2])  # the lower half of everything
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4, rel=0.03)  # its edges are cut
    assert mesh.bounds[0].min() >= -1


@pytest.mark.parametrize(("value", "where"), [(1.0, "outside"), (-1.0, "inside")])
def test_a_field_of_one_sign_is_refused_instead_of_planting_a_surface(value, where):
    with pytest.raises(InputError, match=f"{where} everywhere"):
        surface_cubes(np.full((5, 5, 5), value, np.float32))


def test_a_field_that_is_not_finite_is_refused():
    field = ball().astype(np.float32)
    field[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        surface_cubes(field)
