"""Radiance pictures (.hdr): light without an upper bound, a shared exponent per pixel.

The format is that of Greg Ward, "Real Pixels" (Graphics Gems II, 1991), with the run lengths that
Radiance writes since 1991.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiss3d_infer.errors import InputError

_MAX_PIXELS = 64 * 2**20
_LONGEST_RUN = 128


def read_radiance(path: Path) -> NDArray[np.float32]:
    """Read a picture as linear light [H, W, 3], row 0 at the top.

    Raises:
        InputError: no such file, or not a Radiance picture in RGBE with rows from the top.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the environment cannot be read: {error.strerror}", where=path) from error
    header = re.match(rb"#\?.*?\n\n-Y (\d+) \+X (\d+)\n", data, re.DOTALL)
    if header is None or b"FORMAT=32-bit_rle_rgbe" not in header[0]:
        raise InputError("not a Radiance picture of RGB light, rows from the top", where=path)
    height, width = int(header[1]), int(header[2])
    if not 0 < height * width <= _MAX_PIXELS:
        raise InputError(f"the picture has {width}x{height} pixels, too many", where=path)
    try:
        pixels = _pixels(data, header.end(), height, width)
    except (IndexError, ValueError) as error:
        raise InputError("the picture is cut off or damaged", where=path) from error
    mantissa, exponent = pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.int32)
    light: NDArray[np.float32] = np.ldexp(mantissa, exponent - (128 + 8)).astype(np.float32)
    return light


def _pixels(data: bytes, start: int, height: int, width: int) -> NDArray[np.uint8]:
    """The four bytes of every pixel: [H, W, 4]."""
    values = np.frombuffer(data, np.uint8)
    if data[start : start + 2] != b"\x02\x02":  # no run lengths
        return values[start : start + height * width * 4].reshape(height, width, 4)
    pixels = np.empty((height, 4, width), np.uint8)
    for row in pixels:
        if data[start : start + 4] != bytes((2, 2, width >> 8, width & 255)):
            raise ValueError("no row begins here")
        start += 4
        for plane in row:
            start = _unpack(values, start, plane)
    return pixels.transpose(0, 2, 1)


def _unpack(values: NDArray[np.uint8], start: int, plane: NDArray[np.uint8]) -> int:
    """Fill a row of one channel; returns where the next one starts."""
    done = 0
    while done < len(plane):
        count = int(values[start])
        if count > _LONGEST_RUN:
            count -= _LONGEST_RUN
            piece = values[start + 1 : start + 2]
        else:
            piece = values[start + 1 : start + 1 + count]
        if count == 0 or done + count > len(plane):
            raise ValueError("a run does not end with its row")
        plane[done : done + count] = piece
        done, start = done + count, start + 1 + len(piece)
    return start
