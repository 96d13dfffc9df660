"""The CPU rasterizer's compiled kernels: one view each, on numpy arrays, free of the GIL.

Shapes: clip [N, 4], screen [N, 3] = (x right, y down in pixels, z/w), faces [F, 3], face [H, W],
depth [H, W], images [H, W, C]. Storage is int32 and float32; arithmetic is float64 by Python's
float literals, which makes the coverage tests exact in practice, so that no pixel falls between two
faces.

Kept free of `np.argsort` and `parallel=True`: either adds more than 10 s of compilation.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

_MIN_W = 1e-8
_WIDE = 8
"""Pixels from which it pays to find out where a face's row begins and ends."""

# No "nnan" and "ninf": vertices behind the camera are marked with NaN.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


def kernel(function: F) -> F:
    """Compile a function, caching the result on disk."""
    return cast(F, numba.njit(cache=True, nogil=True, fastmath=_FAST)(function))


def exact(function: F) -> F:
    """As `kernel`, with every rounding as it is written down."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


@kernel
def project(clip: Floats, height: int, width: int, screen: Floats) -> None:
    """Clip space to pixels; NaN behind the camera."""
    for i in range(clip.shape[0]):
        w = clip[i, 3]
        if w > _MIN_W:
            screen[i, 0] = (clip[i, 0] / w + 1.0) * 0.5 * width
            screen[i, 1] = (1.0 - clip[i, 1] / w) * 0.5 * height
            screen[i, 2] = clip[i, 2] / w
        else:
            screen[i, :] = np.nan


@kernel
def _clipped(first: int, end: int, start: float, slope: float, row: float) -> tuple[int, int]:
    """Without pixels of a row for which row - slope * (x + 0.5 - start) is clearly negative."""
    if slope > 0.0:
        end = int(min(np.float64(end), math.ceil(start + row / slope)))
    elif slope < 0.0:
        first = int(max(np.float64(first), math.floor(start + row / slope) - 1.0))
    return first, end


@kernel
def rasterize(screen: Floats, faces: Ints, face: Ints, depth: Floats) -> None:
    """Nearest face + 1 and its depth at every pixel; 0 and 1 where there is none."""
    height, width = face.shape
    face[:] = 0
    depth[:] = 1.0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = np.float64(screen[a, 0]), np.float64(screen[a, 1]), screen[a, 2]
        bx, by, bz = np.float64(screen[b, 0]), np.float64(screen[b, 1]), screen[b, 2]
        cx, cy, cz = np.float64(screen[c, 0]), np.float64(screen[c, 1]), screen[c, 2]
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        if area < 0.0:  # turn the face around, so that inside is positive
            area, bx, by, bz, cx, cy, cz = -area, cx, cy, cz, bx, by, bz
        if not area > 0.0:  # degenerate, or NaN: behind the camera
            continue
        left = int(max(0.0, math.ceil(min(ax, bx, cx) - 0.5)))
        right = int(min(width - 1.0, math.floor(max(ax, bx, cx) - 0.5)))
        top = int(max(0.0, math.ceil(min(ay, by, cy) - 0.5)))
        bottom = int(min(height - 1.0, math.floor(max(ay, by, cy) - 0.5)))
        per_area = 1.0 / area
        is_wide = right - left >= _WIDE
        first, end = left, right
        for y in range(top, bottom + 1):
            py = y + 0.5
            row_a, row_b, row_c = (
                (cx - bx) * (py - by),
                (ax - cx) * (py - cy),
                (bx - ax) * (py - ay),
            )
            if is_wide:
                first, end = _clipped(left, right, bx, cy - by, row_a)
                first, end = _clipped(first, end, cx, ay - cy, row_b)
                first, end = _clipped(first, end, ax, by - ay, row_c)
            for x in range(first, end + 1):
                px = x + 0.5
                in_a = row_a - (cy - by) * (px - bx)
                in_b = row_b - (ay - cy) * (px - cx)
                in_c = row_c - (by - ay) * (px - ax)
                if in_a >= 0.0 and in_b >= 0.0 and in_c >= 0.0:
                    z = np.float32((in_a * az + in_b * bz + in_c * cz) * per_area)
                    if -1.0 <= z < depth[y, x]:
                        depth[y, x] = z
                        face[y, x] = f + 1


@kernel
def _homogeneous(
    clip: Floats, faces: Ints, f: int, x: float, y: float
) -> tuple[float, float, float, float, float, float]:
    """Corners (X_i - x W_i, Y_i - y W_i) of face f relative to the pixel at (x, y) in [-1, 1].

    Their cross products are proportional to the perspective-correct barycentric coordinates.
    """
    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
    ax, ay = clip[a, 0] - x * clip[a, 3], clip[a, 1] - y * clip[a, 3]
    bx, by = clip[b, 0] - x * clip[b, 3], clip[b, 1] - y * clip[b, 3]
    cx, cy = clip[c, 0] - x * clip[c, 3], clip[c, 1] - y * clip[c, 3]
    return ax, ay, bx, by, cx, cy


@kernel
def interpolate(attributes: Floats, clip: Floats, faces: Ints, face: Ints, out: Floats) -> None:
    """Perspective-correct interpolation of attributes [N, C] into out [H, W, C]."""
    height, width = face.shape
    for i in range(height):
        y = 1.0 - (2 * i + 1) / height
        for j in range(width):
            f = face[i, j] - 1
            if f < 0:
                out[i, j, :] = 0.0
                continue
            x = (2 * j + 1) / width - 1.0
            ax, ay, bx, by, cx, cy = _homogeneous(clip, faces, f, x, y)
            u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
            scale = 1.0 / (u + v + w)
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            for k in range(attributes.shape[1]):
                total = u * attributes[a, k] + v * attributes[b, k] + w * attributes[c, k]
                out[i, j, k] = total * scale


@kernel
def interpolate_shown(
    attributes: Floats, clip: Floats, faces: Ints, face: Ints, where: Longs, out: Floats
) -> None:
    """The flat indices of the P pixels that show a face, and `interpolate` there into out [P, C].

    Calling a function for the part that both have in common would take twice the time.
    """
    height, width = face.shape
    p = 0
    for i in range(height):
        y = 1.0 - (2 * i + 1) / height
        for j in range(width):
            f = face[i, j] - 1
            if f < 0:
                continue
            x = (2 * j + 1) / width - 1.0
            ax, ay, bx, by, cx, cy = _homogeneous(clip, faces, f, x, y)
            u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
            scale = 1.0 / (u + v + w)
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            for k in range(attributes.shape[1]):
                total = u * attributes[a, k] + v * attributes[b, k] + w * attributes[c, k]
                out[p, k] = total * scale
            where[p] = i * width + j
            p += 1


@kernel
def interpolate_backward(
    grad: Floats,
    attributes: Floats,
    clip: Floats,
    faces: Ints,
    face: Ints,
    grad_attributes: Floats,
    grad_clip: Floats,
    wants_clip: bool,
) -> None:
    """Add the gradients of `interpolate`."""
    height, width = face.shape
    for i in range(height):
        y = 1.0 - (2 * i + 1) / height
        for j in range(width):
            f = face[i, j] - 1
            if f < 0:
                continue
            x = (2 * j + 1) / width - 1.0
            ax, ay, bx, by, cx, cy = _homogeneous(clip, faces, f, x, y)
            u, v, w = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
            scale = 1.0 / (u + v + w)
            u, v, w = u * scale, v * scale, w * scale
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            grad_u = grad_v = grad_w = 0.0
            for k in range(attributes.shape[1]):
                g = grad[i, j, k]
                grad_attributes[a, k] += g * u
                grad_attributes[b, k] += g * v
                grad_attributes[c, k] += g * w
                grad_u += g * attributes[a, k]
                grad_v += g * attributes[b, k]
                grad_w += g * attributes[c, k]
            if wants_clip:
                mean = grad_u * u + grad_v * v + grad_w * w  # the coordinates sum to 1
                gu, gv, gw = (
                    (grad_u - mean) * scale,
                    (grad_v - mean) * scale,
                    (grad_w - mean) * scale,
                )
                _add_position(grad_clip, a, gw * by - gv * cy, gv * cx - gw * bx, x, y)
                _add_position(grad_clip, b, gu * cy - gw * ay, gw * ax - gu * cx, x, y)
                _add_position(grad_clip, c, gv * ay - gu * by, gu * bx - gv * ax, x, y)


@kernel
def _add_position(grad_clip: Floats, i: int, gx: float, gy: float, x: float, y: float) -> None:
    grad_clip[i, 0] += gx
    grad_clip[i, 1] += gy
    grad_clip[i, 3] -= x * gx + y * gy


@kernel
def project_backward(
    grad_screen: Floats, clip: Floats, height: int, width: int, grad_clip: Floats
) -> None:
    """Carry gradients of `project` from pixels [N, 2] to clip space [N, 4]."""
    for i in range(clip.shape[0]):
        gx, gy = grad_screen[i, 0] * 0.5 * width, -grad_screen[i, 1] * 0.5 * height
        if gx != 0.0 or gy != 0.0:
            w = clip[i, 3]
            grad_clip[i, 0] = gx / w
            grad_clip[i, 1] = gy / w
            grad_clip[i, 3] = -(gx * clip[i, 0] + gy * clip[i, 1]) / (w * w)


@kernel
def summed_face_normals(vertices: Floats, faces: Ints, normals: Floats) -> None:
    """Sum over each vertex's faces of (b - a) x (c - a), in the order of the faces."""
    normals[:] = 0.0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz, wx, wy, wz = _two_sides(vertices, a, b, c)
        x, y, z = uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx
        for i in (a, b, c):
            normals[i, 0] += x
            normals[i, 1] += y
            normals[i, 2] += z


