import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.reconstruct.integrate import integrate_normals, perspective_normals
from kiss3d_infer.reconstruct.starts import make_start
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.reconstruct.topology import is_closed_manifold
from kiss3d_infer.reconstruct.volume import (
    Grid,
    hull_grid,
    project,
    silhouette_distance,
    surface,
    visual_hull,
)
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_bundle


def image_plane(size):
    center = (np.arange(size) + 0.5) / size * 2 - 1
    across, down = np.meshgrid(center, center)
    return across, -down


def bundle_of(mesh, tile=96, layout=PUBLISHED):
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    faces = torch.tensor(mesh.faces, dtype=torch.int32)
    return render_bundle(Mesh(vertices, faces).normalized(), layout, tile)


def bowl():
    outer = trimesh.creation.cylinder(1.0, 1.2, sections=48)
    inner = trimesh.creation.cylinder(0.8, 1.2, sections=48)
    inner.apply_translation([0, 0, 0.2])
    hollow = trimesh.boolean.difference([outer, inner], engine="manifold")
    hollow.apply_transform(trimesh.transformations.rotation_matrix(-math.pi / 2, [1, 0, 0]))
    return hollow


def niche():
    """A block whose front is carved out: no silhouette shows it."""
    block = trimesh.creation.box([2.0, 2.0, 1.6])
    hole = trimesh.creation.box(
        [1.2, 1.2, 1.0], trimesh.transformations.translation_matrix([0, 0, 0.8])
    )
    return trimesh.boolean.difference([block, hole], engine="manifold")


def test_integrating_a_sphere_gives_its_height():
    x, y = image_plane(96)
    mask = np.hypot(x, y) < 0.9
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    height, segments = integrate_normals(np.stack([x, y, z], -1), mask)
    error = height[mask] * 2 / 96 - z[mask]
    assert np.abs(error - error.mean()).max() < 0.01
    assert segments[mask].max() == 0 and (segments[~mask] == -1).all()


def test_rows_run_downward_while_y_points_up():
    mask = np.ones((32, 32), bool)
    normals = np.broadcast_to(np.array([0.0, 0.6, 0.8]), (32, 32, 3))
    height, _ = integrate_normals(normals, mask)
    # A plane that faces up leans away at its top.
    np.testing.assert_allclose(np.diff(height, axis=0), 0.75, atol=5e-3)


def test_a_crease_without_contact_leaves_both_sides_planar():
    normals = np.zeros((64, 64, 3))
    normals[:, :32] = [0.0, 0.0, 1.0]
    normals[:, 32:] = [0.0, 0.6, 0.8]
    height, _ = integrate_normals(normals, np.ones((64, 64), bool), max_iterations=60)
    # Least squares alone would bend both sides toward each other.
    np.testing.assert_allclose(np.ptp(height[:, :28], axis=0), 0, atol=1.0)
    np.testing.assert_allclose(np.diff(height[:, 36:], axis=0), 0.75, atol=0.05)


def test_a_grazing_wall_parts_the_surface():
    normals = np.zeros((32, 32, 3))
    normals[..., 2] = 1.0
    normals[:, 15:17] = [math.sqrt(1 - 0.05**2), 0.0, 0.05]
    _, segments = integrate_normals(normals, np.ones((32, 32), bool))
    assert len(np.unique(segments[:, :15])) == len(np.unique(segments[:, 17:])) == 1
    assert segments[0, 0] != segments[0, 31]


def test_perspective_normals_integrate_to_log_depth():
    size, focal = 96, 96 * 1.866
    x, y = image_plane(size)
    u, v = x * size / 2, y * size / 2
    normal = np.array([0.3, 0.2, math.sqrt(1 - 0.13)])
    depth = 4.5 * normal[2] / (normal[2] - (normal[0] * u + normal[1] * v) / focal)
    normals = perspective_normals(np.broadcast_to(normal, (size, size, 3)), focal)
    height, _ = integrate_normals(normals, np.ones((size, size), bool))
    ratio = np.exp(-height / focal) / depth
    np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=2e-3)


def test_projection_puts_row_0_at_the_top():
    cameras = PUBLISHED.cameras
    matrix = cameras.world_to_clip[0].numpy()
    points = np.array([[0, 0, 0], [0, 0.5, 0], [0.5, 0, 0]], np.float32)
    (row, column) = project(points, matrix, 64)
    assert row[0] == pytest.approx(31.5, abs=1e-3) and column[0] == pytest.approx(31.5, abs=1e-3)
    assert row[1] < row[0] and column[2] > column[0]


def test_silhouette_distance_is_positive_inside_and_counts_pixels():
    mask = np.zeros((9, 9), np.float32)
    mask[2:7, 2:7] = 1
    distance = silhouette_distance(mask)
    assert distance[4, 4] == 2.5 and distance[4, 2] == 0.5 and distance[4, 0] == -1.5


