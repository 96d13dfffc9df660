"""The CUDA rasterizer: nvdiffrast, with the edge walk for antialiasing.

nvdiffrast is imported when the rasterizer is made, never before: it is an optional extra.
"""

import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.raster import Fragments
from kiss3d_infer.scene.raster.texture import sample_texture


class CudaRasterizer:
    """Rasterizer for CUDA tensors.

    nvdiffrast's own antialiasing only sees the edges of the face under the pixel, so it keeps about
    a quarter of the silhouette's gradient when faces are pixel-sized; the edge walk shared with the
    reference keeps nearly all of it.
    """

    def __init__(self) -> None:
        self._nvdiffrast: Any = _nvdiffrast()
        self._antialias = _edge_walk()
        self._contexts: dict[torch.device, Any] = {}

    def rasterize(self, clip: Tensor, faces: Tensor, resolution: tuple[int, int]) -> Fragments:
        """See `Rasterizer.rasterize`."""
        if clip.device not in self._contexts:
            self._contexts[clip.device] = self._nvdiffrast.RasterizeCudaContext(device=clip.device)
        # Its row 0 is the bottom, ours the top.
        flipped = clip * clip.new_tensor([1.0, -1.0, 1.0, 1.0])
        faces = faces.to(torch.int32).contiguous()
        raster, _ = self._nvdiffrast.rasterize(
            self._contexts[clip.device], flipped.contiguous(), faces, resolution, grad_db=False
        )
        _, _, depth, face = raster.detach().unbind(-1)
        depth = torch.where(face > 0, depth, torch.ones_like(depth))
        return Fragments(face.to(torch.int32), depth, clip, faces, kept=raster)

    def interpolate(self, attributes: Tensor, fragments: Fragments) -> Tensor:
        """See `Rasterizer.interpolate`."""
        out: Tensor
        out, _ = self._nvdiffrast.interpolate(
            attributes.contiguous(), fragments.kept, fragments.faces
        )
        return out

    def antialias(self, image: Tensor, fragments: Fragments) -> Tensor:
        """See `Rasterizer.antialias`."""
        return self._antialias(image, fragments)

    def sample_texture(self, texture: Tensor, uv: Tensor) -> Tensor:
        """See `Rasterizer.sample_texture`."""
        return sample_texture(texture, uv)


def _edge_walk() -> Callable[[Tensor, Fragments], Tensor]:
    """The compiled edge walk, or the one in plain torch where Triton is missing (Windows)."""
    try:
        from kiss3d_infer.scene.raster.edges_cuda import antialias
    except ImportError:
        from kiss3d_infer.scene.raster.edges import antialias
    return antialias


@cache
def _nvdiffrast() -> Any:
    try:
        import nvdiffrast.torch as nvdiffrast
    except ImportError as error:
        raise InputError(
            "the CUDA rasterizer needs nvdiffrast, which is not installed",
            fix="install the extra with pip install -e '.[gpu]' in the checkout, "
            "or use --device cpu",
        ) from error
    _make_plugin_findable()
    return nvdiffrast


def _make_plugin_findable() -> None:
    """Keep nvdiffrast's compiled plugin in sys.modules.

    nvdiffrast 0.3 has torch compile or reload its plugin and then imports it by name; newer torch
    returns the module without registering it.
    """
    from torch.utils import cpp_extension

    loader: Any = cpp_extension
    import_module = loader._import_module_from_library

    def registering_import(name: str, *args: Any, **kwargs: Any) -> Any:
        module = import_module(name, *args, **kwargs)
        if isinstance(module, ModuleType):
            sys.modules[name] = module
        return module

    loader._import_module_from_library = registering_import
