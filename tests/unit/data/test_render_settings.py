"""Light and extras of a render job: what a sample depends on, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiss3d_infer.bundle.image import load_bundle
from kiss3d_infer.bundle.layout import PUBLISHED
from kiss3d_infer.bundle.normals import to_camera
from kiss3d_infer.config import load_config
from kiss3d_infer.errors import InputError
from kiss3d_infer.scene.framing import framed
from kiss3d_infer.scene.render import render_views
from kiss3d_train.data.render import _is_whole
from kiss3d_train.data.rendering.extras import decode_normals, encode_normals
from kiss3d_train.data.rendering.light import Lights
from kiss3d_train.data.rendering.sample import RenderJob, render_item
from kiss3d_train.data.rendering.settings import (
    ExtraSettings,
    LightSettings,
    RenderSettings,
    option_overrides,
)
from kiss3d_train.data.sources import open_source
from kiss3d_train.data.sources.toybox import make

TILE = 48
SOURCE = open_source("toybox:2")
ALL_EXTRAS = ExtraSettings(kinds=("normals", "depth", "masks", "random_views"), num_random_views=3)


def _job(out: Path, light: LightSettings | None = None, **parts: Any) -> RenderJob:
    lights = Lights.of(light or LightSettings())
    return RenderJob("toybox:2", out, TILE, PUBLISHED, lights=lights, **parts)


def _render(job: RenderJob) -> dict[str, Any]:
    item = SOURCE.items()[0]
    assert render_item(job, item) is None
    meta: dict[str, Any] = json.loads((job.out / f"{item.key}.json").read_bytes())
    return meta


def _is_kept(job: RenderJob) -> bool:
    return _is_whole(job, SOURCE, SOURCE.items()[0])


def _maps(folder: Path) -> LightSettings:
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return LightSettings(kind="environment", environments=folder)


def test_a_sample_is_kept_by_its_own_settings_and_made_again_by_others(tmp_path: Path) -> None:
    maps = _maps(tmp_path / "maps")
    jobs = [
        _job(tmp_path),
        _job(tmp_path, LightSettings(kind="albedo")),
        _job(tmp_path, LightSettings(kind="random")),
        _job(tmp_path, LightSettings(kind="random", seed=1)),
        _job(tmp_path, maps),
        _job(tmp_path, LightSettings(kind="environment", environments=maps.environments, seed=1)),
        _job(tmp_path, extras=ALL_EXTRAS),
    ]
    pictures = set()
    for index, job in enumerate(jobs):
        pictures.add(_render(job)["bundle_sha256"])
        assert [_is_kept(other) for other in jobs] == [i == index for i in range(len(jobs))]
    assert len(pictures) == len(jobs) - 1  # extras change nothing about the bundle


def test_a_sample_depends_on_its_own_environment_map_alone(tmp_path: Path) -> None:
    settings = _maps(tmp_path / "maps")
    meta = _render(_job(tmp_path, settings))
    folder = settings.environments
    assert folder is not None
    chosen = folder / meta["lighting"]["environment"]
    other = next(path for path in folder.iterdir() if path != chosen)
    Image.new("RGB", (16, 8), (10, 200, 30)).save(other)
    assert _is_kept(_job(tmp_path, settings))
    Image.new("RGB", (16, 8), (10, 200, 30)).save(chosen)
    assert not _is_kept(_job(tmp_path, settings))


def test_light_is_drawn_by_seed_and_key(tmp_path: Path) -> None:
    settings = _maps(tmp_path / "maps")
    first, second = Lights.of(settings), Lights.of(settings)
    drawn = [first.described(f"object {index}") for index in range(40)]
    assert drawn == [second.described(f"object {index}") for index in range(40)]
    assert {light["environment"] for light in drawn} == {"0.png", "1.png", "2.png"}
    assert len({light["azimuth"] for light in drawn}) == 40


def test_a_folder_without_maps_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    settings = LightSettings(kind="environment", environments=tmp_path)
    with pytest.raises(InputError, match="no environment maps"):
        Lights.of(settings)
    (tmp_path / "a.hdr").write_bytes(b"noise")
    with pytest.raises(InputError, match="not a Radiance picture"):
        render_item(_job(tmp_path, settings), SOURCE.items()[0])


def test_extras_hold_what_the_views_show(tmp_path: Path) -> None:
    item = SOURCE.items()[0]
    meta = _render(_job(tmp_path, extras=ALL_EXTRAS))
    views = render_views(framed(make(0).mesh(), PUBLISHED.cameras), PUBLISHED.cameras, TILE)

    def row(values: torch.Tensor) -> np.ndarray[Any, Any]:
        return values[:, 0].permute(1, 0, 2).flatten(1).numpy()

    depth = np.array(Image.open(tmp_path / f"{item.key}.depth.png"), np.float64)
    assert np.abs(depth * meta["extras"]["depth"]["scale"] - row(views.depth)).max() < 1e-4
    masks = np.array(Image.open(tmp_path / f"{item.key}.masks.png"))
    assert np.abs(masks / 255 - row(views.alpha)).max() <= 0.5 / 255 + 1e-6
    others = load_bundle(tmp_path / f"{item.key}.views.png")
    assert others.layout.model_dump(mode="json") == meta["extras"]["random_views"]["layout"]
    assert others.layout.num_views == 3 and others.tile == TILE
    outline = torch.cat([others.image[:, :1].flatten(), others.image[:, -1:].flatten()])
    assert outline.eq(1).all()  # nothing is cut off
    (tmp_path / f"{item.key}.depth.png").unlink()
    assert not _is_kept(_job(tmp_path, extras=ALL_EXTRAS))


def test_extras_that_are_not_wanted_any_more_go(tmp_path: Path) -> None:
    _render(_job(tmp_path, extras=ALL_EXTRAS))
    assert len(list(tmp_path.iterdir())) == 6
    assert "extras" not in _render(_job(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_normals_come_back_to_a_hundredth_of_a_degree() -> None:
    mesh = framed(make(1).mesh(), PUBLISHED.cameras)
    views = render_views(mesh, PUBLISHED.cameras, TILE)
    decoded, mask = decode_normals(encode_normals(views.normals, views.alpha, PUBLISHED), PUBLISHED)
    assert torch.equal(mask, views.alpha[:, 0] > 0)
    expected = to_camera(views.normals, PUBLISHED)
    # The arc sine of the chord: the arc cosine has no digits left at such angles.
    chord = (decoded.double() - expected.double()).norm(dim=1)[mask]
    assert (2 * (chord / 2).asin()).rad2deg().max() < 0.01
    assert decoded.permute(0, 2, 3, 1)[~mask].eq(0).all()


def test_options_overrule_the_recipe(tmp_path: Path) -> None:
    recipes = Path(__file__).parents[3] / "configs"
    given = option_overrides(
        tile=64,
        layout=recipes / "layouts" / "alternating.yaml",
        lighting="random",
        extras="depth,masks",
        timeout=5.0,
        workers=None,
    )
    settings = load_config(RenderSettings, recipes / "data" / "render.yaml", given).config
    assert settings.tile == 64 and settings.layout.elevations[1] < 0
    assert settings.lighting.kind == "random" and settings.extras.kinds == ("depth", "masks")
    assert settings.limits.seconds == 5 and settings.workers is None
    default = load_config(RenderSettings, recipes / "data" / "render.yaml").config
    assert default == load_config(RenderSettings, None).config


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lighting": "environment"}, "'environments' names a folder"),
        ({"extras": "depth,colour"}, "colour"),
        ({"device": "tpu"}, "device"),
        ({"timeout": 0.0}, "greater than 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_config(RenderSettings, None, option_overrides(**options))
