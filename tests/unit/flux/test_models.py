"""`mini` names the packaged model wherever it lies, and says plainly when it is damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kiss3d_infer import cli, mini
from kiss3d_infer.bundle import PUBLISHED, load_bundle
from kiss3d_infer.bundle.layout import BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux.lora import LoraMetadata, save_lora
from kiss3d_infer.flux.models import Drawing, choose_model
from kiss3d_infer.flux.pack import pack_base

TWO_VIEWS = BundleLayout(azimuths=(0, 180), elevations=(5, 5))


def lora(folder: Path, layout: BundleLayout, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    layer = "transformer_blocks.0.attn.to_q"
    weights = {
        f"{layer}.lora_A.weight": torch.randn(2, 64, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(64, 2, generator=generator),
    }
    return save_lora(
        folder, weights, LoraMetadata(rank=2, alpha=2, base="", data="", layout=layout)
    )


@pytest.fixture
def packaged(tiny_base, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "package"
    pack_base(tiny_base, folder / "base")
    lora(folder / "adapter", TWO_VIEWS)
    drawing = {"tile": 32, "steps": 1, "guidance": 1.0, "cfg_scale": 2.0}
    (folder / "mini.json").write_text(json.dumps(drawing))
    monkeypatch.setattr(mini, "FOLDER", folder)
    return folder


def test_the_packaged_model_brings_its_base_lora_and_settings(packaged):
    chosen = choose_model("mini")
    assert chosen.base == packaged / "base"
    assert chosen.lora == packaged / "adapter" / "pytorch_lora_weights.safetensors"
    assert chosen.drawing == Drawing(tile=32, steps=1, guidance=1.0, cfg_scale=2.0)
    assert choose_model("mini", packaged / "other").lora == packaged / "other"


def test_generate_draws_with_it_when_no_model_is_named(packaged, tmp_path):
    out = tmp_path / "a.bundle.png"
    cli.generate("a red chair", out)
    assert load_bundle(out).image.shape == (3, 64, 64)
    assert load_bundle(out).layout == TWO_VIEWS
    other = tmp_path / "b.bundle.png"
    cli.generate("a red chair", other, tile=16, cfg_scale=1.0, lora=lora(tmp_path, PUBLISHED))
    assert load_bundle(other).image.shape == (3, 32, 64)


@pytest.mark.parametrize("missing", ["base", "adapter"])
def test_without_its_weights_the_error_says_so(packaged, missing, tmp_path):
    shutil.rmtree(packaged / missing)
    with pytest.raises(InputError, match=rf"is missing .*{missing}.*: install kiss3d again"):
        cli.text_to_3d("a red chair", tmp_path / "a.glb")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "damaged"), ('{"tile": 4}', "'tile'"), ('{"tiles": 128}', "did you mean 'tile'")],
)
def test_a_damaged_description_is_told(packaged, content, message):
    (packaged / "mini.json").write_text(content)
    with pytest.raises(InputError, match=message):
        choose_model("mini")


def test_a_path_is_taken_as_it_is_with_the_settings_of_flux(tmp_path):
    chosen = choose_model(str(tmp_path / "mini"), tmp_path / "lora")
    assert (chosen.base, chosen.lora) == (tmp_path / "mini", tmp_path / "lora")
    assert chosen.drawing == Drawing(tile=512, steps=20, guidance=3.5, cfg_scale=1.0)


def test_the_description_in_this_package_is_whole():
    drawing = Drawing.model_validate_json((mini.FOLDER / "mini.json").read_bytes())
    assert drawing.tile == 128
