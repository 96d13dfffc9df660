"""The layout of a 3D bundle image: which view stands in which tile."""

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from kiss3d_infer.config import Config
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.camera import Cameras

Domains = Literal["bundle", "switch"]
"""How bundles are drawn: whole, or row by row with a prompt that names the row, as Wonder3D does
(arXiv 2310.15008) and Kiss3DGen in its Figure 9."""
MAX_VIEWS = 16
"""Columns of a bundle at most: layouts come with images from anywhere, and views cost memory."""


class BundleLayout(Config):
    """What the columns and rows of a bundle mean; it travels with every bundle.

    One column per view, one row per modality, square tiles without gutters. The defaults are the
    published convention of Kiss3DGen (arXiv 2503.01370, section 4.1 and the released weights).
    """

    model_config = ConfigDict(allow_inf_nan=False)

    version: Literal[1] = 1
    azimuths: tuple[float, ...] = Field(
        (0.0, 90.0, 180.0, 270.0), min_length=1, max_length=MAX_VIEWS
    )
    """Degrees about +Y, left to right; 0 = front (+Z), 90 = +X."""
    elevations: tuple[float, ...] = (5.0, 5.0, 5.0, 5.0)
    """Degrees above the horizon, one per column."""
    rows: tuple[Literal["rgb", "normal"], ...] = ("rgb", "normal")
    """Modalities, top to bottom."""
    fov: float = Field(30.0, ge=1, lt=120)
    """Full opening angle of every camera, degrees."""
    distance: float = Field(4.5, gt=1, le=18)
    """From the camera to the origin; the object's longest half-extent is 1.

    All of it, up to sqrt(3) from the origin, must lie before the cameras' far plane at 20.
    """

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if len(self.azimuths) != len(self.elevations):
            raise ValueError(
                f"azimuths ({len(self.azimuths)}) and elevations ({len(self.elevations)}) "
                "must be equally many"
            )
        if any(abs(elevation) > 89.9 for elevation in self.elevations):
            raise ValueError("elevations must lie within -89.9 and 89.9 degrees")
        if sorted(self.rows) != ["normal", "rgb"]:
            raise ValueError("rows must name 'rgb' and 'normal' once each")
        return self

    @property
    def num_views(self) -> int:
        """The number of columns."""
        return len(self.azimuths)

    @property
    def cameras(self) -> Cameras:
        """One camera per column."""
        return Cameras(self.azimuths, self.elevations, self.distance, self.fov)

    def pictures(self, domains: Domains) -> tuple["BundleLayout", ...]:
        """Layouts of what is drawn as one picture, top to bottom; a lone row is no bundle's."""
        if domains == "bundle":
            return (self,)
        return tuple(self.model_copy(update={"rows": (row,)}) for row in self.rows)

    def image_size(self, tile: int) -> tuple[int, int]:
        """(width, height) in pixels of a bundle with square tiles of `tile` pixels."""
        return tile * self.num_views, tile * len(self.rows)

    def tile_of(self, width: int, height: int) -> int:
        """The tile's side in pixels, for an image of this layout.

        Raises:
            InputError: the image has another aspect.
        """
        tile = height // len(self.rows)
        if tile == 0 or self.image_size(tile) != (width, height):
            columns, rows = self.num_views, len(self.rows)
            example = "x".join(map(str, self.image_size(512)))
            raise InputError(
                f"a {width}x{height} image is no {columns}x{rows} grid of square tiles",
                fix=f"give an image whose width : height is {columns} : {rows}, e.g. {example}",
            )
        return tile


PUBLISHED = BundleLayout()
"""Kiss3DGen's layout: azimuths 0/90/180/270 at elevation 5, RGB above normals."""
