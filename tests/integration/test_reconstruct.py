"""Exact bundles of a chair, a vehicle and a figure become closed, textured meshes that match."""

import math

import numpy as np
import pytest
import torch
import trimesh
from trimesh.transformations import rotation_matrix, translation_matrix

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.reconstruct import reconstruct
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.export import save_mesh
from kiss3d_infer.scene.load import load_mesh
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.render import ALBEDO, render_bundle, render_views

RED, BLUE, BROWN, DARK = (0.8, 0.1, 0.1), (0.2, 0.4, 0.8), (0.6, 0.4, 0.2), (0.15, 0.15, 0.15)
GREEN, SKIN, YELLOW = (0.2, 0.6, 0.3), (0.9, 0.7, 0.55), (0.95, 0.85, 0.2)


def box(extents, center, color):
    return trimesh.creation.box(extents, translation_matrix(center)), color


def wheel(center):
    mesh = trimesh.creation.cylinder(0.26, 0.2, sections=32)
    mesh.apply_transform(rotation_matrix(math.pi / 2, [0, 1, 0]))
    mesh.apply_translation(center)
    return mesh, DARK


def ball(scale, center, color):
    mesh = trimesh.creation.icosphere(3)
    mesh.apply_scale(scale)
    mesh.apply_translation(center)
    return mesh, color


def limb(start, end, radius, color):
    mesh = trimesh.creation.capsule(math.dist(start, end), radius, count=[24, 24])
    turn = trimesh.geometry.align_vectors([0, 0, 1], np.subtract(end, start))
    mesh.apply_transform(translation_matrix(start) @ turn)
    return mesh, color


def chair():
    legs = [box([0.12, 0.9, 0.12], [x, -0.45, z], DARK) for x in (-0.42, 0.42) for z in (-0.4, 0.4)]
    seat = box([1, 0.12, 1], [0, 0, 0], BROWN)
    return [seat, box([1, 1.1, 0.12], [0, 0.55, -0.44], BLUE), *legs]


def vehicle():
    wheels = [wheel([x, -0.2, z]) for x in (-0.45, 0.45) for z in (-0.6, 0.62)]
    lamps = box([0.8, 0.12, 0.04], [0, 0.05, 1.0], YELLOW)
    cabin = box([0.76, 0.36, 1.0], [0, 0.36, -0.1], BLUE)
    return [box([0.9, 0.4, 2.0], [0, 0, 0], RED), cabin, lamps, *wheels]


def figure():
    head = ball([0.28] * 3, [0, 0.85, 0], SKIN)
    body = ball([0.34, 0.45, 0.26], [0, 0.25, 0], GREEN)
    legs = [limb([x, -0.1, 0], [x, -0.8, 0], 0.12, BLUE) for x in (-0.17, 0.17)]
    arms = [limb([s * 0.3, 0.45, 0], [s * 0.7, 0.1, 0.1], 0.09, SKIN) for s in (-1, 1)]
    return [head, body, *legs, *arms]


def mesh_of(parts):
    meshes = [
        Mesh(
            torch.tensor(part.vertices, dtype=torch.float32),
            torch.tensor(part.faces, dtype=torch.int32),
            materials=(Material("paint", color),),
        )
        for part, color in parts
    ]
    return Mesh.concatenated(meshes).normalized()


@pytest.mark.parametrize("build", [chair, vehicle, figure])
def test_an_exact_bundle_becomes_a_mesh_that_matches_it(build, tmp_path):
    truth = mesh_of(build())
    bundle = render_bundle(truth, PUBLISHED, 256, lighting=ALBEDO)
    result = reconstruct(bundle)

    measured = result.measurements
    assert measured["silhouette_iou"] >= 0.95
    assert measured["normal_error"] <= 12
    assert measured["color_psnr"] >= 26
    assert measured["watertight"] == 1
    assert measured["num_faces"] <= 20_000

    path = tmp_path / "asset.glb"
    save_mesh(result.mesh, path)
    loaded = load_mesh(path)
    assert loaded.uv is not None and loaded.materials[0].texture is not None
    assert is_watertight(path)
    assert not has_black_patch(loaded)
    # What is seen from the front, right, back and left is what the bundle showed there.
    again = render_bundle(loaded, PUBLISHED, 256, lighting=ALBEDO)
    assert (again.rgb - bundle.rgb).abs().mean(dim=(1, 2, 3)).max() < 0.02
    extent = loaded.vertices.abs().amax(0) - truth.vertices.abs().amax(0)
    assert extent.abs().max() < 0.06


def is_watertight(path):
    mesh = trimesh.load(path, force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return mesh.is_watertight and mesh.volume > 0


def has_black_patch(mesh):
    """Whether any side, unseen ones included, shows colours darker than the paint."""
    cameras = Cameras((45, 135, 225, 315, 0, 0), (30, 30, -30, -30, 80, -80))
    views = render_views(mesh, cameras, 128, lighting=ALBEDO)
    inside = views.alpha[:, 0] > 0.99
    darkest = views.rgb.amax(1)[inside].min()
    return bool(darkest < min(DARK) - 0.07)
