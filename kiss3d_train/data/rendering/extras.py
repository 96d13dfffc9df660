"""Supervision beside the bundle: 16-bit normals, depth, masks, and views from elsewhere.

| file | what it holds |
|---|---|
| `<key>.normals.png` | 16-bit grey, the tiles' width and three times their height: the red, green and blue of the normal row, one above the other; white outside, and not mixed with it at edges |
| `<key>.depth.png` | 16-bit grey: distance along the viewing axis, times `scale` in world units; 0 outside |
| `<key>.masks.png` | 8-bit grey: coverage |
| `<key>.views.png` | a bundle whose layout holds the random cameras |
"""  # noqa: E501

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.scene.color import to_bytes
from kiss3d_train.data.rendering.settings import ExtraName, ExtraSettings

if TYPE_CHECKING:
    from pathlib import Path

    from kiss3d_infer.scene.lighting import Light
    from kiss3d_infer.scene.mesh import Mesh
    from kiss3d_infer.scene.render import Views

_LEVELS = 65535
_MOST_ELEVATION = 60.0
_MARGIN = 0.97


def encode_normals(normals_world: Tensor, alpha: Tensor, layout: BundleLayout) -> bytes:
    """World normals [V, 3, T, T] with coverage [V, 1, T, T] as a 16-bit PNG."""
    colors = normal_code.encode(normal_code.to_camera(normals_world, layout))
    colors = torch.where(alpha > 0, colors, 1.0)
    return _png16(colors.permute(1, 2, 0, 3).flatten(2).flatten(0, 1))  # [3 T, V T]


def decode_normals(source: Path | bytes, layout: BundleLayout) -> tuple[Tensor, Tensor]:
    """What `encode_normals` wrote: unit camera-space normals [V, 3, T, T] and a mask [V, T, T].

    Normals are 0 outside the mask.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        levels = np.array(picture, np.int32)
    colors = torch.from_numpy(levels).float() / _LEVELS
    tile = colors.shape[1] // layout.num_views
    colors = colors.reshape(3, tile, layout.num_views, tile).permute(2, 0, 1, 3)
    mask = (colors < 1).any(1)
    return normal_code.decode(colors) * mask[:, None], mask


def encode_depth(depth: Tensor, layout: BundleLayout) -> tuple[bytes, float]:
    """Depth [V, 1, T, T] as a 16-bit PNG, and the world units of a level."""
    scale = (layout.distance + math.sqrt(3)) / _LEVELS  # nothing lies behind the cube's corner
    return _png16((depth[:, 0] / scale).permute(1, 0, 2).flatten(1) / _LEVELS), scale


def encode_masks(alpha: Tensor) -> bytes:
    """Coverage [V, 1, T, T] as an 8-bit PNG."""
    return _png(Image.fromarray(to_bytes(alpha[:, 0].permute(1, 0, 2).flatten(1))))


def random_layout(
    settings: ExtraSettings, key: str, mesh: Mesh, layout: BundleLayout
) -> BundleLayout:
    """Cameras drawn for an object, far enough to see all of it; fov and rows are the layout's."""
    from kiss3d_infer.scene.lighting import generator

    random, count = generator(settings.seed, f"views of {key}"), settings.num_random_views
    reach = float(mesh.vertices.norm(dim=1).max())
    needed = reach / math.sin(math.radians(layout.fov / 2)) / _MARGIN
    return BundleLayout(
        azimuths=tuple(round(float(a), 3) for a in random.uniform(0, 360, count)),
        elevations=tuple(
            round(float(e), 3) for e in random.uniform(-_MOST_ELEVATION, _MOST_ELEVATION, count)
        ),
        rows=layout.rows,
        fov=layout.fov,
        distance=min(max(layout.distance, round(needed, 3)), 18.0),
    )


def extra_files(
    settings: ExtraSettings,
    key: str,
    mesh: Mesh,
    views: Views,
    layout: BundleLayout,
    light: Light,
    device: str,
) -> tuple[dict[ExtraName, bytes], dict[str, Any]]:
    """The files wanted, by kind, and what the description says about them."""
    from kiss3d_infer.bundle.image import encode_image
    from kiss3d_infer.scene.render import render_bundle

    files: dict[ExtraName, bytes] = {}
    said: dict[str, Any] = {}
    if "normals" in settings.kinds:
        files["normals"] = encode_normals(views.normals, views.alpha, layout)
    if "depth" in settings.kinds:
        files["depth"], scale = encode_depth(views.depth, layout)
        said["depth"] = {"scale": scale}
    if "masks" in settings.kinds:
        files["masks"] = encode_masks(views.alpha)
    if "random_views" in settings.kinds:
        other = random_layout(settings, key, mesh, layout)
        tile = views.alpha.shape[-1]
        bundle = render_bundle(mesh, other, tile, lighting=light, device=device)
        files["random_views"] = encode_image(bundle, "png")
        said["random_views"] = {"layout": other.model_dump(mode="json")}
    return files, said


def _png16(values: Tensor) -> bytes:
    """Values [H, W] in [0, 1] as 16-bit grey."""
    levels = (values.clamp(0, 1).double() * _LEVELS).round().cpu().numpy().astype(np.uint16)
    return _png(Image.fromarray(levels))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
