"""Whether an object has the colour that its caption names."""

from kiss3d_infer.bundle import Bundle
from kiss3d_train.data.captions.colors import measured_colors


def color_match(bundle: Bundle, word: str) -> dict[str, bool]:
    """Is a colour word of the toybox the bundle's main colour, or one of its main two?

    Every pixel of the object takes the nearest colour word in CIELAB under the light that suits it
    best; the word with most pixels is the main colour, and the next, from 15 % on, is the second.
    """
    names = [name for name, _ in measured_colors(bundle)]
    return {"color_main": names[:1] == [word], "color_shown": word in names}
