"""A bundle image in memory and on disk."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from kiss3d_infer.bundle import normals as normal_code
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.config import explain
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import check_writable, writing
from kiss3d_infer.scene.color import to_bytes

_EXIF_IMAGE_DESCRIPTION = 0x010E
FAST_PNG = {"compress_level": 1, "compress_type": 3}
"""Run lengths only (zlib's Z_RLE): bundles grow by 3 % and are written in half the time."""
_MAX_PIXELS = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """Four (or more) RGB views above their normal maps.

    Attributes:
        image: [3, R*T, V*T] float32 in [0, 1], row 0 at the top; background white in every row.
        layout: what each tile shows.
    """

    image: Tensor
    layout: BundleLayout = PUBLISHED

    def __post_init__(self) -> None:
        self.layout.tile_of(self.image.shape[2], self.image.shape[1])

    @property
    def tile(self) -> int:
        """Side of a tile in pixels."""
        return self.image.shape[1] // len(self.layout.rows)

    @property
    def rgb(self) -> Tensor:
        """sRGB views [V, 3, T, T] on white."""
        return self._row("rgb")

    @property
    def normal_colors(self) -> Tensor:
        """Encoded camera-space normals [V, 3, T, T] on white."""
        return self._row("normal")

    def _row(self, name: Literal["rgb", "normal"]) -> Tensor:
        top = self.layout.rows.index(name) * self.tile
        strip = self.image[:, top : top + self.tile]
        tiles = strip.reshape(3, self.tile, self.layout.num_views, self.tile)
        return tiles.permute(2, 0, 1, 3)

    @classmethod
    def from_views(
        cls,
        rgb: Tensor,  # [V, 3, T, T] sRGB
        normals_world: Tensor,  # [V, 3, T, T] unit
        alpha: Tensor,  # [V, 1, T, T]
        layout: BundleLayout = PUBLISHED,
    ) -> "Bundle":
        """Compose views into one image, encoding the normals before compositing on white.

        Args:
            rgb: [V, 3, T, T] sRGB in [0, 1]; what lies outside alpha does not matter.
            normals_world: [V, 3, T, T] unit world-space normals.
            alpha: [V, 1, T, T] coverage in [0, 1].
            layout: one column per view.
        """
        tile = alpha.shape[-1]
        where = (alpha > 0).flatten().nonzero().flatten()
        normals = normal_code.to_camera(normals_world, layout)
        rgb, normals, alpha = (
            pictures.permute(0, 2, 3, 1).flatten(0, 2)[where].T
            for pictures in (rgb, normals, alpha)
        )
        return cls.from_pixels(where, rgb, normals, alpha[0], layout, tile)

    @classmethod
    def from_pixels(
        cls,
        where: Tensor,  # [Q] int64
        rgb: Tensor,  # [3, Q] sRGB
        normals_camera: Tensor,  # [3, Q] unit
        alpha: Tensor,  # [Q]
        layout: BundleLayout,
        tile: int,
    ) -> "Bundle":
        """As `from_views`, of those pixels alone that show something, which is far quicker.

        Args:
            where: [Q] flat indices of different pixels of views [V, T, T].
            rgb: [3, Q] sRGB in [0, 1].
            normals_camera: [3, Q] unit normals in their view's camera.
            alpha: [Q] coverage in [0, 1].
            layout: one column per view.
            tile: side T of a tile in pixels.
        """
        colors = normal_code.encode(normals_camera.unsqueeze(-1)).squeeze(-1)
        values = {"rgb": rgb, "normal": colors}
        view, row, column = where // tile**2, where // tile % tile, where % tile
        place = (row * layout.num_views + view) * tile + column
        image = alpha.new_ones(3, len(layout.rows), tile * layout.num_views * tile)
        for strip, name in enumerate(layout.rows):
            on_white = (values[name] * alpha + (1 - alpha)).clamp(0, 1)
            for channel in range(3):
                image[channel, strip].scatter_(0, place, on_white[channel])
        width, height = layout.image_size(tile)
        return cls(_in_main_memory(image.reshape(3, height, width).float()), layout)

    def to_pil(self) -> Image.Image:
        """The bundle as an 8-bit RGB picture."""
        planes = [Image.fromarray(plane) for plane in to_bytes(self.image)]
        return Image.merge("RGB", planes)


def _in_main_memory(image: Tensor) -> Tensor:
    copy = image.to("cpu", non_blocking=True)  # into pinned memory, which is far faster
    if image.is_cuda:
        torch.cuda.current_stream(image.device).synchronize()
    return copy


def encode_image(bundle: Bundle, image_format: Literal["png", "webp"]) -> bytes:
    """The bundle as lossless 8-bit PNG or WebP bytes with its layout inside (Exif description)."""
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = bundle.layout.model_dump_json()
    buffer = io.BytesIO()
    if image_format == "png":
        bundle.to_pil().save(buffer, "PNG", exif=exif, **FAST_PNG)
    else:
        bundle.to_pil().save(buffer, "WEBP", lossless=True, quality=50, method=1, exif=exif)
    return buffer.getvalue()


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a PNG or WebP file, chosen by the suffix; it appears only when whole.

    Raises:
        InputError: another suffix, or the folder cannot be written.
    """
    data = encode_image(bundle, checked_image_format(path))
    with writing(path) as aside:
        aside.write_bytes(data)


def checked_image_format(path: Path) -> Literal["png", "webp"]:
    """The format of a bundle's path that can be written; ask before long work, not after it.

    Raises:
        InputError: another suffix, or the folder cannot be written.
    """
    check_writable(path)
    match path.suffix.lower():
        case ".png":
            return "png"
        case ".webp":
            return "webp"
    raise InputError("a bundle is saved as .png or .webp", where=path)


def load_bundle(source: Path | bytes) -> Bundle:
    """Read a bundle image; transparent pixels are composited on white.

    Args:
        source: a file, or the encoded image itself; without a layout inside, the published one.

    Raises:
        InputError: no such file, no image, too large, an unknown layout, or another aspect.
    """
    with opened_image(source) as picture:
        if picture.width * picture.height > _MAX_PIXELS:
            raise InputError(f"the image is larger than {_MAX_PIXELS} pixels")
        layout = _stored_layout(picture)
        layout.tile_of(picture.width, picture.height)
        pixels = np.array(picture.convert("RGBA" if picture.has_transparency_data else "RGB"))
    values = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if len(values) == 3:
        return Bundle(values, layout)
    return Bundle(values[:3] * values[3:] + (1 - values[3:]), layout)


@contextmanager
def opened_image(source: Path | bytes) -> Iterator[Image.Image]:
    """A PNG or WebP image whose header is read; its pixels are decoded when first asked for.

    Raises:
        InputError: no such file or no image, found out here or while the image is used.
    """
    where = source if isinstance(source, Path) else None
    file = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        with Image.open(file, formats=("PNG", "WEBP")) as picture:
            yield picture
    except FileNotFoundError as error:
        raise InputError("no such bundle image", where=where, fix="check the path") from error
    except InputError as error:
        raise InputError(error.what, where=where, fix=error.fix) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"the image is larger than {_MAX_PIXELS} pixels", where=where) from error
    except Exception as error:  # Pillow raises whatever its parsers ran into, IndexError included
        raise InputError(
            "the bundle is no readable image", where=where, fix="give a whole PNG or WebP file"
        ) from error


def _stored_layout(picture: Image.Image) -> BundleLayout:
    text = picture.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if not isinstance(text, str) or not text.startswith("{"):
        return PUBLISHED
    try:
        return BundleLayout.model_validate_json(text)
    except ValidationError as error:
        reason = explain(error, BundleLayout)
        raise InputError(f"the image holds a layout this version cannot read: {reason}") from error
