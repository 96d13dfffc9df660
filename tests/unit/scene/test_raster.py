"""The CPU rasterizer against the torch reference, finite differences and closed forms."""

import math

import pytest
import torch
import trimesh
from torch import Tensor

from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.raster import Fragments, rasterizer_for, vertex_normals
from kiss3d_infer.scene.raster.cpu import CpuRasterizer, averaged, interpolated_where_shown
from kiss3d_infer.scene.raster.edges import opposite_edges
from kiss3d_infer.scene.raster.reference import TorchRasterizer, summed_face_normals

CPU = CpuRasterizer()
REFERENCE = TorchRasterizer()
CAMERAS = Cameras(azimuths=(0, 90, 215), elevations=(5, -10, 40))
SIZE = (40, 56)  # (height, width): not square, so that swapped axes show


def faces_of(*rows: tuple[int, int, int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def two_shapes() -> tuple[Tensor, Tensor]:
    """A knot-like torus in front of a rough sphere: folds, occlusions and borders."""
    torus = trimesh.creation.torus(0.7, 0.25, major_sections=14, minor_sections=8)
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=0.6)
    sphere.apply_translation([0.3, 0.2, -0.4])
    sphere.update_faces(sphere.triangles_center[:, 1] < 0.5)  # an opening: border edges
    both = trimesh.util.concatenate([torus, sphere])
    generator = torch.Generator().manual_seed(0)
    vertices = torch.tensor(both.vertices, dtype=torch.float32)
    vertices += 0.01 * torch.randn(vertices.shape, generator=generator)
    return vertices, torch.tensor(both.faces, dtype=torch.int32)


def square(z: float = 0.0) -> tuple[Tensor, Tensor]:
    corners = torch.tensor([[-1.0, -1, z], [1, -1, z], [1, 1, z], [-1, 1, z]])
    return corners, faces_of((0, 1, 2), (0, 2, 3))


def flat_clip(points: Tensor) -> Tensor:
    """[N, 3] points that already are normalized device coordinates -> [1, N, 4]."""
    return torch.cat([points, torch.ones_like(points[:, :1])], dim=1).unsqueeze(0)


def test_cpu_sees_what_the_reference_sees() -> None:
    vertices, faces = two_shapes()
    clip = CAMERAS.clip(vertices)
    ours, theirs = (r.rasterize(clip, faces, SIZE) for r in (CPU, REFERENCE))
    assert (ours.face > 0).float().mean() > 0.1
    assert (ours.face != theirs.face).float().mean() < 1e-3
    torch.testing.assert_close(ours.depth, theirs.depth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("operation", ["interpolate", "antialias"])
def test_cpu_values_and_gradients_match_the_reference(operation: str) -> None:
    vertices, faces = two_shapes()
    generator = torch.Generator().manual_seed(1)
    attributes = torch.randn(len(vertices), 5, generator=generator)
    image = torch.rand(len(CAMERAS), *SIZE, 5, generator=generator)
    weight = torch.randn(image.shape, generator=generator)

    results = []
    for rasterizer in (CPU, REFERENCE):
        clip = CAMERAS.clip(vertices).requires_grad_()
        source = (attributes if operation == "interpolate" else image).clone().requires_grad_()
        fragments = CPU.rasterize(clip, faces, SIZE)  # one coverage, so that only the op differs
        out = getattr(rasterizer, operation)(source, fragments)
        (out * weight).sum().backward()
        results.append((out.detach(), source.grad, clip.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours is not None and theirs is not None and theirs.abs().max() > 0
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=2e-5 * scale, rtol=1e-3)


def test_reference_gradients_match_finite_differences() -> None:
    vertices, faces = two_shapes()
    clip = CAMERAS.clip(vertices).double()
    weight = torch.randn(len(CAMERAS), *SIZE, 2, dtype=torch.float64)
    fragments = CPU.rasterize(clip, faces, SIZE)

    def loss(attributes: Tensor, clip: Tensor) -> Tensor:
        moved = Fragments(fragments.face, fragments.depth, clip, faces)
        interpolated = REFERENCE.interpolate(attributes, moved)
        return (REFERENCE.antialias(interpolated, moved) * weight).sum()

    attributes = torch.randn(len(vertices), 2, dtype=torch.float64, requires_grad=True)
    clip.requires_grad_()
    loss(attributes, clip).backward()
    for tensor in (attributes, clip):
        direction = torch.randn_like(tensor)
        direction[..., 2:3] = 0 if tensor is clip else direction[..., 2:3]  # depth orders, no more
        with torch.no_grad():
            step = 1e-7 * direction
            others = [attributes, clip]
            ahead, behind = (
                loss(*(t + sign * step if t is tensor else t for t in others)) for sign in (1, -1)
            )
        assert tensor.grad is not None
        expected = (ahead - behind) / 2e-7
        assert (tensor.grad * direction).sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_silhouette_gradient_survives_pixel_sized_triangles() -> None:
    """d(area) / d(scale) of a sphere's outline against its closed form."""
    sphere = trimesh.creation.icosphere(subdivisions=6)
    vertices = torch.tensor(sphere.vertices, dtype=torch.float32)
    faces = torch.tensor(sphere.faces, dtype=torch.int32)
    cameras = Cameras(azimuths=(0,), elevations=(5,))
    size = 256
    scale = torch.ones((), requires_grad=True)
    fragments = CPU.rasterize(cameras.clip(vertices * scale), faces, (size, size))
    area = CPU.antialias(fragments.alpha, fragments).sum()
    area.backward()  # type: ignore[no-untyped-call]

    def true_area(radius: float) -> float:  # tangent cone: r = f R / sqrt(d^2 - R^2)
        outline = cameras.focal * radius / math.sqrt(cameras.distance**2 - radius**2)
        return math.pi * (outline * size / 2) ** 2

    assert area.item() == pytest.approx(true_area(1.0), rel=5e-3)
    assert scale.grad is not None
    truth = (true_area(1.001) - true_area(0.999)) / 0.002
    assert scale.grad.item() == pytest.approx(truth, rel=0.02)


def test_antialiased_area_of_a_moving_edge_is_linear_in_its_position() -> None:
    _, faces = square()
    areas = []
    for x in torch.linspace(0.0, 0.5, 9):
        corners = torch.tensor([[-0.8, -0.77, 0], [x, -0.77, 0], [x, 0.77, 0], [-0.8, 0.77, 0]])
        fragments = CPU.rasterize(flat_clip(corners), faces, (16, 16))
        areas.append(CPU.antialias(fragments.alpha, fragments).sum().item())
    steps = torch.tensor(areas).diff()
    torch.testing.assert_close(
        steps, torch.full_like(steps, 0.0625 * 8 * 0.77 * 16), rtol=0.05, atol=0
    )


def test_antialias_leaves_the_inside_of_a_surface_alone() -> None:
    corners, faces = square()
    fragments = CPU.rasterize(flat_clip(corners), faces, (16, 16))
    image = torch.rand(1, 16, 16, 3)
    assert torch.equal(CPU.antialias(image, fragments), image)


def test_interpolation_is_perspective_correct() -> None:
    near, far = 1.0, 4.0
    points = torch.tensor([[-1.0, -1, -near], [1, -1, -near], [1, 1, -far], [-1, 1, -far]])
    w = -points[:, 2:]
    clip = torch.cat([points[:, :2] * w, torch.zeros_like(w), w], dim=1).unsqueeze(0)
    fragments = CPU.rasterize(clip, faces_of((0, 1, 2), (0, 2, 3)), (64, 64))
    depth = CPU.interpolate(w, fragments)[0, :, 0, 0]
    upward = (64 - torch.arange(64) - 0.5) / 64  # 0 at the bottom of the image
    torch.testing.assert_close(depth, 1 / ((1 - upward) / near + upward / far), rtol=1e-5, atol=0)


def test_the_nearest_surface_wins_in_either_order() -> None:
    near, faces = square(-0.5)
    far, _ = square(0.5)
    for points, nearest in ((torch.cat([near, far]), (1, 2)), (torch.cat([far, near]), (3, 4))):
        both = torch.cat([faces, faces + 4])
        fragments = CPU.rasterize(flat_clip(points), both, (8, 8))
        assert set(fragments.face.unique().tolist()) == set(nearest)
        torch.testing.assert_close(fragments.depth, torch.full((1, 8, 8), -0.5))


def test_row_zero_is_the_top_and_the_background_is_empty() -> None:
    triangle = torch.tensor([[-1.0, 1, 0], [1, 1, 0], [-1, 0, 0]])  # upper left
    fragments = CPU.rasterize(flat_clip(triangle), faces_of((0, 1, 2)), (10, 10))
    assert fragments.face[0, 0, 0] == 1
    assert fragments.face[0, -1].eq(0).all() and fragments.depth[0, -1].eq(1).all()
    interpolated = CPU.interpolate(torch.ones(3, 2), fragments)
    assert torch.equal(interpolated[..., :1], fragments.alpha)


def test_no_pixel_falls_between_faces_that_share_an_edge() -> None:
    """A fan around a point that lies on a pixel centre, its diagonals through pixel centres."""
    size = 33
    angles = torch.arange(16) * (2 * math.pi / 16)
    rim = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.zeros(16)], dim=1)
    points = torch.cat([torch.zeros(1, 3), rim])
    fan = faces_of(*((0, i + 1, (i + 1) % 16 + 1) for i in range(16)))
    fragments = CPU.rasterize(flat_clip(points), fan, (size, size))
    assert (fragments.face > 0).all()


def test_both_sides_of_a_face_are_visible() -> None:
    corners, faces = square()
    assert CPU.rasterize(flat_clip(corners), faces.flip(1), (4, 4)).face.gt(0).all()


@pytest.mark.parametrize("rasterizer", [CPU, REFERENCE], ids=["cpu", "reference"])
def test_faces_behind_the_camera_degenerate_or_not_finite_are_dropped(
    rasterizer: CpuRasterizer | TorchRasterizer,
) -> None:
    corners, _ = square()
    clip = flat_clip(torch.cat([corners, torch.tensor([[0.0, 0, 0], [0, 0, 0]])]))
    clip[0, 4, 3] = -1.0
    clip[0, 5, 0] = torch.nan
    faces = faces_of((0, 1, 4), (0, 1, 5), (0, 0, 1), (0, 2, 2))
    assert rasterizer.rasterize(clip, faces, (8, 8)).face.eq(0).all()


def test_results_are_identical_on_every_run() -> None:
    vertices, faces = two_shapes()

    def run() -> list[Tensor]:
        clip = CAMERAS.clip(vertices).requires_grad_()
        normals = vertex_normals(vertices, faces).requires_grad_()
        fragments = CPU.rasterize(clip, faces, SIZE)
        image = CPU.antialias(CPU.interpolate(normals, fragments), fragments)
        image.square().sum().backward()  # type: ignore[no-untyped-call]
        assert clip.grad is not None and normals.grad is not None
        return [fragments.face, fragments.depth, image.detach(), clip.grad, normals.grad]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_compiled_edge_adjacency_matches_the_reference() -> None:
    vertices, faces = two_shapes()
    messy = faces_of((0, 1, 2), (1, 0, 3), (0, 1, 4), (5, 5, 6), (6, 5, 5), (7, 8, 9), (9, 8, 10))
    for mesh in (faces, messy):
        import numpy as np

        from kiss3d_infer.scene.raster import edge_kernels

        compiled = np.empty(mesh.shape, np.int32)
        edge_kernels.opposite_edges(mesh.numpy(), len(vertices), compiled)
        expected = opposite_edges(mesh, len(vertices))
        assert torch.equal(torch.from_numpy(compiled), expected)
        back = expected.flatten()
        glued = (back >= 0).nonzero().flatten()
        assert torch.equal(back[back[glued].long()].long(), glued)
    assert opposite_edges(messy, 11)[:5].eq(-1).all()  # three faces on edge 01, and no length
    assert opposite_edges(messy, 11)[5, 0] == 3 * 6 + 2


def test_vertex_normals_match_the_reference_with_gradients() -> None:
    vertices, faces = two_shapes()
    weight = torch.randn(vertices.shape, generator=torch.Generator().manual_seed(2))
    gradients = []
    for compute in (
        lambda v: vertex_normals(v, faces),
        lambda v: torch.nn.functional.normalize(summed_face_normals(v, faces), dim=-1, eps=1e-20),
    ):
        leaf = vertices.clone().requires_grad_()
        normals = compute(leaf)
        (normals * weight).sum().backward()
        assert leaf.grad is not None
        gradients.append((normals.detach(), leaf.grad))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-3, rtol=1e-4)


