"""The one rule for the size of a tile, checked wherever a data set goes through."""

from kiss3d_infer.errors import InputError

PIXELS_PER_TOKEN = 16
"""Side of an image token: 8 pixels of the VAE x 2 of the packing."""


def check_tile(tile: int, where: object = "tile") -> None:
    """Refuse a tile that does not hold a whole number of image tokens.

    Args:
        tile: side in pixels.
        where: named in the error.

    Raises:
        InputError: it is no multiple of 16.
    """
    if tile < PIXELS_PER_TOKEN or tile % PIXELS_PER_TOKEN:
        near = max(1, round(tile / PIXELS_PER_TOKEN)) * PIXELS_PER_TOKEN
        raise InputError(
            f"a tile of {tile} pixels cannot be trained on",
            where=where,
            fix=f"render with a multiple of {PIXELS_PER_TOKEN}, e.g. {near}",
        )
