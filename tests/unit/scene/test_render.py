"""Pictures of meshes against what the convention and optics say they must show."""

import math

import pytest
import torch
import trimesh
from torch import Tensor

from kiss3d_infer.bundle.image import Bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.bundle.validate import validate
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.render import ALBEDO, Views, draw, render_bundle, render_views

FRONT = Cameras(azimuths=(0,), elevations=(0,))


def from_trimesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(
        torch.tensor(shape.vertices, dtype=torch.float32),
        torch.tensor(shape.faces, dtype=torch.int32),
    )


def sphere(subdivisions: int = 5) -> Mesh:
    return from_trimesh(trimesh.creation.icosphere(subdivisions=subdivisions))


def quad(z: float = 0.0, half: float = 0.5, **parts: object) -> Mesh:
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * half
    corners[:, 2] = z
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32), **parts)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sphere_bundle() -> Bundle:
    return render_bundle(sphere())


@pytest.mark.parametrize(
    "published", [(243, 129, 182), (12, 129, 182), (130, 243, 181), (130, 8, 172), (121, 123, 255)]
)
def test_a_sphere_has_the_colours_of_the_published_template(
    sphere_bundle: Bundle, published: tuple[int, int, int]
) -> None:
    """Each published colour says by its own normal where on the sphere it was picked."""
    r, g, b = (value / 255 * 2 - 1 for value in published)
    scale = 256 * FRONT.focal / (4.5 - b)
    column, row = round(255.5 - r * scale), round(255.5 - g * scale)
    for colors in sphere_bundle.normal_colors:
        drawn = colors[:, row, column] * 255
        torch.testing.assert_close(drawn, torch.tensor(published).float(), atol=5, rtol=0)


def test_a_sphere_has_the_published_size(sphere_bundle: Bundle) -> None:
    outline = sphere_bundle.normal_colors.lt(1).any(1)  # [V, T, T]
    expected = 256 * FRONT.focal / math.sqrt(4.5**2 - 1)
    assert expected == pytest.approx(217.8, abs=0.1)
    for tile in outline:
        assert tile.any(0).sum() / 2 == pytest.approx(expected, abs=1.0)
        assert tile.any(1).sum() / 2 == pytest.approx(expected, abs=1.0)


def test_a_spheres_normals_are_its_points(sphere_bundle: Bundle) -> None:
    cameras = Cameras(azimuths=(30,), elevations=(-20,))
    size = 128
    views = render_views(sphere(), cameras, size, supersampling=1)
    hit = views.alpha[0, 0] > 0
    row, column = hit.nonzero().T
    x, y = (2 * column + 1) / size - 1, 1 - (2 * row + 1) / size
    depth = views.depth[0, 0][hit]
    camera_points = torch.stack(
        [x * depth / cameras.focal, y * depth / cameras.focal, cameras.distance - depth], dim=1
    )
    points = torch.nn.functional.normalize(camera_points @ cameras.rotations[0].T, dim=1)
    inner = (camera_points[:, :2].norm(dim=1) < 0.9).nonzero().flatten()
    cosine = (views.normals[0][:, hit].T * points).sum(1)[inner]
    assert cosine.clamp(max=1).acos().rad2deg().max() < 0.3


def test_views_turn_around_the_object() -> None:
    """A ball on the subject's left (+X) is on the right of the front view and central at 90."""
    ball = sphere(3)
    ball = Mesh(ball.vertices * 0.2 + torch.tensor([0.8, 0, 0]), ball.faces)
    cameras = Cameras(azimuths=(0, 90, 180, 270), elevations=(0,) * 4)
    alpha = render_views(ball, cameras, 64).alpha[:, 0]
    columns = torch.arange(64.0) - 31.5
    centres = [(view.sum(0) * columns).sum() / view.sum() for view in alpha]
    assert centres[0] > 15 and centres[2] < -15
    assert abs(centres[1]) < 0.5 and abs(centres[3]) < 0.5
    assert alpha[1].sum() > alpha[3].sum()  # nearer at azimuth 90


