"""A data set of coloured squares, and a tiny base to train on it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from kiss3d_infer.bundle.image import Bundle, encode_image
from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout, Domains
from kiss3d_infer.flux.base import base_identity, create_random_base
from kiss3d_train.data.encode import ShardEncoder, create_cache, describe_encoder
from kiss3d_train.data.shards import SPLITS, load_index, write_shards
from kiss3d_train.data.storage import Place

TILE = 32
NUM_SAMPLES, NUM_CAPTIONS = 12, 3
TINY_MODEL = Path(__file__).parents[3] / "configs" / "models" / "tiny"


def bundle_of(number: int, layout: BundleLayout = PUBLISHED) -> Bundle:
    """White with a square of some colour in every tile of a row, and of its complement below."""
    width, height = layout.image_size(TILE)
    image = torch.ones(3, height, width)
    color = torch.randint(256, (3, 1, 1), generator=torch.Generator().manual_seed(number)) / 255
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            image[:, top + 8 : top + 24, left + 8 : left + 24] = color if top == 0 else 1 - color
    return Bundle(image, layout)


def caption_of(number: int) -> str:
    return f"a chair of kind {number % NUM_CAPTIONS}"


def make_shards(folder: Path, layout: BundleLayout = PUBLISHED) -> Path:
    make_rendered(folder / "rendered", range(NUM_SAMPLES), layout)
    write_shards(folder / "rendered", folder / "shards", max_samples=5, val_share=0.2)
    return folder / "shards"


def make_rendered(rendered: Path, numbers: Iterable[int], layout: BundleLayout = PUBLISHED) -> None:
    """What `render_source` leaves in a folder."""
    rendered.mkdir()
    for number in numbers:
        image, key = encode_image(bundle_of(number, layout), "png"), f"square-{number:02}"
        (rendered / f"{key}.bundle.png").write_bytes(image)
        description = {
            "key": key,
            "number": number,
            "tile": TILE,
            "layout": layout.model_dump(mode="json"),
            "caption": caption_of(number),
            "bundle_sha256": hashlib.sha256(image).hexdigest(),
        }
        (rendered / f"{key}.json").write_text(json.dumps(description))


def make_base(folder: Path) -> Path:
    return create_random_base(TINY_MODEL, folder / "base", seed=0)


def encode_here(shards: Place, base: Path, out: Place, domains: Domains = "bundle") -> Place:
    """What `encode_shards` does, in this process instead of over Ray."""
    index = load_index(shards)
    identity = base_identity(base)
    described = describe_encoder(base, identity, index.layout, "float32", domains)
    folder = create_cache(described, out)
    encoder = ShardEncoder(shards, base, folder, "cpu")
    for split in SPLITS:
        for number in range(len(index.of(split))):
            encoder.encode(split, number)
    return folder
