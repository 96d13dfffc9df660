"""Silhouette edges between pixels, in plain torch: where they are, and the blending across them.

A crossing belongs to a pixel and its right (axis 0) or lower (axis 1) neighbour and is stored as
[V, H, W, 2] int32: 0 = none, else +-(1 + 3 f + k), edge k of face f being the one opposite its
corner k, between corners k + 1 and k + 2. Positive: the surface covers the first pixel of the pair;
negative: the second.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kiss3d_infer.scene.raster import Fragments

# Compiled into edge_kernels, whose cache does not notice a change here: change that file as well.
MAX_WALK = 32  # triangles crossed on the way from a pixel's centre to the silhouette edge
WALK_SLACK = 1e-4  # pixels: rounding allowed when comparing distances along the way
START_SLACK = 1 / 16  # pixels: nvdiffrast snaps vertices to such a grid, off a pixel's centre


def antialias(image: Tensor, fragments: Fragments) -> Tensor:
    """See `Rasterizer.antialias`."""
    screen = to_screen(fragments.clip, (image.shape[1], image.shape[2]))
    opposite = opposite_edges(fragments.faces, screen.shape[1])
    crossings = find_crossings(fragments.face, fragments.depth, screen, fragments.faces, opposite)
    return blend(image, screen, fragments.faces, crossings)


def opposite_edges(faces: Tensor, num_vertices: int) -> Tensor:
    """For every edge of every face, the same edge in the face on the other side.

    Args:
        faces: [F, 3] int32.
        num_vertices: N; indices are below it.

    Returns:
        [F, 3] int32: opposite[f, k] = 3 g + j, edge j of face g; -1 at a border, where three or
        more faces meet, and for an edge from a vertex to itself.
    """
    corners = faces.long()
    ends = torch.stack([corners.roll(-1, 1), corners.roll(-2, 1)], dim=-1).reshape(-1, 2)  # [3F, 2]
    low, high = ends.amin(1), ends.amax(1)
    key, order = torch.sort(low * num_vertices + high, stable=True)
    same = key[1:] == key[:-1]
    no = same.new_zeros(1)
    with_next = torch.cat([same, no])
    with_previous = torch.cat([no, same])
    # In a run of exactly two equal keys the first agrees with its next, and that with no further.
    pair = with_next & ~with_previous
    pair[:-1] &= ~with_next[1:]
    pair &= (low != high)[order]
    first = pair.nonzero().flatten()
    opposite = torch.full((corners.numel(),), -1, dtype=torch.int32, device=faces.device)
    e, g = order[first], order[first + 1]
    opposite[e] = g.int()
    opposite[g] = e.int()
    return opposite.reshape(-1, 3)


def to_screen(clip: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Clip space [V, N, 4] -> pixels [V, N, 2], x right and y down; NaN behind the camera."""
    height, width = resolution
    w = torch.where(clip[..., 3] > 1e-8, clip[..., 3], torch.nan)
    x = (clip[..., 0] / w + 1) * (0.5 * width)
    y = (1 - clip[..., 1] / w) * (0.5 * height)
    return torch.stack([x, y], dim=-1)


class _Pairs(NamedTuple):
    """P pixel pairs with a silhouette possibly between them."""

    view: Tensor  # [P]
    row: Tensor  # [P] of the pair's first pixel
    column: Tensor
    axis: Tensor
    sign: Tensor  # [P] int: +1 when the first pixel is on the nearer surface, else -1
    inside: Tensor  # [P] face of the pixel on the nearer surface
    outside: Tensor  # [P] face of the other, -1 = background
    centre: Tensor  # [P, 2] centre (x, y) of the pixel on the nearer surface


