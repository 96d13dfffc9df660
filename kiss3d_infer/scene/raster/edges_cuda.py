"""The edge walk of `edges` as CUDA kernels (Triton, which comes with PyTorch's CUDA builds).

One program walks a block of pixel pairs at once, where plain torch needs some forty launches for
every face on the way. Values and gradients are the reference's, up to the order of float sums.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiss3d_infer.scene.raster import Fragments
from kiss3d_infer.scene.raster.edges import (
    MAX_WALK,
    START_SLACK,
    WALK_SLACK,
    opposite_edges,
    to_screen,
)

_BLOCK = 128


def antialias(image: Tensor, fragments: Fragments) -> Tensor:
    """See `Rasterizer.antialias`."""
    screen = to_screen(fragments.clip, (image.shape[1], image.shape[2]))
    faces = fragments.faces
    opposite = _opposite_edges(faces, screen.shape[1])
    crossings = find_crossings(fragments.face, fragments.depth, screen.detach(), faces, opposite)
    out: Tensor = _Blend.apply(image, screen, faces, crossings)  # type: ignore[no-untyped-call]
    return out


@lru_cache(maxsize=1)
def _opposite_edges(faces: Tensor, num_vertices: int) -> Tensor:
    """Kept for the next picture of the same mesh: tensors are told apart by identity."""
    return opposite_edges(faces, num_vertices)


def find_crossings(
    face: Tensor, depth: Tensor, screen: Tensor, faces: Tensor, opposite: Tensor
) -> Tensor:
    """As `edges.find_crossings`."""
    views, height, width = face.shape
    crossings = torch.empty(views, height, width, 2, dtype=torch.int32, device=face.device)
    count = crossings.numel()
    _walk[(triton.cdiv(count, _BLOCK),)](
        face.contiguous(),
        depth.contiguous(),
        screen.contiguous(),
        faces,
        opposite,
        crossings,
        count,
        height,
        width,
        screen.shape[1],
        MAX_WALK=MAX_WALK,
        START_SLACK=START_SLACK,
        WALK_SLACK=WALK_SLACK,
        BLOCK=_BLOCK,
    )
    return crossings


class _Blend(torch.autograd.Function):
    """`edges.blend` with its gradients to the image and to the screen positions."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, screen: Tensor, faces: Tensor, crossings: Tensor
    ) -> Tensor:
        image, screen = image.contiguous(), screen.contiguous()
        out = image.clone()
        _launch(_blend, image, screen, faces, crossings, out)
        ctx.save_for_backward(image, screen, faces, crossings)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        image, screen, faces, crossings = ctx.saved_tensors
        grad = grad.contiguous()
        grad_image, grad_screen = grad.clone(), torch.zeros_like(screen)
        _launch(_blend_backward, image, screen, faces, crossings, grad, grad_image, grad_screen)
        return grad_image, grad_screen, None, None


def _launch(
    kernel: Any, image: Tensor, screen: Tensor, faces: Tensor, crossings: Tensor, *out: Tensor
) -> None:
    _, height, width, channels = image.shape
    count = crossings.numel()
    kernel[(triton.cdiv(count, _BLOCK),)](
        image,
        screen,
        faces,
        crossings,
        *out,
        count,
        height,
        width,
        screen.shape[1],
        CHANNELS=channels,
        BLOCK=_BLOCK,
    )


@triton.jit
def _place(p, height, width):  # type: ignore[no-untyped-def]
    """A pair's first pixel, its view, row, column and axis."""
    pixel = p // 2
    return pixel, pixel // (width * height), (pixel // width) % height, pixel % width, p % 2


@triton.jit
def _point(screen_ptr, vertex, view, num_vertices, x, y, mask):  # type: ignore[no-untyped-def]
    """A vertex on the screen, relative to (x, y)."""
    at = (view.to(tl.int64) * num_vertices + vertex) * 2
    px = tl.load(screen_ptr + at, mask=mask, other=0.0)
    py = tl.load(screen_ptr + at + 1, mask=mask, other=0.0)
    return px.to(tl.float64) - x, py.to(tl.float64) - y


@triton.jit
def _distance(ax, ay, bx, by, axis):  # type: ignore[no-untyped-def]
    """Where the segment a-b meets the axis through the origin, and whether it does."""
    a_along, a_across = tl.where(axis == 0, ax, ay), tl.where(axis == 0, ay, ax)
    b_along, b_across = tl.where(axis == 0, bx, by), tl.where(axis == 0, by, bx)
    straddles = (a_across < 0) != (b_across < 0)
    height = tl.where(straddles, b_across - a_across, 1.0)
    return (a_along * b_across - b_along * a_across) / height, straddles