@kernel
def _two_sides(
    vertices: Floats, a: int, b: int, c: int
) -> tuple[float, float, float, float, float, float]:
    return (
        vertices[b, 0] - vertices[a, 0],
        vertices[b, 1] - vertices[a, 1],
        vertices[b, 2] - vertices[a, 2],
        vertices[c, 0] - vertices[a, 0],
        vertices[c, 1] - vertices[a, 1],
        vertices[c, 2] - vertices[a, 2],
    )


@kernel
def summed_face_normals_backward(
    grad: Floats, vertices: Floats, faces: Ints, grad_vertices: Floats
) -> None:
    """Add the gradient of `summed_face_normals`."""
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        gx = grad[a, 0] + grad[b, 0] + grad[c, 0]
        gy = grad[a, 1] + grad[b, 1] + grad[c, 1]
        gz = grad[a, 2] + grad[b, 2] + grad[c, 2]
        ux, uy, uz, wx, wy, wz = _two_sides(vertices, a, b, c)
        # For n = u x w: dL/du = w x g and dL/dw = g x u.
        bx, by, bz = wy * gz - wz * gy, wz * gx - wx * gz, wx * gy - wy * gx
        cx, cy, cz = gy * uz - gz * uy, gz * ux - gx * uz, gx * uy - gy * ux
        grad_vertices[b, 0] += bx
        grad_vertices[b, 1] += by
        grad_vertices[b, 2] += bz
        grad_vertices[c, 0] += cx
        grad_vertices[c, 1] += cy
        grad_vertices[c, 2] += cz
        grad_vertices[a, 0] -= bx + cx
        grad_vertices[a, 1] -= by + cy
        grad_vertices[a, 2] -= bz + cz