def test_vertex_normals_of_a_sphere_point_outward() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=4)
    vertices = torch.tensor(sphere.vertices, dtype=torch.float32)
    normals = vertex_normals(vertices, torch.tensor(sphere.faces, dtype=torch.int32))
    assert (normals * vertices).sum(-1).min() > 0.999


def test_textures_are_sampled_with_v_up_bilinearly_and_wrap() -> None:
    texture = torch.arange(12.0).reshape(3, 4, 1)
    at_centres = torch.tensor([[0.5 / 4, 2.5 / 3], [3.5 / 4, 0.5 / 3], [-0.5 / 4, 3.5 / 3]])
    sampled = CPU.sample_texture(texture, at_centres)[:, 0]
    torch.testing.assert_close(sampled, torch.tensor([0.0, 11.0, 11.0]))
    halfway = CPU.sample_texture(texture, torch.tensor([[1.0, 2.5 / 3]]))  # columns 3 and 0
    torch.testing.assert_close(halfway, torch.tensor([[1.5]]))


def test_texture_gradients_reach_texels_and_coordinates() -> None:
    texture = torch.rand(4, 5, 2, dtype=torch.float64, requires_grad=True)
    uv = torch.rand(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(CPU.sample_texture, (texture, uv))


def test_the_cpu_gets_the_compiled_rasterizer() -> None:
    assert isinstance(rasterizer_for("cpu"), CpuRasterizer)
    assert rasterizer_for("cpu") is rasterizer_for(torch.device("cpu", 0))


def test_vertex_normals_of_faces_without_area_are_0_with_finite_gradients() -> None:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], requires_grad=True)
    for both_sides in ([[0, 1, 2]], [[0, 1, 2], [0, 2, 1]]):
        normals = vertex_normals(vertices, torch.tensor(both_sides, dtype=torch.int32))
        (gradient,) = torch.autograd.grad(normals.sum(), vertices)
        assert normals.abs().max() == 0 and gradient.isfinite().all()