@triton.jit(do_not_specialize=["count", "num_vertices"])
def _walk(  # type: ignore[no-untyped-def]
    face_ptr,
    depth_ptr,
    screen_ptr,
    faces_ptr,
    opposite_ptr,
    out_ptr,
    count,
    height,
    width,
    num_vertices,
    MAX_WALK: tl.constexpr,
    START_SLACK: tl.constexpr,
    WALK_SLACK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixel, view, row, column, axis = _place(p, height, width)
    exists = (p < count) & (row + axis < height) & (column + 1 - axis < width)
    following = pixel + tl.where(axis == 0, 1, width)
    here = tl.load(face_ptr + pixel, mask=exists, other=0)
    there = tl.load(face_ptr + following, mask=exists, other=0)
    is_nearer = tl.load(depth_ptr + pixel, mask=exists, other=0.0) <= tl.load(
        depth_ptr + following, mask=exists, other=0.0
    )
    is_first = (there == 0) | ((here > 0) & is_nearer)
    current = tl.where(is_first, here, there) - 1
    outside = tl.where(is_first, there, here) - 1
    x = tl.where(is_first, column, column + 1 - axis).to(tl.float64) + 0.5
    y = tl.where(is_first, row, row + axis).to(tl.float64) + 0.5
    sign = tl.where(is_first, 1, -1)
    active = exists & (here != there)
    entered = tl.full((BLOCK,), -1, tl.int32)
    travelled = tl.full((BLOCK,), -START_SLACK, tl.float64)
    found = tl.zeros((BLOCK,), tl.int32)
    step = 0
    while (step < MAX_WALK) & (tl.max(active.to(tl.int32), 0) > 0):
        corner = current * 3
        i = tl.load(faces_ptr + corner, mask=active, other=0)
        j = tl.load(faces_ptr + corner + 1, mask=active, other=0)
        k = tl.load(faces_ptr + corner + 2, mask=active, other=0)
        ix, iy = _point(screen_ptr, i, view, num_vertices, x, y, active)
        jx, jy = _point(screen_ptr, j, view, num_vertices, x, y, active)
        kx, ky = _point(screen_ptr, k, view, num_vertices, x, y, active)
        d0, cuts0 = _distance(jx, jy, kx, ky, axis)
        d1, cuts1 = _distance(kx, ky, ix, iy, axis)
        d2, cuts2 = _distance(ix, iy, jx, jy, axis)
        d0, d1, d2 = d0 * sign, d1 * sign, d2 * sign
        none = float("-inf")
        d0 = tl.where(cuts0 & (entered != 0) & (d0 >= travelled), d0, none)
        d1 = tl.where(cuts1 & (entered != 1) & (d1 >= travelled), d1, none)
        d2 = tl.where(cuts2 & (entered != 2) & (d2 >= travelled), d2, none)
        distance = tl.maximum(tl.maximum(d0, d1), d2)
        edge = tl.where(d0 == distance, 0, tl.where(d1 == distance, 1, 2))
        ax, ay = (
            tl.where(edge == 0, jx, tl.where(edge == 1, kx, ix)),
            tl.where(edge == 0, jy, tl.where(edge == 1, ky, iy)),
        )
        bx, by = (
            tl.where(edge == 0, kx, tl.where(edge == 1, ix, jx)),
            tl.where(edge == 0, ky, tl.where(edge == 1, iy, jy)),
        )
        ox, oy = (
            tl.where(edge == 0, ix, tl.where(edge == 1, jx, kx)),
            tl.where(edge == 0, iy, tl.where(edge == 1, jy, ky)),
        )
        across = tl.load(opposite_ptr + corner + edge, mask=active, other=-1)
        beyond = tl.load(faces_ptr + tl.maximum(across, 0), mask=active, other=0)
        qx, qy = _point(screen_ptr, beyond, view, num_vertices, x, y, active)
        dx, dy = bx - ax, by - ay
        sides = (dx * (oy - ay) - dy * (ox - ax)) * (dx * (qy - ay) - dy * (qx - ax))
        is_silhouette = (across < 0) | (sides >= 0)
        is_steep = tl.where(axis == 0, tl.abs(dy) >= tl.abs(dx), tl.abs(dx) > tl.abs(dy))
        is_reached = (distance > none) & (distance <= 1)
        hit = active & is_reached & is_silhouette & is_steep
        found = tl.where(hit, sign * (1 + corner + edge), found)
        active = active & is_reached & (across >= 0) & (sides < 0) & (across // 3 != outside)
        current = tl.where(active, across // 3, current)
        entered = tl.where(active, across % 3, entered)
        travelled = tl.where(active, distance - WALK_SLACK, travelled)
        step += 1
    tl.store(out_ptr + p, found, mask=p < count)


@triton.jit
def _crossing_of(  # type: ignore[no-untyped-def]
    screen_ptr, faces_ptr, crossings_ptr, count, height, width, num_vertices, BLOCK: tl.constexpr
):
    """What a block of pairs has between them: everything that blending needs."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(crossings_ptr + p, mask=p < count, other=0)
    mask = code != 0
    pixel, view, row, column, axis = _place(p, height, width)
    following = pixel + tl.where(axis == 0, 1, width)
    is_first = code > 0
    inside, outside = tl.where(is_first, pixel, following), tl.where(is_first, following, pixel)
    x = tl.where(is_first, column, column + 1 - axis).to(tl.float64) + 0.5
    y = tl.where(is_first, row, row + axis).to(tl.float64) + 0.5
    edge = tl.maximum(tl.abs(code) - 1, 0)
    corner, k = edge - edge % 3, edge % 3
    a = tl.load(faces_ptr + corner + (k + 1) % 3, mask=mask, other=0)
    b = tl.load(faces_ptr + corner + (k + 2) % 3, mask=mask, other=0)
    ax, ay = _point(screen_ptr, a, view, num_vertices, x, y, mask)
    bx, by = _point(screen_ptr, b, view, num_vertices, x, y, mask)
    distance, _ = _distance(ax, ay, bx, by, axis)
    sign = tl.where(is_first, 1, -1)
    excess = (distance * sign - 0.5).to(tl.float32)
    target = tl.where(excess > 0, outside, inside)
    return mask, view, axis, sign, a, b, ax, ay, bx, by, inside, outside, target, excess


@triton.jit(do_not_specialize=["count", "num_vertices"])
def _blend(  # type: ignore[no-untyped-def]
    image_ptr,
    screen_ptr,
    faces_ptr,
    crossings_ptr,
    out_ptr,
    count,
    height,
    width,
    num_vertices,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    mask, _, _, _, _, _, _, _, _, _, inside, outside, target, excess = _crossing_of(
        screen_ptr, faces_ptr, crossings_ptr, count, height, width, num_vertices, BLOCK
    )
    for c in tl.static_range(CHANNELS):
        near = tl.load(image_ptr + inside * CHANNELS + c, mask=mask, other=0.0)
        far = tl.load(image_ptr + outside * CHANNELS + c, mask=mask, other=0.0)
        tl.atomic_add(out_ptr + target * CHANNELS + c, excess * (near - far), mask=mask)


@triton.jit(do_not_specialize=["count", "num_vertices"])
def _blend_backward(  # type: ignore[no-untyped-def]
    image_ptr,
    screen_ptr,
    faces_ptr,
    crossings_ptr,
    grad_ptr,
    grad_image_ptr,
    grad_screen_ptr,
    count,
    height,
    width,
    num_vertices,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    mask, view, axis, sign, a, b, ax, ay, bx, by, inside, outside, target, excess = _crossing_of(
        screen_ptr, faces_ptr, crossings_ptr, count, height, width, num_vertices, BLOCK
    )
    grad_excess = tl.zeros((BLOCK,), tl.float32)
    for c in tl.static_range(CHANNELS):
        near = tl.load(image_ptr + inside * CHANNELS + c, mask=mask, other=0.0)
        far = tl.load(image_ptr + outside * CHANNELS + c, mask=mask, other=0.0)
        grad = tl.load(grad_ptr + target * CHANNELS + c, mask=mask, other=0.0)
        grad_excess += grad * (near - far)
        tl.atomic_add(grad_image_ptr + inside * CHANNELS + c, excess * grad, mask=mask)
        tl.atomic_add(grad_image_ptr + outside * CHANNELS + c, -excess * grad, mask=mask)
    # d = sign (A b - B a) / (b - a), with A, B along the axis and a, b across it.
    a_along, a_across = tl.where(axis == 0, ax, ay), tl.where(axis == 0, ay, ax)
    b_along, b_across = tl.where(axis == 0, bx, by), tl.where(axis == 0, by, bx)
    height_across = tl.where(b_across == a_across, 1.0, b_across - a_across)
    scale = grad_excess.to(tl.float64) * sign / height_across
    slope = (a_along - b_along) / height_across
    grad_a_along, grad_b_along = scale * b_across, -scale * a_across
    grad_a_across, grad_b_across = scale * b_across * slope, -scale * a_across * slope
    at_a = (view.to(tl.int64) * num_vertices + a) * 2
    at_b = (view.to(tl.int64) * num_vertices + b) * 2
    tl.atomic_add(grad_screen_ptr + at_a + axis, grad_a_along.to(tl.float32), mask=mask)
    tl.atomic_add(grad_screen_ptr + at_a + 1 - axis, grad_a_across.to(tl.float32), mask=mask)
    tl.atomic_add(grad_screen_ptr + at_b + axis, grad_b_along.to(tl.float32), mask=mask)
    tl.atomic_add(grad_screen_ptr + at_b + 1 - axis, grad_b_across.to(tl.float32), mask=mask)