def test_hull_contains_the_object_and_fits_its_outline():
    box = trimesh.creation.box([1.0, 2.0, 0.6])
    target = Target.of(bundle_of(box))
    distances = [silhouette_distance(a[..., 0].numpy()) for a in target.alpha]
    grid = hull_grid(distances, target.cameras, 64)
    depth = visual_hull(grid, distances, target.cameras)
    inside = (np.abs(grid.points) < np.array([0.46, 0.95, 0.26])).all(-1)
    outside = (np.abs(grid.points) > np.array([0.75, 1.2, 0.5])).any(-1)
    assert (depth[inside] > 0).all() and (depth[outside] < 0).all()
    extent = np.array(grid.shape) * grid.spacing
    assert (extent > [1.0, 2.0, 0.6]).all() and (extent < [1.9, 2.9, 1.6]).all()


def test_surface_of_a_ball_is_closed_outward_and_in_place():
    grid = Grid.covering(np.full(3, -1.0, "f4"), np.full(3, 1.0, "f4"), 40)
    center = np.array([0.2, 0.0, -0.1], np.float32)
    values = 0.5 - np.linalg.norm(grid.points - center, axis=-1)
    vertices, faces = surface(values, grid)
    assert is_closed_manifold(faces, len(vertices))
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.125, rel=0.03)
    np.testing.assert_allclose(mesh.center_mass, center, atol=0.01)


def test_a_volume_cut_by_its_border_is_closed_all_the_same():
    grid = Grid.covering(np.full(3, -1.0, "f4"), np.full(3, 1.0, "f4"), 12)
    vertices, faces = surface(np.ones(grid.shape, np.float32), grid)
    assert is_closed_manifold(faces, len(vertices))


def test_a_surface_through_corners_of_its_grid_is_closed():
    random = np.random.default_rng(0)
    grid = Grid.covering(np.full(3, -1.0, "f4"), np.full(3, 1.0, "f4"), 6)
    for _ in range(20):
        # Exact zeros at some corners and small steps at others.
        values = random.choice(np.array([-0.5, -0.01, 0.0, 0.01, 0.5], np.float32), grid.shape)
        _, faces = surface(values, grid)
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        _, counts = np.unique(edges, axis=0, return_counts=True)
        assert (counts % 2 == 0).all()


def test_carving_finds_what_no_silhouette_shows():
    target = Target.of(bundle_of(niche()))
    depth_of_middle = {}
    for name in ("hull", "carve"):
        start = make_start(name, target)
        assert start.name == name
        assert is_closed_manifold(start.faces, len(start.vertices))
        near_axis = np.abs(start.vertices[:, :2]).max(1) < 0.08
        depth_of_middle[name] = start.vertices[near_axis, 2].max()
    # The front face stands at 0.8, the niche's back at 0.3.
    assert depth_of_middle["hull"] > 0.8
    assert depth_of_middle["carve"] < 0.65


def test_steep_views_only_lend_their_silhouettes():
    layout = BundleLayout(azimuths=(0, 90, 180, 270, 0), elevations=(5, 5, 5, 5, 89))
    start = make_start("carve", Target.of(bundle_of(bowl(), layout=layout)))
    assert start.name == "carve"
    assert np.abs(start.vertices).max() == pytest.approx(1.0, abs=0.1)
    steep = BundleLayout(azimuths=(0, 90, 180, 270), elevations=(60, 60, 60, 60))
    over = make_start("carve", Target.of(bundle_of(bowl(), layout=steep)))
    hull = make_start("hull", Target.of(bundle_of(bowl(), layout=steep)))
    np.testing.assert_array_equal(over.vertices, hull.vertices)


def test_views_that_contradict_each_other_fall_back_to_a_sphere():
    target = Target.of(bundle_of(trimesh.creation.box([0.5, 0.5, 0.5])))
    alpha = torch.zeros_like(target.alpha)
    for view, rows in enumerate((slice(4, 30), slice(60, 90), slice(4, 30), slice(60, 90))):
        alpha[view, rows, 40:56] = 1
    torn = replace(target, alpha=alpha)
    start = make_start("carve", torn)
    assert start.name == "sphere" and is_closed_manifold(start.faces, len(start.vertices))


def test_carving_keeps_thin_parts_whose_depth_is_misjudged():
    legs = [(x, z) for x in (-0.8, 0.8) for z in (-0.8, 0.8)]
    parts = [trimesh.creation.box([1.8, 0.1, 1.8]).apply_translation([0, 0.9, 0])]
    parts += [trimesh.creation.box([0.08, 1.8, 0.08]).apply_translation([x, 0, z]) for x, z in legs]
    target = Target.of(bundle_of(trimesh.util.concatenate(parts)))
    start = make_start("carve", target)
    assert start.name == "carve"
    low = start.vertices[start.vertices[:, 1] < -0.5]
    for x, z in legs:
        assert np.abs(low[:, [0, 2]] - [x, z]).max(1).min() < 0.1, (x, z)
