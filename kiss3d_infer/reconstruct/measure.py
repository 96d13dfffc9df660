"""How well a reconstruction agrees with the bundle it came from."""

import math

import torch
from torch.nn import functional

from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.raster import rasterizer_for


def agreement(mesh: Mesh, target: Target) -> dict[str, float]:
    """Draw a mesh from the target's cameras and compare.

    Returns:
        `silhouette_iou`: intersection over union of the coverage above one half;
        `normal_error`: mean angle in degrees where both cover; `color_psnr`: in dB there, for a
        textured mesh. Each is a mean over views; the first two also come by view, as
        `silhouette_iou/<view>` and `normal_error/<view>`.
    """
    device = target.alpha.device
    rasterizer = rasterizer_for(device)
    vertices, faces = mesh.vertices.to(device), mesh.faces.to(device)
    fragments = rasterizer.rasterize(
        target.cameras.clip(vertices), faces, (target.size, target.size)
    )
    drawn, wanted = fragments.face > 0, target.alpha[..., 0] > 0.5
    both, either = drawn & wanted, drawn | wanted
    normals = rasterizer.interpolate(smooth_normals(mesh).to(device), fragments)
    angle = _angles(normals, target.normals)
    pixels = both.sum((1, 2)).clamp(min=1)
    ious = (both.sum((1, 2)) / either.sum((1, 2)).clamp(min=1)).tolist()
    errors = ((angle * both).sum((1, 2)) / pixels).tolist()
    result = {
        "silhouette_iou": sum(ious) / len(ious),
        "normal_error": sum(errors) / len(errors),
    }
    for view, (iou, error) in enumerate(zip(ious, errors, strict=True)):
        result[f"silhouette_iou/{view}"] = iou
        result[f"normal_error/{view}"] = error
    texture = mesh.materials[0].texture if mesh.materials else None
    if texture is not None and mesh.uv is not None and both.any():
        uv = rasterizer.interpolate(mesh.uv.to(device), fragments)
        shown = rasterizer.sample_texture(texture.to(device), uv[both])
        squared = float(((shown - target.rgb[both]) ** 2).mean())
        result["color_psnr"] = -10 * math.log10(max(squared, 1e-10))
    return result


def _angles(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angles in degrees between vectors [..., 3] of any length, accurate near 0."""
    first, second = functional.normalize(first, dim=-1), functional.normalize(second, dim=-1)
    half_sine = ((first - second).norm(dim=-1) / 2).clamp(max=1)
    return torch.rad2deg(2 * torch.asin(half_sine))
