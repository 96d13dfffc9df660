"""The CPU rasterizer: compiled kernels behind autograd, one thread per view."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiss3d_infer.scene.raster import Fragments, edge_kernels, kernels
from kiss3d_infer.scene.raster.kernels import Floats, Ints
from kiss3d_infer.scene.raster.texture import sample_texture
from kiss3d_infer.scene.raster.threads import for_each_view


def interpolated_where_shown(attributes: Tensor, fragments: Fragments) -> tuple[Tensor, Tensor]:
    """`CpuRasterizer.interpolate` of one view, only where it shows a face.

    Returns:
        Flat indices [P], ascending, and attributes [P, C].
    """
    (face,) = _ints(fragments.face)
    where = np.empty(np.count_nonzero(face), np.int64)
    out = np.empty((len(where), attributes.shape[1]), np.float32)
    clip, faces = _floats(fragments.clip)[0], _ints(fragments.faces)
    kernels.interpolate_shown(_floats(attributes), clip, faces, face, where, out)
    return torch.from_numpy(where), torch.from_numpy(out)


def sampled(texels: Tensor, places: Tensor, index: Tensor, uv: Tensor) -> Tensor:
    """See `surface.Textures.sample`, whose bits these are."""
    out = np.empty((len(index), texels.shape[1]), np.float32)
    kernels.sample(_floats(texels), places.numpy(), index.numpy(), _floats(uv), out)
    return torch.from_numpy(out)


def averaged(
    where: Tensor, samples: Sequence[Tensor], size: int, supersampling: int
) -> tuple[Tensor, Tensor]:
    """Pixels of square pictures from those of their samples that show something.

    Args:
        where: [P] int64 flat indices of samples, ascending; S times as many per row as pixels.
        samples: their values, [P, C] each; the others' are 0.
        size: pixels per row.
        supersampling: S.

    Returns:
        Flat indices [Q] of the pixels with a sample, each once, and the means [Q, C of all] over
        all their samples; of the last of the values the maximum.
    """
    shown = np.empty(len(where), np.int64)
    channels = sum(values.shape[1] for values in samples)
    row = np.empty(len(where), np.int64)
    count = kernels.find_pixels(where.numpy(), size, supersampling, row, shown)
    pixels = np.zeros((count, channels), np.float32)
    first = 0
    for values in samples[:-1]:
        kernels.add(_floats(values), row, pixels[:, first : first + values.shape[1]])
        first += values.shape[1]
    pixels /= np.float32(supersampling**2)
    kernels.raise_to(_floats(samples[-1]), row, pixels[:, first:])
    return torch.from_numpy(shown[:count]), torch.from_numpy(pixels)


@dataclass
class _Kept:
    screen: Floats  # [V, N, 3]
    crossings: Ints | None = field(default=None)  # [V, H, W, 2], found when first needed


class CpuRasterizer:
    """Rasterizer for float32 tensors in main memory; deterministic, gradients included."""

    def rasterize(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Fragments:
        """See `Rasterizer.rasterize`."""
        height, width = resolution
        num_views, num_vertices, _ = clip.shape
        faces = faces.to(torch.int32).contiguous()
        clip_np, faces_np = _floats(clip), faces.numpy()
        screen = np.empty((num_views, num_vertices, 3), np.float32)
        face = np.empty((num_views, height, width), np.int32)
        depth = np.empty((num_views, height, width), np.float32)

        def one_view(v: int) -> None:
            kernels.project(clip_np[v], height, width, screen[v])
            kernels.rasterize(screen[v], faces_np, face[v], depth[v])

        for_each_view(one_view, num_views)
        return Fragments(
            torch.from_numpy(face),
            torch.from_numpy(depth),
            clip,
            faces,
            _Kept(screen),
        )

    def interpolate(self, attributes: Tensor, fragments: Fragments) -> Tensor:
        """See `Rasterizer.interpolate`."""
        out: Tensor = _Interpolate.apply(  # type: ignore[no-untyped-call]
            attributes, fragments.clip, fragments.faces, fragments.face
        )
        return out

    def antialias(self, image: Tensor, fragments: Fragments) -> Tensor:
        """See `Rasterizer.antialias`."""
        kept: _Kept = fragments.kept
        if kept.crossings is None:
            kept.crossings = _crossings(fragments)
        out: Tensor = _Antialias.apply(  # type: ignore[no-untyped-call]
            image, fragments.clip, fragments.faces, kept.screen, kept.crossings
        )
        return out

    def sample_texture(self, texture: Tensor, uv: Tensor) -> Tensor:
        """See `Rasterizer.sample_texture`."""
        return sample_texture(texture, uv)


def summed_face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Sum over each vertex's faces of (b - a) x (c - a): [N, 3], with gradients."""
    out: Tensor = _SummedFaceNormals.apply(vertices, faces)  # type: ignore[no-untyped-call]
    return out


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, clip: Tensor, faces: Tensor, face: Tensor) -> Tensor:
        out = np.empty((*face.shape, attributes.shape[1]), np.float32)
        arrays = _floats(attributes), _floats(clip), _ints(faces), _ints(face)
        attributes_np, clip_np, faces_np, face_np = arrays

        def one_view(v: int) -> None:
            kernels.interpolate(attributes_np, clip_np[v], faces_np, face_np[v], out[v])

        for_each_view(one_view, len(clip_np))
        ctx.save_for_backward(attributes, clip, faces, face)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        attributes, clip, faces, face = ctx.saved_tensors
        grad_np, attributes_np, clip_np = _floats(grad), _floats(attributes), _floats(clip)
        faces_np, face_np = _ints(faces), _ints(face)
        wants_clip: bool = ctx.needs_input_grad[1]
        # One buffer per view, summed in a fixed order, so that threads do not change the result.
        grad_attributes = np.zeros((len(clip_np), *attributes_np.shape), np.float32)
        grad_clip = np.zeros_like(clip_np)

        def one_view(v: int) -> None:
            kernels.interpolate_backward(
                grad_np[v],
                attributes_np,
                clip_np[v],
                faces_np,
                face_np[v],
                grad_attributes[v],
                grad_clip[v],
                wants_clip,
            )

        for_each_view(one_view, len(clip_np))
        summed = torch.from_numpy(grad_attributes.sum(0))
        return summed, torch.from_numpy(grad_clip) if wants_clip else None, None, None


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, clip: Tensor, faces: Tensor, screen: Floats, crossings: Ints
    ) -> Tensor:
        image_np, faces_np = _floats(image), _ints(faces)
        out = np.empty_like(image_np)

        def one_view(v: int) -> None:
            edge_kernels.blend(image_np[v], screen[v], faces_np, crossings[v], out[v])

        for_each_view(one_view, len(screen))
        ctx.save_for_backward(image, clip, faces)
        ctx.found = screen, crossings
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        image, clip, faces = ctx.saved_tensors
        screen, crossings = ctx.found
        grad_np, image_np, clip_np, faces_np = (
            _floats(grad),
            _floats(image),
            _floats(clip),
            _ints(faces),
        )
        _, height, width, _ = image_np.shape
        grad_image, grad_clip = np.empty_like(image_np), np.zeros_like(clip_np)

        def one_view(v: int) -> None:
            grad_screen = np.zeros((clip_np.shape[1], 2), np.float32)
            edge_kernels.blend_backward(
                grad_np[v],
                image_np[v],
                screen[v],
                faces_np,
                crossings[v],
                grad_image[v],
                grad_screen,
            )
            kernels.project_backward(grad_screen, clip_np[v], height, width, grad_clip[v])

        for_each_view(one_view, len(clip_np))
        return torch.from_numpy(grad_image), torch.from_numpy(grad_clip), None, None, None


