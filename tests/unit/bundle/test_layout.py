import pytest
import torch
from pydantic import ValidationError

from kiss3d_infer.bundle import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError


def test_published_layout_is_the_papers_grid() -> None:
    assert PUBLISHED.image_size(512) == (2048, 1024)
    assert PUBLISHED.azimuths == (0, 90, 180, 270)
    assert PUBLISHED.cameras.focal == pytest.approx(1.866025 * 2, abs=1e-5)


@pytest.mark.parametrize("size", [(1024, 1024), (2048, 1000), (0, 0), (3, 2)])
def test_wrong_aspect_is_refused_with_the_right_one_named(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="4 : 2"):
        PUBLISHED.tile_of(*size)


def test_layout_survives_json() -> None:
    layout = BundleLayout(azimuths=(0, 90, 180, 270), elevations=(20, -10, 20, -10))
    assert BundleLayout.model_validate_json(layout.model_dump_json()) == layout


def test_pictures_are_the_whole_bundle_or_its_rows() -> None:
    assert PUBLISHED.pictures("bundle") == (PUBLISHED,)
    top, bottom = BundleLayout(rows=("normal", "rgb")).pictures("switch")
    assert (top.rows, bottom.rows) == (("normal",), ("rgb",))
    assert top.image_size(512) == bottom.image_size(512) == (2048, 512)


@pytest.mark.parametrize(
    "wrong",
    [
        {"elevations": (5.0,)},
        {"rows": ("rgb", "rgb")},
        {"rows": ("normal",)},
        {"elevations": (5.0, 5.0, 5.0, 90.0)},
        {"azimuth": (0.0,)},
        {"azimuths": (), "elevations": ()},
        {"azimuths": (0.0,) * 17, "elevations": (0.0,) * 17},
        {"azimuths": (0.0, float("nan"), 180.0, 270.0)},
        {"elevations": (float("nan"), 5.0, 5.0, 5.0)},
        {"distance": float("inf")},
        {"distance": 19.0},
        {"fov": 1e-300},
    ],
)
def test_inconsistent_layouts_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BundleLayout.model_validate(wrong)


def test_the_farthest_cameras_see_all_of_the_largest_object() -> None:
    layout = BundleLayout(distance=18.0)
    cube = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    clip = layout.cameras.clip(cube)
    assert (clip[..., 2].abs() < clip[..., 3]).all()