def test_interpolation_only_where_something_is_shown_gives_the_same() -> None:
    vertices, faces = two_shapes()
    fragments = CPU.rasterize(CAMERAS.clip(vertices)[:1], faces, SIZE)
    where, found = interpolated_where_shown(vertices, fragments)
    assert torch.equal(where, fragments.face.flatten().nonzero().flatten())
    assert torch.equal(found, CPU.interpolate(vertices, fragments).flatten(0, 2)[where])


def test_pixels_are_the_means_of_their_samples_and_of_the_last_value_the_greatest() -> None:
    views, size, factor = 2, 5, 3
    random = torch.Generator().manual_seed(0)
    samples = torch.rand(views, size * factor, size * factor, 4, generator=random)
    samples[torch.rand(samples.shape[:3], generator=random) < 0.8] = 0
    flat = samples.flatten(0, 2)
    where = flat[:, 0].nonzero().flatten()
    shown, pixels = averaged(where, [flat[where, :3], flat[where, 3:]], size, factor)
    blocks = samples.reshape(views, size, factor, size, factor, 4)
    expected = torch.cat([blocks.mean((2, 4))[..., :3], blocks.amax((2, 4))[..., 3:]], dim=-1)
    found = torch.zeros(views * size**2, 4)
    found[shown] = pixels
    assert len(shown.unique()) == len(shown) < len(found)
    torch.testing.assert_close(found, expected.flatten(0, 2))
