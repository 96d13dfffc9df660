"""Pictures for people: labelled contact sheets and turntables."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing
from kiss3d_infer.scene.camera import Cameras
from kiss3d_infer.scene.color import to_bytes
from kiss3d_infer.scene.lighting import STUDIO, Light
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.render import render_views

_MARGIN = 12
_TEXT_COLOR = (30, 30, 30)
_STRIP_FRAMES = 8


def contact_sheet(
    cells: Sequence[tuple[str, Tensor | Image.Image]], *, columns: int = 1, width: int = 1024
) -> Image.Image:
    """Pictures in a grid on white, each under its label.

    Args:
        cells: (label, picture); a tensor is [3, H, W] sRGB in [0, 1].
        columns: pictures per row.
        width: of the sheet in pixels; pictures are scaled to fill their column.

    Raises:
        InputError: there are no pictures.
    """
    if not cells:
        raise InputError("a contact sheet needs at least one picture")
    column = (width - _MARGIN) // columns - _MARGIN
    font = ImageFont.load_default(size=max(12, min(22, column // 16)))
    labels = [_wrapped(label, column, font) for label, _ in cells]
    rows = []
    for i in range(0, len(cells), columns):
        num_lines = max(len(lines) for lines in labels[i : i + columns])
        padded = [lines + [""] * (num_lines - len(lines)) for lines in labels[i : i + columns]]
        pictures = [to_picture(picture) for _, picture in cells[i : i + columns]]
        pairs = zip(padded, pictures, strict=True)
        rows.append([_cell(lines, picture, column, font) for lines, picture in pairs])
    heights = [max(cell.height for cell in row) + _MARGIN for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN), "white")
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            sheet.paste(cell, (_MARGIN + j * (column + _MARGIN), _MARGIN + sum(heights[:i])))
    return sheet


def turntable(
    mesh: Mesh,
    path: Path,
    *,
    size: int = 256,
    num_frames: int = 36,
    elevation: float = 15.0,
    lighting: Light = STUDIO,
    device: torch.device | str = "cpu",
) -> None:
    """Write the mesh seen from all around: an endless `.gif`, or a `.png` strip of 8 frames.

    Args:
        mesh: `Mesh.normalized`.
        path: `.gif` or `.png`.
        size: of a frame in pixels.
        num_frames: of the GIF, one turn in about 3 seconds.
        elevation: degrees.
        lighting: as for `render_views`.
        device: where to draw.

    Raises:
        InputError: another suffix, or the folder cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".png"):
        raise InputError("a turntable is written as .gif or .png", where=path)
    count = num_frames if suffix == ".gif" else _STRIP_FRAMES
    azimuths = tuple(360.0 * i / count for i in range(count))
    cameras = Cameras(azimuths, (elevation,) * count)
    rgb = render_views(mesh, cameras, size, lighting=lighting, device=device).rgb.cpu()
    if suffix == ".png":
        with writing(path) as aside:
            to_picture(rgb.permute(1, 2, 0, 3).flatten(2)).save(aside)
        return
    # One palette for the whole turn and no dither: otherwise the colours flicker.
    palette = to_picture(rgb[:: math.ceil(count / 6)].permute(1, 0, 2, 3).flatten(1, 2)).quantize(
        256
    )
    frames = [
        to_picture(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in rgb
    ]
    with writing(path) as aside:
        frames[0].save(
            aside, save_all=True, append_images=frames[1:], duration=round(3000 / count), loop=0
        )


def to_picture(image: Tensor | Image.Image) -> Image.Image:
    """An sRGB tensor [3, H, W] in [0, 1] as an 8-bit RGB picture; pictures pass through."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return Image.fromarray(to_bytes(image.permute(1, 2, 0)))


def _cell(
    lines: list[str],
    picture: Image.Image,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> Image.Image:
    line_height = round(font.getbbox("Ag")[3] * 1.25)
    top = line_height * len(lines)
    height = max(1, round(picture.height * width / picture.width))
    resampling = Image.Resampling.LANCZOS if picture.width > width else Image.Resampling.BICUBIC
    cell = Image.new("RGB", (width, top + height), "white")
    draw = ImageDraw.Draw(cell)
    for i, line in enumerate(lines):
        draw.text((0, i * line_height), line, fill=_TEXT_COLOR, font=font)
    cell.paste(picture.resize((width, height), resampling), (0, top))
    return cell


def _wrapped(
    label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
