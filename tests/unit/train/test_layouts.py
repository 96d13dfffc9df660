from pathlib import Path

import pytest
import torch
from tiny_data import encode_here, make_base, make_shards
from tiny_training import tiny_config

from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.config import load_config
from kiss3d_infer.flux.base import load_base
from kiss3d_train.adapter import add_adapter, trainable_parameters
from kiss3d_train.data.latents import open_split
from kiss3d_train.data.shards import load_index
from kiss3d_train.data.stream import Stream
from kiss3d_train.objective import loss_per_sample

LAYOUTS = sorted((Path(__file__).parents[3] / "configs" / "layouts").glob("*.yaml"))


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: path.stem)
def test_every_layout_of_the_configs_can_be_trained(path: Path, tmp_path: Path) -> None:
    layout = load_config(BundleLayout, path).config
    shards, base = make_shards(tmp_path, layout), make_base(tmp_path)
    index = load_index(shards)
    assert index.layout == layout
    split = open_split(encode_here(shards, base, tmp_path / "latents"), index, "train")
    config = tiny_config({"data.global_batch": 2})
    stream = Stream(split, split.order(config.run.seed), config, 0, 1)
    batches = stream.micro_batches(0)
    stream.close()
    assert batches[0].grid[1] == batches[0].grid[0] // 2 * layout.num_views
    transformer = load_base(base, dtype="float32", parts=("transformer",)).transformer
    add_adapter(transformer, config.adapter, config.run.seed)
    loss = torch.cat([loss_per_sample(transformer, batch, 1.0) for batch in batches]).mean()
    loss.backward()
    gradients = [p.grad for p in trainable_parameters(transformer).values() if p.grad is not None]
    assert loss.isfinite() and any(bool(g.abs().max() > 0) for g in gradients)
