"""Contact sheets and turntables."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.mesh import Mesh
from kiss3d_infer.scene.pictures import contact_sheet, turntable


@pytest.fixture(scope="module")
def box() -> Mesh:
    shape = trimesh.creation.box([2, 1, 0.5])
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    return Mesh(vertices, torch.tensor(shape.faces, dtype=torch.int32))


def test_every_picture_is_on_the_sheet_in_order_under_its_label() -> None:
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    cells = [
        (name, torch.tensor(color).reshape(3, 1, 1).expand(3, 20, 40) / 255)
        for name, color in zip(("red", "green", "blue"), colors, strict=True)
    ]
    sheet = np.asarray(contact_sheet(cells, columns=2, width=400)).astype(int)
    assert sheet.shape[1] == 400
    places = [np.argwhere((abs(sheet - color) < 3).all(-1)).mean(0) for color in colors]
    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = places
    assert red_x < 200 < green_x and red_y == pytest.approx(green_y, abs=1)
    assert blue_x == pytest.approx(red_x, abs=1) and blue_y > red_y + 50
    assert (sheet.max(-1) < 60).any()  # the labels


def test_a_long_label_is_wrapped_and_not_cut() -> None:
    picture = Image.new("RGB", (10, 10), "white")
    short = contact_sheet([("word", picture)], width=200)
    long = contact_sheet([("many words that do not fit on one line " * 3, picture)], width=200)
    assert long.height > short.height + 20


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(InputError):
        contact_sheet([])


def test_a_turntable_gif_turns(box: Mesh, tmp_path: Path) -> None:
    turntable(box, tmp_path / "turn.gif", size=32, num_frames=4)
    with Image.open(tmp_path / "turn.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (32, 32) and gif.info["loop"] == 0  # type: ignore[attr-defined]
        widths = []
        for frame in range(4):
            gif.seek(frame)
            widths.append((np.asarray(gif.convert("L")) < 250).any(0).sum())
    assert widths[0] > widths[1] + 5 and widths[2] > widths[3] + 5


def test_a_turntable_png_is_a_strip(box: Mesh, tmp_path: Path) -> None:
    turntable(box, tmp_path / "turn.png", size=32)
    with Image.open(tmp_path / "turn.png") as strip:
        assert strip.size == (8 * 32, 32)


def test_another_suffix_is_refused(box: Mesh, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"turn\.mp4"):
        turntable(box, tmp_path / "turn.mp4")
