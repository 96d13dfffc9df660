import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sample_folder import NUM_SAMPLES, described
from tiny_florence import make_florence

from kiss3d_infer.bundle import load_bundle
from kiss3d_infer.errors import InputError
from kiss3d_train.data.captions import caption_samples, open_captioner
from kiss3d_train.data.captions.answer import MalformedAnswerError
from kiss3d_train.data.captions.job import CAPTION_QUARANTINE
from kiss3d_train.data.captions.local import clause_of
from kiss3d_train.data.captions.names import joined
from kiss3d_train.data.captions.shape import measured_shape


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence(tmp_path_factory.mktemp("models") / "florence", steps=25)


def caption(samples: Path, model: Path):
    return caption_samples(samples, open_captioner("local", samples, None, [f"model={model}"]))


def test_the_models_sentence_becomes_the_clause_before_the_measured_shape(
    florence: Path, samples: Path
) -> None:
    assert caption(samples, florence).captioned == NUM_SAMPLES
    for meta in described(samples):
        shape = measured_shape(load_bundle(samples / f"{meta['key']}.bundle.png"))
        assert shape is not None
        assert meta["caption"] == joined("a small red toy chair", shape.attributes)
        source = {"captioner": "local", "model": "florence", "prompt": "<DETAILED_CAPTION> 1"}
        assert meta["caption_source"] == source
    assert caption(samples, florence).kept == NUM_SAMPLES


def test_babble_is_never_stored(samples: Path, tmp_path: Path) -> None:
    before = described(samples)
    summary = caption(samples, make_florence(tmp_path / "random"))
    assert summary.quarantined == NUM_SAMPLES and described(samples) == before
    assert len((samples / CAPTION_QUARANTINE).read_text().splitlines()) == NUM_SAMPLES


def test_weights_that_are_missing_or_pickled_are_refused(
    florence: Path, samples: Path, tmp_path: Path
) -> None:
    partial = Path(shutil.copytree(florence, tmp_path / "partial"))
    weights = load_file(partial / "model.safetensors")
    some = {name: tensor for name, tensor in weights.items() if "vision" not in name}
    save_file(some, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="weights are missing"):
        caption(samples, partial)
    (partial / "model.safetensors").unlink()
    torch.save(weights, partial / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        caption(samples, partial)
    with pytest.raises(InputError, match="no model in the folder"):
        caption(samples, tmp_path / "nowhere")


def test_no_code_of_a_model_is_run_and_other_models_are_pointed_to_the_api(
    florence: Path, samples: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(florence, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    with pytest.raises(InputError, match="not qwen2_5_vl"):
        caption(samples, other)
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (other / "config.json").write_text(json.dumps(code))
    (other / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        caption(samples, other)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("answer", "clause"),
    [
        ("A wooden chair on a white background.", "a wooden chair"),
        ("The image shows a 3D model of a red car, set against a plain white background.", "a red"),
        ("In this image we can see a lamp with a blue shade. The background is white.", "a lamp"),
        ("a picture frame made of gold", "a picture frame made of gold"),
    ],
)
def test_only_the_object_is_left_of_a_sentence(answer: str, clause: str) -> None:
    found = clause_of(answer)
    assert found.startswith(clause)
    assert "background" not in found and "image" not in found and "." not in found


@pytest.mark.parametrize("answer", ["", "The image shows", "Four views of a chair.", "����� ����"])
def test_an_answer_about_no_object_is_malformed(answer: str) -> None:
    with pytest.raises(MalformedAnswerError):
        clause_of(answer)
