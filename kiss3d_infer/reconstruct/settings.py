"""What a user may choose about a reconstruction, and what comes out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kiss3d_infer.config import Config

if TYPE_CHECKING:
    from kiss3d_infer.scene.mesh import Mesh

StartName = Literal["carve", "hull", "sphere"]
"""Starts that need nothing but the bundle."""
NumFaces = Annotated[int, Field(ge=100, le=200_000)]
TextureSize = Annotated[int, Field(ge=64, le=8192)]


class ReconstructSettings(Config):
    """How a bundle becomes a mesh."""

    init: StartName = "carve"
    """First shape: the views' hull carved by their normals, the hull alone, or a ball."""
    coarse_steps: int = Field(150, ge=0, le=2000)
    """Gradient steps at up to 256 pixels per view."""
    fine_steps: int = Field(40, ge=0, le=2000)
    """Gradient steps at up to 512 pixels per view."""
    num_faces: NumFaces = 20_000
    """Most faces of the result; unwrapping takes long beyond 40,000."""
    texture_size: TextureSize = 1024
    """Side of the square texture in texels."""
    albedo: bool = False
    """Take the light out of the texture, as far as the normals tell it."""
    normal_map: bool = False
    """Bake what simplification loses into a normal map."""


@dataclass(frozen=True)
class Reconstruction:
    """A textured mesh and how well it agrees with its bundle.

    Attributes:
        mesh: closed, with normals, texture coordinates and one textured material; front +Z.
        measurements: `silhouette_iou`, `normal_error` (degrees), each also by view as
            `<name>/<view>`, `color_psnr` (dB), `num_faces`, `watertight` (0 or 1), `unseen_share`
            of the texels; by view `view_shift/<view>`, how far it was off the common surface in
            shares of its width, and `view_confidence/<view>`, how much it counted in the end.
        seconds: wall time by stage.
        warnings: sentences about what was wrong with the bundle and how it was met.
    """

    mesh: "Mesh"
    measurements: dict[str, float]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
