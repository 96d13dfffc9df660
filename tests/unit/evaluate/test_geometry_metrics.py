"""Distances between surfaces against what geometry says they are."""

import numpy as np
import pytest
from known_shapes import as_mesh, ball, square

from kiss3d_infer.evaluate.geometry import point_metrics
from kiss3d_infer.evaluate.points import SurfacePoints, sample_points


def points(*positions: tuple[float, ...], normal: tuple[float, ...] = (0, 0, 1)) -> SurfacePoints:
    return SurfacePoints(np.array(positions, float), np.array([normal] * len(positions), float))


def test_three_points_against_two_by_hand():
    made = points((0, 0, 0), (1, 0, 0), (5, 0, 0))
    truth = points((0, 0, 0.04), (1, 0, 0.15))
    measured = point_metrics(made, truth)
    far = np.hypot(4, 0.15)
    there, back = (0.04 + 0.15 + far) / 3, (0.04 + 0.15) / 2
    there_squared, back_squared = (0.0016 + 0.0225 + far**2) / 3, (0.0016 + 0.0225) / 2
    assert measured["chamfer_mean"] == pytest.approx((there + back) / 2)
    assert measured["chamfer_sum"] == pytest.approx(there + back)
    assert measured["chamfer_squared"] == pytest.approx(there_squared + back_squared)
    shares = {
        name: [measured[f"{name}/{t}"] for t in (0.02, 0.05, 0.1, 0.2)]
        for name in ("precision", "recall", "f_score")
    }
    assert shares["precision"] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3])
    assert shares["recall"] == pytest.approx([0, 1 / 2, 1 / 2, 1])
    assert shares["f_score"] == pytest.approx([0, 0.4, 0.4, 0.8])


def test_precision_is_of_what_was_made_and_recall_of_the_truth():
    truth = points((0, 0, 0))
    cluttered = point_metrics(points((0, 0, 0), (9, 0, 0)), truth)
    assert cluttered["precision/0.1"] == 0.5 and cluttered["recall/0.1"] == 1
    incomplete = point_metrics(truth, points((0, 0, 0), (9, 0, 0)))
    assert incomplete["precision/0.1"] == 1 and incomplete["recall/0.1"] == 0.5


def test_normals_count_by_their_angle_whichever_way_they_point():
    first = points((0, 0, 0), normal=(0, 0, 1))
    tilted = points((0, 0, 0), normal=(0, np.sin(np.radians(60)), np.cos(np.radians(60))))
    assert point_metrics(first, tilted)["normal_consistency"] == pytest.approx(0.5)
    opposite = points((0, 0, 0), normal=(0, 0, -1))
    assert point_metrics(first, opposite)["normal_consistency"] == pytest.approx(1)


def test_parallel_squares_are_their_distance_apart():
    made, truth = sample_points(square(0.15)), sample_points(square(0.0), seed=1)
    measured = point_metrics(made, truth)
    assert measured["chamfer_mean"] == pytest.approx(0.15, abs=2e-4)
    assert measured["chamfer_sum"] == pytest.approx(0.3, abs=4e-4)
    assert measured["chamfer_squared"] == pytest.approx(2 * 0.15**2, abs=2e-4)
    assert measured["f_score/0.1"] == 0 and measured["f_score/0.2"] == 1
    assert measured["normal_consistency"] == pytest.approx(1)


def test_a_square_against_its_quarter():
    """From x, y in the unit square, the square [0, 1/2]^2 is as far as beyond 1/2 on each axis."""
    whole, quarter = sample_points(square()), sample_points(square(side=0.5), seed=1)
    measured = point_metrics(quarter, whole)
    assert measured["precision/0.05"] == 1
    assert measured["recall/0.05"] == pytest.approx(
        0.25 + 2 * 0.5 * 0.05 + np.pi * 0.05**2 / 4, abs=0.01
    )
    # The mean square of the excess over 1/2 is 1/24 on each axis.
    assert measured["chamfer_squared"] == pytest.approx(2 / 24, rel=0.03)


def test_concentric_balls_are_as_far_apart_as_their_radii():
    made, truth = sample_points(as_mesh(ball(0.8))), sample_points(as_mesh(ball()), seed=1)
    measured = point_metrics(made, truth)
    assert measured["chamfer_mean"] == pytest.approx(0.2, abs=1e-3)
    assert measured["normal_consistency"] > 0.998


def test_two_samplings_of_one_surface_are_as_far_apart_as_their_points():
    """Poisson points of density n have their nearest neighbour at 1 / (2 sqrt(n)) on average."""
    first, second = (sample_points(square(), seed=seed) for seed in (0, 1))
    floor = 0.5 / np.sqrt(len(first))
    assert point_metrics(first, second)["chamfer_mean"] == pytest.approx(floor, rel=0.05)