@torch.no_grad()
def find_crossings(
    face: Tensor, depth: Tensor, screen: Tensor, faces: Tensor, opposite: Tensor
) -> Tensor:
    """The silhouette edge between every two neighbouring pixels.

    From the centre of the nearer pixel of a pair, walk across faces towards the other pixel, up to
    `MAX_WALK` of them, to the first silhouette edge: a border, or an edge with both its faces on
    one side. Near-vertical edges are taken for horizontal pairs only and the reverse, since each
    would otherwise count twice.

    Args:
        face: [V, H, W] int32.
        depth: [V, H, W].
        screen: [V, N, 2] pixels.
        faces: [F, 3] int32.
        opposite: [F, 3] int32, from `opposite_edges`.

    Returns:
        [V, H, W, 2] int32, see the module's text.
    """
    corners = faces.long()
    pairs = _candidates(face, depth)
    found = torch.zeros_like(pairs.view)
    active = torch.arange(len(found), device=face.device)
    current = pairs.inside
    entered = torch.full_like(current, -1)
    travelled = screen.new_full(current.shape, -START_SLACK)
    for _ in range(MAX_WALK):
        if len(active) == 0:
            break
        here = _Pairs(*(part[active] for part in pairs))
        k, distance = _exit_edge(screen, corners, here, current, entered, travelled)
        across = opposite[current, k].long()
        edge = torch.stack([corners[current, (k + 1) % 3], corners[current, (k + 2) % 3]], dim=1)
        ends = screen[here.view[:, None], edge].double()  # [P, 2, 2]
        is_silhouette = (across < 0) | _folds(screen, corners, here.view, current, k, across, ends)
        is_reached = distance <= 1
        found[active] = torch.where(
            is_reached & is_silhouette & _is_steep(ends, here.axis),
            here.sign * (1 + 3 * current + k),
            0,
        )
        goes_on = (is_reached & ~is_silhouette & (across // 3 != here.outside)).nonzero().flatten()
        active, across = active[goes_on], across[goes_on]
        current, entered, travelled = across // 3, across % 3, distance[goes_on] - WALK_SLACK
    crossings = torch.zeros(*face.shape, 2, dtype=torch.int32, device=face.device)
    crossings[pairs.view, pairs.row, pairs.column, pairs.axis] = found.int()
    return crossings


def blend(image: Tensor, screen: Tensor, faces: Tensor, crossings: Tensor) -> Tensor:
    """Blend each pixel pair by where its crossing lies; plain torch, so autograd differentiates it.

    With d in [0, 1] the distance from the covered pixel's centre to the edge: for d > 1/2 the
    surface covers d - 1/2 of the other pixel, for d < 1/2 it leaves 1/2 - d of its own.

    Args:
        image: [V, H, W, C].
        screen: [V, N, 2] pixels, from `to_screen`.
        faces: [F, 3] int32.
        crossings: [V, H, W, 2] int32.
    """
    view, row, column, axis = crossings.nonzero(as_tuple=True)
    code = crossings[view, row, column, axis].long()
    is_first = code > 0
    next_row, next_column = row + axis, column + 1 - axis
    inside = view, torch.where(is_first, row, next_row), torch.where(is_first, column, next_column)
    outside = view, torch.where(is_first, next_row, row), torch.where(is_first, next_column, column)
    edge = code.abs() - 1
    f, k = edge // 3, edge % 3
    a = screen[view, faces[f, (k + 1) % 3].long()]  # [P, 2]
    b = screen[view, faces[f, (k + 2) % 3].long()]
    centre = torch.stack([inside[2], inside[1]], dim=-1) + 0.5
    distance = _crossing(a - centre, b - centre, axis) * code.sign()
    excess = (distance - 0.5).to(image.dtype).unsqueeze(-1)
    change = excess * (image[inside] - image[outside])
    is_outside = excess > 0
    zeros = torch.zeros_like(change)
    out = torch.index_put(image, outside, torch.where(is_outside, change, zeros), accumulate=True)
    return torch.index_put(out, inside, torch.where(is_outside, zeros, change), accumulate=True)


def _candidates(face: Tensor, depth: Tensor) -> _Pairs:
    view, row, column, axis = (
        torch.stack(
            [
                torch.nn.functional.pad(face[:, :, 1:] != face[:, :, :-1], (0, 1)),
                torch.nn.functional.pad(face[:, 1:] != face[:, :-1], (0, 0, 0, 1)),
            ],
            dim=-1,
        )
        .nonzero()
        .unbind(1)
    )
    next_row, next_column = row + axis, column + 1 - axis
    here, there = face[view, row, column].long() - 1, face[view, next_row, next_column].long() - 1
    is_nearer = depth[view, row, column] <= depth[view, next_row, next_column]
    is_first = (there < 0) | ((here >= 0) & is_nearer)
    x = torch.where(is_first, column, next_column)
    y = torch.where(is_first, row, next_row)
    return _Pairs(
        view=view,
        row=row,
        column=column,
        axis=axis,
        sign=torch.where(is_first, 1, -1),
        inside=torch.where(is_first, here, there),
        outside=torch.where(is_first, there, here),
        centre=torch.stack([x, y], dim=-1) + 0.5,
    )


def _crossing(a: Tensor, b: Tensor, axis: Tensor) -> Tensor:
    """Where the segment from a to b [..., 2] meets the axis through the origin; NaN if nowhere."""
    is_row = (axis == 0).reshape(axis.shape + (1,) * (a.dim() - 1 - axis.dim()))
    a_along, a_across = (
        torch.where(is_row, a[..., 0], a[..., 1]),
        torch.where(is_row, a[..., 1], a[..., 0]),
    )
    b_along, b_across = (
        torch.where(is_row, b[..., 0], b[..., 1]),
        torch.where(is_row, b[..., 1], b[..., 0]),
    )
    straddles = (a_across < 0) != (b_across < 0)
    height = torch.where(straddles, b_across - a_across, torch.nan)
    return (a_along * b_across - b_along * a_across) / height


def _exit_edge(
    screen: Tensor,
    corners: Tensor,
    pairs: _Pairs,
    current: Tensor,
    entered: Tensor,
    travelled: Tensor,
) -> tuple[Tensor, Tensor]:
    """Edge [P] by which each ray leaves its face, and how far along [P] (inf: none)."""
    points = (
        screen[pairs.view[:, None], corners[current]].double() - pairs.centre[:, None]
    )  # [P, 3, 2]
    distance = _crossing(points.roll(-1, 1), points.roll(-2, 1), pairs.axis) * pairs.sign[:, None]
    is_entry = torch.arange(3, device=current.device) == entered[:, None]
    usable = ~is_entry & (distance >= travelled[:, None])
    furthest, k = torch.where(usable, distance, -torch.inf).max(dim=1)
    return k, torch.where(furthest.isfinite(), furthest, torch.inf)


def _folds(
    screen: Tensor,
    corners: Tensor,
    view: Tensor,
    current: Tensor,
    k: Tensor,
    across: Tensor,
    ends: Tensor,
) -> Tensor:
    """Whether both faces of an edge lie on one side of it on the screen, [P] bool."""
    neighbour = across.clamp(min=0)
    direction = ends[:, 1] - ends[:, 0]

    def side(vertex: Tensor) -> Tensor:
        offset = screen[view, vertex].double() - ends[:, 0]
        return direction[:, 0] * offset[:, 1] - direction[:, 1] * offset[:, 0]

    return ~(side(corners[current, k]) * side(corners[neighbour // 3, neighbour % 3]) < 0)


def _is_steep(ends: Tensor, axis: Tensor) -> Tensor:
    dx, dy = (ends[:, 1] - ends[:, 0]).abs().unbind(1)
    return torch.where(axis == 0, dy >= dx, dx > dy)