def test_albedo_shows_a_texture_upright() -> None:
    texture = torch.zeros(2, 2, 3)
    texture[0, 0], texture[0, 1] = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    texture[1, 0], texture[1, 1] = torch.tensor([0.0, 0, 1]), torch.tensor([0.5, 0.5, 0.5])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    mesh = quad(
        uv=uv,
        materials=(
            Material("picture", texture=texture.repeat_interleave(4, 0).repeat_interleave(4, 1)),
        ),
    )
    rgb = render_views(mesh, FRONT, 64, lighting=ALBEDO).rgb[0]
    half = 32 * FRONT.focal / 4.5 * 0.5
    quarter = round(half / 2)
    for up, right, expected in (
        (1, -1, texture[0, 0]),
        (1, 1, texture[0, 1]),
        (-1, -1, texture[1, 0]),
        (-1, 1, texture[1, 1]),
    ):
        color = rgb[:, 32 - up * quarter, 32 + right * quarter]
        torch.testing.assert_close(color, expected, atol=0.03, rtol=0)
    assert rgb[:, 0, 0].tolist() == [1, 1, 1]


def test_material_and_vertex_colours_multiply_in_linear_light() -> None:
    mesh = quad(
        vertex_colors=torch.full((4, 3), 0.5), materials=(Material("half", (0.5, 1.0, 0.0)),)
    )
    center = render_views(mesh, FRONT, 16, lighting=ALBEDO).rgb[0, :, 8, 8]
    linear = ((0.5 + 0.055) / 1.055) ** 2.4
    product = 1.055 * (linear * linear) ** (1 / 2.4) - 0.055
    torch.testing.assert_close(center, torch.tensor([product, 0.5, 0.0]), atol=1e-4, rtol=0)


def test_each_face_takes_its_own_material() -> None:
    red, green = Material("red", (1.0, 0.0, 0.0)), Material("green", (0.0, 1.0, 0.0))
    index = torch.tensor([0, 1], dtype=torch.int32)
    mesh = quad(material_index=index, materials=(red, green))
    rgb = render_views(mesh, FRONT, 32, lighting=ALBEDO).rgb[0]
    torch.testing.assert_close(rgb[:, 17, 19], torch.tensor([1.0, 0, 0]))  # lower right
    torch.testing.assert_close(rgb[:, 13, 15], torch.tensor([0.0, 1, 0]))


def test_studio_light_shades_what_albedo_leaves_alone() -> None:
    ball = sphere(3)
    lit, plain = (render_views(ball, FRONT, 64, **o) for o in ({}, {"lighting": ALBEDO}))  # type: ignore[arg-type]
    assert (plain.rgb[0, 0][plain.alpha[0, 0] == 1] - 0.8).abs().max() < 1e-3
    shade = lit.rgb[0, 0]
    assert shade[20, 24] > shade[44, 40] + 0.05  # lit from the upper left
    assert shade[32, 32] == pytest.approx(0.73, abs=0.02)  # 0.81 of its light, in sRGB


def test_both_sides_of_a_sheet_are_lit_and_face_the_viewer() -> None:
    cameras = Cameras(azimuths=(0, 180), elevations=(0, 0))
    views = render_views(quad(), cameras, 32)
    torch.testing.assert_close(views.rgb[0], views.rgb[1], atol=1e-3, rtol=0)
    assert views.normals[0, 2, 16, 16] == pytest.approx(1)
    assert views.normals[1, 2, 16, 16] == pytest.approx(-1)


