"""Shading is taken out of views whose true colours are known."""

from dataclasses import replace

import pytest
import torch
import trimesh

from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.reconstruct.albedo import without_shading
from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import ALBEDO, Lighting, render_bundle
from kiss3d_train.data.sources.toybox import make

TILE = 96
OBJECTS = (0, 1, 2, 4, 5, 7, 8, 12, 18, 23, 49, 52)
"""Chair, car, robot, mug, airplane, fir tree, sofa, teapot, teddy bear, mushroom, tent, ball."""


def views(mesh, **lighting):
    """The target of a mesh under the project's light, or another."""
    return Target.of(render_bundle(mesh, PUBLISHED, TILE, **lighting))


def error(shown, true):
    """Root mean square of the linear colours' difference, up to one factor for all views."""
    solid = true.alpha[..., 0] > 0.95
    ours, theirs = to_linear(shown.rgb[solid]), to_linear(true.rgb[solid])
    scale = (ours * theirs).sum() / ours.square().sum()
    return float((scale * ours - theirs).square().mean().sqrt())


@pytest.fixture(scope="module")
def toys():
    """(shaded, true) targets of toybox objects."""
    meshes = [make(index).mesh().normalized() for index in OBJECTS]
    return [(views(mesh), views(mesh, lighting=ALBEDO)) for mesh in meshes]


def test_toys_come_much_nearer_to_their_own_colours(toys):
    before = [error(shaded, true) for shaded, true in toys]
    after = [error(without_shading(shaded), true) for shaded, true in toys]
    assert all(a < b for a, b in zip(after, before, strict=True))
    assert sum(after) < 0.3 * sum(before)


def test_views_without_shading_stay_as_they_are(toys):
    for _, true in toys:
        assert error(without_shading(true), true) < 0.002


def test_hues_stay(toys):
    for shaded, _ in toys:
        solid = shaded.alpha[..., 0] > 0.95
        before = to_linear(shaded.rgb[solid])
        after = to_linear(without_shading(shaded).rgb[solid])
        hues = [colors / colors.sum(1, keepdim=True).clamp(min=1e-4) for colors in (before, after)]
        torch.testing.assert_close(hues[1], hues[0], atol=2e-5, rtol=0)


def test_a_white_ball_keeps_its_brightness_where_it_faces_the_viewer():
    ball = trimesh.creation.icosphere(4)
    mesh = Mesh(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).int())
    shaded, true = views(mesh), views(mesh, lighting=ALBEDO)
    middle = (slice(None), TILE // 2, TILE // 2)
    shown = without_shading(shaded).rgb
    assert (shown[middle] - shaded.rgb[middle]).abs().max() < 0.03
    solid = true.alpha[..., 0] > 0.95
    assert shown[solid].std() < 0.15 * shaded.rgb[solid].std()


def test_light_that_stands_in_the_world_is_found_too():
    mesh = make(4).mesh().normalized()
    true = views(mesh, lighting=ALBEDO)
    rgb = []
    for view, rotation in enumerate(true.cameras.rotations):
        key, fill = (
            tuple((rotation.T @ torch.tensor(direction)).tolist())
            for direction in ([-0.4, 0.8, 0.45], [0.7, 0.2, -0.5])
        )
        lighting = Lighting(key_direction=key, fill_direction=fill)
        rgb.append(views(mesh, lighting=lighting).rgb[view])
    shaded = replace(true, rgb=torch.stack(rgb))
    assert error(without_shading(shaded), true) < 0.4 * error(shaded, true)


def test_colours_beyond_the_object_continue_it():
    mesh = make(4).mesh().normalized()
    shown = without_shading(views(mesh))
    beyond = shown.alpha[..., 0] == 0
    assert beyond.any()
    inside = shown.rgb[~beyond]
    assert (shown.rgb[beyond] <= inside.amax(0)).all() and (
        shown.rgb[beyond] >= inside.amin(0)
    ).all()


def test_black_views_come_back_unchanged():
    ball = trimesh.creation.icosphere(3)
    mesh = Mesh(torch.tensor(ball.vertices).float(), torch.tensor(ball.faces).int())
    black = replace(mesh, vertex_colors=torch.zeros_like(mesh.vertices))
    shaded = views(black)
    torch.testing.assert_close(without_shading(shaded).rgb, shaded.rgb)