class _SummedFaceNormals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, faces: Tensor) -> Tensor:
        out = np.empty(vertices.shape, np.float32)
        kernels.summed_face_normals(_floats(vertices), _ints(faces), out)
        ctx.save_for_backward(vertices, faces)
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        vertices, faces = ctx.saved_tensors
        grad_vertices = np.zeros(vertices.shape, np.float32)
        kernels.summed_face_normals_backward(
            _floats(grad), _floats(vertices), _ints(faces), grad_vertices
        )
        return torch.from_numpy(grad_vertices), None


def _crossings(fragments: Fragments) -> Ints:
    screen = fragments.kept.screen
    faces, face, depth = _ints(fragments.faces), _ints(fragments.face), _floats(fragments.depth)
    opposite = _opposite_edges(fragments.faces, screen.shape[1])
    crossings = np.empty((*face.shape, 2), np.int32)

    def one_view(v: int) -> None:
        edge_kernels.find_crossings(screen[v], faces, opposite, face[v], depth[v], crossings[v])

    for_each_view(one_view, len(screen))
    return crossings


@lru_cache(maxsize=1)
def _opposite_edges(faces: Tensor, num_vertices: int) -> Ints:
    """Kept for the next picture of the same mesh: tensors are told apart by identity."""
    opposite = np.empty(faces.shape, np.int32)
    edge_kernels.opposite_edges(_ints(faces), num_vertices, opposite)
    return opposite


def _floats(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().to(torch.float32).contiguous().numpy()
    return array


def _ints(tensor: Tensor) -> Ints:
    array: Ints = tensor.detach().to(torch.int32).contiguous().numpy()
    return array
