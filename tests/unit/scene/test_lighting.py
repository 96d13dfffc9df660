"""Lamps, environments and gloss against what optics says."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.color import to_linear
from kiss3d_infer.scene.environment import (
    Environment,
    irradiance,
    pixel_directions,
    project,
    read_environment,
    spherical_harmonics,
)
from kiss3d_infer.scene.gloss import Gloss
from kiss3d_infer.scene.lighting import (
    BRIGHTEST,
    Light,
    Shown,
    directions_all_around,
    random_lights,
)
from kiss3d_infer.scene.mesh import Material, Mesh
from kiss3d_infer.scene.render import render_views


def _ball(material: Material) -> Mesh:
    ball = trimesh.creation.icosphere(subdivisions=4)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32)
    return Mesh(vertices, torch.tensor(ball.faces, dtype=torch.int32), materials=(material,))


def _sky(height: int = 64) -> Tensor:
    """A blue sky over a brown ground, with a small sun."""
    directions, _ = pixel_directions(height)
    up = directions[..., 1:2]
    blue, brown = torch.tensor([0.5, 0.7, 1.0]), torch.tensor([0.25, 0.2, 0.15])
    sun = directions @ normalize(torch.tensor([0.6, 0.6, 0.5]), dim=0) > 0.99
    return torch.where(up > 0, blue * (0.5 + up), brown) + sun[..., None] * 40.0


def _summed(picture: Tensor, normals: Tensor) -> Tensor:
    """Irradiance by summing over every pixel: [P, 3]."""
    directions, area = (values.flatten(0, 1) for values in pixel_directions(len(picture)))
    cosine = (normals @ directions.T).clamp(min=0)
    return cosine @ (picture.flatten(0, 1) * area)


def test_the_pixels_of_a_map_cover_the_sphere() -> None:
    directions, area = pixel_directions(32)
    assert area.sum().item() == pytest.approx(4 * math.pi, rel=1e-5)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(32, 64))
    torch.testing.assert_close(
        directions[16, 31:33].mean(0), torch.tensor([0.0, -0.05, 1.0]), atol=0.01, rtol=0
    )
    assert directions[16, 48, 0] < -0.99 and directions[0, 0, 1] > 0.99


def test_harmonics_are_orthonormal() -> None:
    directions, area = pixel_directions(64)
    values = spherical_harmonics(directions)
    products = torch.einsum("hwi,hwj->ij", values * area, values)
    torch.testing.assert_close(products, torch.eye(9), atol=2e-3, rtol=0)


def test_irradiance_by_harmonics_is_that_of_summing_all_light() -> None:
    normals = directions_all_around(200)
    smooth = 1 + 0.5 * spherical_harmonics(pixel_directions(64)[0])[..., [1, 5, 8]]
    found, expected = irradiance(project(smooth), normals), _summed(smooth, normals)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    # Nine coefficients hold a sun only roughly.
    found, expected = irradiance(project(_sky()), normals), _summed(_sky(), normals)
    assert (found - expected).abs().mean() < 0.05 * expected.mean()
    assert (found - expected).abs().max() < 0.05 * expected.max()


def test_light_from_an_environment_comes_from_where_the_map_shows_it() -> None:
    picture = torch.zeros(32, 64, 3)
    picture[:, 40:56] = 1  # right of the middle: toward -X, seen from the object
    white = _ball(Material("white"))
    for azimuth, bright in ((0.0, 3), (90.0, 0), (180.0, 1)):
        light = Environment.of(picture).turned(azimuth)
        cameras = Cameras((0.0, 90.0, 180.0, 270.0), (0.0,) * 4)
        views = render_views(white, cameras, 16, lighting=light, supersampling=1).rgb
        assert views[:, 0, 8, 8].argmax() == bright


@pytest.mark.parametrize(
    "light", [random_lights(0, "a"), random_lights(7, "b"), Environment.of(_sky())]
)
def test_a_white_object_is_neither_lost_in_the_background_nor_in_the_dark(light: Light) -> None:
    cameras = Cameras((0.0, 90.0, 180.0, 270.0, 0.0, 0.0), (5.0, 5.0, 5.0, 5.0, 89.0, -89.0))
    for material in (Material("matt"), Material("lacquer", roughness=0.2)):
        views = render_views(_ball(material), cameras, 48, lighting=light)
        inside = (views.alpha == 1).expand_as(views.rgb)
        linear = to_linear(views.rgb[inside])
        assert linear.max() <= BRIGHTEST + 1e-3
        assert linear.max() > 0.9 * BRIGHTEST
        assert linear.min() > 0.2 * BRIGHTEST


def test_lamps_are_a_function_of_seed_and_key_alone() -> None:
    assert random_lights(3, "chair") == random_lights(3, "chair")
    different = {random_lights(seed, key) for seed, key in ((3, "chair"), (4, "chair"), (3, "cup"))}
    assert len(different) == 3


def _facing_points(count: int, metallic: float, roughness: float) -> tuple[Tensor, Gloss]:
    """Points that look up, seen from ever lower."""
    normals = torch.tensor([[0.0, 0, 1]]).repeat(count, 1)
    angle = torch.linspace(0, 1.4, count)
    viewer = torch.stack([angle.sin(), torch.zeros(count), angle.cos()], dim=1)
    values = torch.full((count, 1), metallic), torch.full((count, 1), roughness)
    return normals, Gloss(*values, viewer)


@pytest.mark.parametrize("roughness", [0.3, 0.6, 1.0])
def test_a_highlight_over_all_lights_is_the_share_reflected_from_around(roughness: float) -> None:
    """White metal never reflects more than it gets; the fit comes within 0.16 of the sum."""
    normals, gloss = _facing_points(8, 1.0, roughness)
    white = torch.ones(8, 3)
    lights = directions_all_around(4000)
    lights = lights[lights[:, 2] > 0]
    total = torch.zeros(8, 3)
    for light in lights:
        total += gloss.highlight(white, normals, light) * light[2] / math.pi
    total *= 2 * math.pi / len(lights)
    assert (total < 1.02).all()
    share = gloss.reflected_from_around(white, normals)
    torch.testing.assert_close(total, share, atol=0.16, rtol=0)


def test_matt_paint_looks_the_same_with_and_without_gloss() -> None:
    normals, gloss = _facing_points(8, 0.0, 1.0)
    view, rotations = torch.zeros(8, dtype=torch.int64), torch.eye(3)[None]
    albedo = torch.full((8, 3), 0.4)
    light = random_lights(0, "a")
    plain = light.shade(Shown(albedo, normals, view, rotations))
    glossy = light.shade(Shown(albedo, normals, view, rotations, gloss))
    assert (plain - glossy).abs().max() < 0.06


def test_a_mirror_shows_the_environment() -> None:
    """A polished ball at azimuth 0 shows in its centre what lies behind the viewer: the front."""
    picture = torch.full((32, 64, 3), 0.1)
    picture[12:20, 28:36] = torch.tensor([1.0, 0.0, 0.0])
    metal = _ball(Material("metal", metallic=1.0, roughness=0.1))
    view = render_views(metal, Cameras((0.0,), (0.0,)), 33, lighting=Environment.of(picture))
    red = view.rgb[0, 0] - view.rgb[0, 2]
    assert red[16, 16] > 0.3 and red[16, 6] < 0.1 and red[6, 16] < 0.1


def _write_hdr(path: Path, pixels: Tensor, packed: bool) -> None:
    mantissa, exponent = np.frexp(pixels.amax(-1).numpy())
    scale = mantissa * 256 / pixels.amax(-1).numpy()
    rgbe = np.concatenate(
        [(pixels.numpy() * scale[..., None]).astype(np.uint8), (exponent + 128)[..., None]], axis=-1
    ).astype(np.uint8)
    height, width, _ = rgbe.shape
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    body = b""
    for row in rgbe:
        if not packed:
            body += row.tobytes()
            continue
        body += bytes((2, 2, width >> 8, width & 255))
        for channel in row.T:  # a run where a value repeats, else literal bytes
            half = width // 2
            if len(set(channel.tolist())) == 1:
                body += bytes((128 + half, channel[0], 128 + half, channel[0]))
            else:
                body += bytes((half, *channel[:half], half, *channel[half:]))
    path.write_bytes(header + body)


@pytest.mark.parametrize("packed", [True, False])
def test_a_radiance_map_is_read(tmp_path: Path, packed: bool) -> None:
    picture = torch.rand(8, 16, 3, generator=torch.Generator().manual_seed(1)) + 0.2
    picture[2], picture[5] = 30.0, 0.05
    _write_hdr(tmp_path / "map.hdr", picture, packed)
    found = read_environment(tmp_path / "map.hdr")
    expected = Environment.of(picture)
    torch.testing.assert_close(found.harmonics, expected.harmonics, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "cut.hdr",
            b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 16\n\x02\x02\x00\x10\x01",
            "damaged",
        ),
        ("other.hdr", b"GIF89a", "not a Radiance picture"),
        ("huge.hdr", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n", "too many"),
        ("noise.png", b"noise", "cannot be read"),
        ("none.hdr", None, "cannot be read"),
    ],
)
def test_a_damaged_map_is_refused(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_environment(tmp_path / name)


def test_a_square_or_black_map_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "square.png")
    Image.new("RGB", (16, 8), "black").save(tmp_path / "black.png")
    with pytest.raises(InputError, match="no equirectangular map"):
        read_environment(tmp_path / "square.png")
    with pytest.raises(InputError, match="black"):
        read_environment(tmp_path / "black.png")