@kernel
def find_pixels(where: Longs, size: int, supersampling: int, row: Longs, shown: Longs) -> int:
    """The Q pixels that samples [P] belong to, by flat indices; returns Q.

    Args:
        where: [P] flat indices, ascending.
        size: pixels per row.
        supersampling: samples per pixel and axis.
        row: [P] receives which of the Q pixels each sample belongs to.
        shown: [P] receives the pixels' flat indices first.
    """
    per_row = size * supersampling
    # A row of pixels ends before the next one begins, so that a place per column is enough.
    place, used_for = np.empty(size, np.int64), np.full(size, -1, np.int64)
    column_of = np.arange(per_row) // supersampling  # divisions would take most of the time
    count, line, begin = 0, 0, 0
    for p in range(len(where)):
        while where[p] >= begin + per_row * supersampling:
            begin += per_row * supersampling
            line += 1
        within = where[p] - begin
        while within >= per_row:
            within -= per_row
        column = column_of[within]
        if used_for[column] != line:
            used_for[column], place[column] = line, count
            shown[count] = line * size + column
            count += 1
        row[p] = place[column]
    return count


@kernel
def add(samples: Floats, row: Longs, pixels: Floats) -> None:
    """Add samples [P, C] to rows of pixels [Q, C], one after the other."""
    for p in range(len(row)):
        for k in range(samples.shape[1]):
            pixels[row[p], k] += samples[p, k]


@kernel
def raise_to(samples: Floats, row: Longs, pixels: Floats) -> None:
    """Raise rows of pixels [Q, C] to the samples [P, C], where these are greater."""
    for p in range(len(row)):
        for k in range(samples.shape[1]):
            pixels[row[p], k] = max(pixels[row[p], k], samples[p, k])


@exact
def sample(texels: Floats, places: Longs, index: Longs, uv: Floats, out: Floats) -> None:
    """`surface.Textures.sample` of texels [T, C] into out [P, C]."""
    half, one = np.float32(0.5), np.float32(1.0)
    for p in range(len(index)):
        start, height, width = places[index[p], 0], places[index[p], 1], places[index[p], 2]
        u, v = uv[p, 0] - np.floor(uv[p, 0]), uv[p, 1] - np.floor(uv[p, 1])
        x, y = u * np.float32(width) - half, (one - v) * np.float32(height) - half
        left, top = np.floor(x), np.floor(y)
        x, y = x - left, y - top
        column, row = _wrapped(int(left), width), _wrapped(int(top), height)
        upper = start + row * width
        lower = start + (row + 1 if row + 1 < height else 0) * width
        right = column + 1 if column + 1 < width else 0
        for k in range(texels.shape[1]):
            out[p, k] = _lerp(
                _lerp(texels[upper + column, k], texels[upper + right, k], x),
                _lerp(texels[lower + column, k], texels[lower + right, k], x),
                y,
            )


@exact
def _wrapped(place: int, count: int) -> int:
    """The place from 0 to count - 1 that it repeats; what NaN becomes lies far outside."""
    return place if 0 <= place < count else place % count


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _lerp(a: np.float32, b: np.float32, share: np.float32) -> np.float32:
    """As torch.lerp, bit for bit."""
    if share < np.float32(0.5):
        return a + share * (b - a)
    return b + (share - np.float32(1.0)) * (b - a)