def test_coverage_is_the_area_and_the_background_is_white() -> None:
    views = render_views(quad(half=0.5), FRONT, 50, supersampling=4)
    side = 25 * FRONT.focal / 4.5 * 0.5 * 2
    assert views.alpha.sum() == pytest.approx(side**2, rel=0.03)
    assert set((views.alpha * 16).round().unique().tolist()) - {0.0, 16.0}  # soft edges
    outside = views.alpha[0, 0] == 0
    assert views.rgb[0][:, outside].eq(1).all() and views.normals[0][:, outside].eq(0).all()
    assert views.depth[0, 0, 25, 25] == pytest.approx(4.5, abs=1e-3)
    assert views.depth[0, 0][outside].eq(0).all()


def test_normals_are_unit_wherever_something_is_seen() -> None:
    views = render_views(from_trimesh(trimesh.creation.box()), Cameras((35,), (20,)), 64)
    length = views.normals.norm(dim=1)[views.alpha[:, 0] > 0]
    torch.testing.assert_close(length, torch.ones_like(length))


def test_a_box_is_drawn_with_flat_sides(sphere_bundle: Bundle) -> None:
    """The published reading of a wall that faces the front camera: (128, 116, 255)."""
    bundle = render_bundle(from_trimesh(trimesh.creation.box([2, 2, 2])), tile=64)
    wall = bundle.normal_colors[0, :, 40, 32] * 255
    torch.testing.assert_close(wall, torch.tensor([128.0, 116, 255]), atol=1, rtol=0)


def test_pictures_are_identical_on_every_run() -> None:
    mesh = sphere(4)
    colors = torch.rand(mesh.vertices.shape, generator=torch.Generator().manual_seed(0))
    mesh = Mesh(mesh.vertices, mesh.faces, vertex_colors=colors)
    cameras = Cameras((0, 90, 180, 270), (5,) * 4)

    def bits(views: Views) -> list[Tensor]:
        return [views.rgb, views.normals, views.alpha, views.depth]

    first = bits(render_views(mesh, cameras, 64))
    for _ in range(2):
        again = bits(render_views(mesh, cameras, 64))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_drawing_gives_the_bundle_that_its_whole_pictures_give() -> None:
    layout = BundleLayout(azimuths=(20, 200, 300), elevations=(0, 10, -5))
    drawing = draw(from_trimesh(trimesh.creation.torus(0.7, 0.2)), layout.cameras, 48)
    views = drawing.views()
    opaque = (views.rgb - (1 - views.alpha)) / views.alpha.clamp(min=1e-3)
    whole = Bundle.from_views(opaque, views.normals, views.alpha, layout)
    torch.testing.assert_close(drawing.bundle(layout).image, whole.image)


def test_the_brightest_and_the_facing_surface_are_lit_as_documented() -> None:
    white = (Material("white", (1.0, 1.0, 1.0)),)
    ball = sphere()
    views = render_views(Mesh(ball.vertices, ball.faces, materials=white), FRONT, 256)
    light = to_linear(views.rgb[0, 0])  # a ball shows every direction that a viewer can see
    assert 0.92 < light[views.alpha[0, 0] == 1].max() <= 0.93
    assert light[128, 128] == pytest.approx(0.81, abs=0.01)


def test_a_white_pyramid_stands_out_in_every_view() -> None:
    cone = from_trimesh(trimesh.creation.cone(1.0, 1.4, sections=4))
    upright = cone.vertices[:, [1, 2, 0]]
    white = Mesh(upright, cone.faces, materials=(Material("white", (1.0, 1.0, 1.0)),))
    report = validate(render_bundle(white.normalized(), tile=64))
    assert report.ok, report.problems
    assert report.measurements["empty_tiles"] == 0


def test_a_white_object_stands_out_from_the_white_background() -> None:
    ball = from_trimesh(trimesh.creation.icosphere(4))
    white = Mesh(ball.vertices, ball.faces, materials=(Material("white", (1.0, 1.0, 1.0)),))
    bundle = render_bundle(white, tile=64)
    inside = bundle.normal_colors.sub(1).norm(dim=1) > 0.5
    assert bundle.rgb.amax(1)[inside].max() < 0.975
    assert validate(bundle).ok
