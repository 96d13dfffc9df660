"""Distances between two surfaces, from points on both."""

import numpy as np
from scipy.spatial import cKDTree

from kiss3d_infer.evaluate.points import SurfacePoints
from kiss3d_infer.reconstruct.topology import Float64

_F_SCORE_THRESHOLDS = (0.02, 0.05, 0.1, 0.2)
"""World units; 0.1 is Kiss3DGen's (arXiv 2503.01370, section 4.3)."""


def point_metrics(made: SurfacePoints, truth: SurfacePoints) -> dict[str, float]:
    """Chamfer distances, F-scores and normal consistency.

    Each point is matched with the nearest of the other set; "there" is from made to truth.

    Returns:
        `chamfer_mean`: the mean of the two mean distances; `chamfer_sum`: their sum;
        `chamfer_squared`: the sum of the two mean squared distances.
        `precision/<t>`: share of made points nearer than t to the truth; `recall/<t>`: share of
        true points nearer than t to what was made; `f_score/<t>`: their harmonic mean (Knapitsch
        et al. 2017, "Tanks and Temples", section 4).
        `normal_consistency`: mean absolute cosine between matched normals, both ways averaged.
    """
    there, back = _matched(made, truth), _matched(truth, made)
    distances = there[0].mean(), back[0].mean()
    result = {
        "chamfer_mean": sum(distances) / 2,
        "chamfer_sum": sum(distances),
        "chamfer_squared": (there[0] ** 2).mean() + (back[0] ** 2).mean(),
        "normal_consistency": (there[1].mean() + back[1].mean()) / 2,
    }
    for threshold in _F_SCORE_THRESHOLDS:
        precision, recall = (there[0] < threshold).mean(), (back[0] < threshold).mean()
        result[f"precision/{threshold}"] = precision
        result[f"recall/{threshold}"] = recall
        result[f"f_score/{threshold}"] = 2 * precision * recall / max(precision + recall, 1e-12)
    return {name: float(value) for name, value in result.items()}


def chamfer_mean(made: Float64, truth: cKDTree) -> float:
    """The mean of the two mean nearest distances, of points [P, 3] and a tree of points."""
    there = truth.query(made)[0].mean()
    back = cKDTree(made).query(truth.data)[0].mean()
    return float(there + back) / 2


def _matched(points: SurfacePoints, others: SurfacePoints) -> tuple[Float64, Float64]:
    """Distance to the nearest of the others, and the absolute cosine between the normals, [P]."""
    distance, nearest = cKDTree(others.positions).query(points.positions)
    return distance, np.abs((points.normals * others.normals[nearest]).sum(1))
