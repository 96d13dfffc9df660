"""How well a reconstruction agrees with the bundle it came from."""

import math

from kiss3d_infer.reconstruct.target import Target
from kiss3d_infer.scene.likeness import likeness
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.normals import smooth_normals
from kiss3d_infer.scene.raster import rasterizer_for


def agreement(mesh: Mesh, target: Target) -> dict[str, float]:
    """Draw a mesh from the target's cameras and compare.

    Returns:
        `silhouette_iou` (of coverage above one half) and `normal_error` in degrees, both also by
        view: see `likeness`; for a textured mesh `color_psnr` in dB, of all pixels that both cover.
    """
    device = target.alpha.device
    rasterizer = rasterizer_for(device)
    vertices, faces = mesh.vertices.to(device), mesh.faces.to(device)
    fragments = rasterizer.rasterize(
        target.cameras.clip(vertices), faces, (target.size, target.size)
    )
    drawn, wanted = fragments.face > 0, target.alpha[..., 0] > 0.5
    normals = rasterizer.interpolate(smooth_normals(mesh).to(device), fragments)
    result = likeness(drawn, wanted, normals, target.normals, target.views)
    both = drawn & wanted
    texture = mesh.materials[0].texture if mesh.materials else None
    if texture is not None and mesh.uv is not None and both.any():
        uv = rasterizer.interpolate(mesh.uv.to(device), fragments)
        shown = rasterizer.sample_texture(texture.to(device), uv[both])
        squared = float(((shown - target.rgb[both]) ** 2).mean())
        result["color_psnr"] = -10 * math.log10(max(squared, 1e-10))
    return result
