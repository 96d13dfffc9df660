import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kiss3d_infer.bundle import PUBLISHED, Bundle, BundleLayout, load_bundle, save_bundle
from kiss3d_infer.errors import InputError


def random_bundle(layout: BundleLayout = PUBLISHED, tile: int = 32) -> Bundle:
    width, height = layout.image_size(tile)
    generator = torch.Generator().manual_seed(0)
    return Bundle(torch.randint(0, 256, (3, height, width), generator=generator) / 255, layout)


def test_tiles_are_cut_in_published_order() -> None:
    image = torch.zeros(3, 64, 128)
    image[:, :32, 32:64] = 0.25
    image[:, 32:, 96:] = 0.75
    bundle = Bundle(image)
    assert bundle.rgb.shape == (4, 3, 32, 32)
    assert torch.all(bundle.rgb[1] == 0.25)
    assert bundle.rgb.sum() == bundle.rgb[1].sum()
    assert torch.all(bundle.normal_colors[3] == 0.75)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_saving_is_lossless_and_keeps_the_layout(tmp_path: Path, suffix: str) -> None:
    layout = BundleLayout(azimuths=(0, 90, 180), elevations=(20, -10, 20))
    bundle = random_bundle(layout)
    save_bundle(bundle, tmp_path / f"b{suffix}")
    loaded = load_bundle(tmp_path / f"b{suffix}")
    assert loaded.layout == layout
    assert torch.equal(loaded.image, bundle.image)
    assert [p.name for p in tmp_path.iterdir()] == [f"b{suffix}"]


def test_composing_and_splitting_are_inverse() -> None:
    alpha = torch.ones(4, 1, 16, 16)
    rgb = torch.rand(4, 3, 16, 16)
    normals = torch.nn.functional.normalize(torch.randn(4, 3, 16, 16), dim=1)
    assert torch.equal(Bundle.from_views(rgb, normals, alpha).rgb, rgb)


def test_background_is_white_in_both_rows_whatever_lies_there() -> None:
    bundle = Bundle.from_views(
        torch.rand(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.zeros(4, 1, 8, 8)
    )
    assert torch.all(bundle.image == 1)


def test_an_alpha_channel_that_hides_nothing_changes_nothing() -> None:
    picture = random_bundle().to_pil()
    opaque, plain = io.BytesIO(), io.BytesIO()
    picture.convert("RGBA").save(opaque, "PNG")
    picture.save(plain, "PNG")
    found, expected = (load_bundle(data.getvalue()).image for data in (opaque, plain))
    assert torch.equal(found, expected)


def test_transparent_pictures_are_composited_on_white() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 128, 4), np.uint8)).save(buffer, "PNG")
    assert torch.all(load_bundle(buffer.getvalue()).image == 1)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n truncated"])
def test_broken_images_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(InputError, match="no readable image"):
        load_bundle(tmp_path / "b.png")


def test_truncated_image_is_refused(tmp_path: Path) -> None:
    save_bundle(random_bundle(), tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    with pytest.raises(InputError, match="no readable image"):
        load_bundle(data[: len(data) // 2])


def png_with(kind: bytes, data: bytes) -> bytes:
    """A PNG with another chunk before its pixels, or another header."""
    buffer = io.BytesIO()
    Image.new("RGB", (128, 64)).save(buffer, "PNG")
    png = buffer.getvalue()
    chunk = struct.pack(">I4s", len(data), kind) + data
    chunk += struct.pack(">I", zlib.crc32(kind + data))
    return png[:8] + chunk + png[33:] if kind == b"IHDR" else png[:33] + chunk + png[33:]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"IHDR", b"\0\0\0\x80"),
        (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**21))),
        (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**21))),
        (b"eXIf", b"II*\0"),
        (b"fcTL", b"\0" * 8),
        (b"pHYs", b"\0"),
    ],
)
def test_malformed_chunks_are_refused(kind: bytes, data: bytes) -> None:
    with pytest.raises(InputError, match="no readable image"):
        load_bundle(png_with(kind, data))


def test_missing_file_wrong_aspect_and_wrong_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        load_bundle(tmp_path / "absent.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "square.png")
    with pytest.raises(InputError, match=r"square\.png.*4 : 2"):
        load_bundle(tmp_path / "square.png")
    with pytest.raises(InputError, match=r"\.png or \.webp"):
        save_bundle(random_bundle(), tmp_path / "b.jpg")


@pytest.mark.parametrize(
    "layout",
    [
        '{"version": 2}',
        '{"azimuths": [0, NaN], "elevations": [5, 5]}',
        f'{{"azimuths": {[0] * 30_000}, "elevations": {[0] * 30_000}}}',
    ],
)
def test_an_unusable_stored_layout_is_refused(layout: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = layout
    buffer = io.BytesIO()
    Image.new("RGB", (30_000, 2)).save(buffer, "PNG", exif=exif)
    with pytest.raises(InputError, match="cannot read"):
        load_bundle(buffer.getvalue())
