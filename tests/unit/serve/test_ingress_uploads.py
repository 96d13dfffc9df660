import io
import re
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from http_client import encoded, refusal, submit, until
from PIL import Image

from kiss3d_infer.bundle import Bundle, BundleLayout, encode_image, load_bundle
from kiss3d_infer.serve.store import TaskStore


def sphere_bundle(tile: int = 64) -> Bundle:
    """A grey ball seen from four sides."""
    axis = (torch.arange(tile) + 0.5) / tile * 2 - 1
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    inside = (x**2 + y**2 < 0.6).float()
    facing = torch.stack([x, y, (1 - x**2 - y**2).clamp(min=0).sqrt()]) / 0.8
    alpha = inside.expand(4, 1, tile, tile)
    normals = torch.nn.functional.normalize(facing, dim=0).expand(4, 3, tile, tile)
    return Bundle.from_views(torch.full((4, 3, tile, tile), 0.5), normals, alpha)


def picture(width: int, height: int, color: str = "white", image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, image_format)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(chunk: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    png = picture(512, 256, "red")
    return png[:_IHDR_END] + chunk + png[_IHDR_END:]


def layout_in_exif(layout: BundleLayout) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = layout.model_dump_json()
    return exif.tobytes().removeprefix(b"Exif\0\0")


_IHDR_END = 33
INFLATING = b"name\0\0" + zlib.compress(bytes(2 * 2**20))
BOMB = picture(1, 1)[:8] + png_chunk(b"IHDR", struct.pack(">2L5B", 40_000, 20_000, 8, 2, 0, 0, 0))
BOMB += png_chunk(b"IDAT", b"")
THREE_VIEWS = layout_in_exif(BundleLayout(azimuths=(0, 90, 180), elevations=(5, 5, 5)))
SHORT_HEADER = picture(512, 256)[:8] + png_chunk(b"IHDR", struct.pack(">I", 512))


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_an_uploaded_bundle_is_stored_as_a_png_with_its_layout(
    client: TestClient, image_format: Any
) -> None:
    bundle = sphere_bundle()
    data = encode_image(bundle, image_format)
    task = submit(client, type="bundle_to_mesh", bundle=encoded(data))
    assert "bundle" not in task["request"]
    stored = load_bundle(client.get(task["links"]["bundle"]).content)
    assert stored.layout == bundle.layout
    assert torch.allclose(stored.image, bundle.image, atol=0.5 / 255)
    until(client, task["id"], "succeeded")


def test_a_white_object_is_not_taken_for_nothing(client: TestClient) -> None:
    image = torch.ones(3, 64, 128)
    image[:, 40:56, :] = torch.tensor([0.5, 0.5, 1.0])[:, None, None]  # normals, on white RGB
    response = client.post(
        "/v1/tasks",
        json={"type": "bundle_to_mesh", "bundle": encoded(encode_image(Bundle(image), "png"))},
    )
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (picture(512, 256), "the bundle is empty: every view is white"),
        (picture(300, 300), "300x300 image is no 4x2 grid"),
        (picture(8192, 4096, "red"), "8192x4096: tiles may have 1024 pixels"),
        (picture(512, 256, image_format="BMP"), "no readable image"),
        (picture(512, 256)[:60], "no readable image"),
        (b"", "no readable image"),
        (with_chunk(png_chunk(b"zTXt", INFLATING)), "no readable image"),
        (with_chunk(png_chunk(b"iCCP", INFLATING)), "no readable image"),
        (with_chunk(png_chunk(b"eXIf", b"II*\0")), ""),
        (SHORT_HEADER, "no readable image"),
        (BOMB, "larger than 67108864 pixels"),
        (with_chunk(png_chunk(b"eXIf", THREE_VIEWS)), "3x2 grid .* 3 : 2, e.g. 1536x1024"),
    ],
    ids=[
        *("white", "wrong aspect", "too large", "bmp", "truncated", "nothing"),
        *("inflating text", "inflating profile", "short exif", "short header"),
        *("bomb", "wrong aspect for its layout"),
    ],
)
def test_an_unusable_bundle_is_refused_at_submission(
    client: TestClient, tmp_path: Path, data: bytes, words: str
) -> None:
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle": encoded(data)})
    field, problem = refusal(response)
    assert field == "bundle"
    assert re.search(words, problem)
    assert list((tmp_path / "assets").iterdir()) == []


def test_a_server_that_cannot_store_a_bundle_does_not_blame_the_client(
    client: TestClient, tmp_path: Path
) -> None:
    assets = tmp_path / "assets"
    assets.rmdir()
    assets.touch()
    data = encoded(encode_image(sphere_bundle(), "png"))
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle": data})
    assert response.status_code == 500
    assert response.json()["error"] == "internal error; the server's log tells more"


def test_a_bundle_whose_task_cannot_be_written_is_not_kept(
    client: TestClient, tmp_path: Path, store: TaskStore
) -> None:
    with sqlite3.connect(tmp_path / "tasks.sqlite3") as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tasks BEGIN SELECT raise(FAIL, 'full'); END"
        )
    data = encoded(encode_image(sphere_bundle(), "png"))
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle": data})
    assert response.status_code == 500
    assert list((tmp_path / "assets").iterdir()) == []


def test_a_bundle_of_an_unknown_task_is_refused(client: TestClient) -> None:
    response = client.post("/v1/tasks", json={"type": "bundle_to_mesh", "bundle_of": "0" * 32})
    assert refusal(response) == ("bundle_of", "no task of this id has a bundle")
