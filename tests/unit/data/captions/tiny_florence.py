"""A Florence-2 of 40,000 weights that has learnt one sentence."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import AutoProcessor, Florence2Config, Florence2ForConditionalGeneration
from transformers import BartTokenizer as Tokenizer

SENTENCE = "The image shows a small red toy chair on a white background."
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>")
_SIDE = 32


def make_florence(folder: Path, steps: int = 0) -> Path:
    """Write a folder as transformers does; without steps its weights are random."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), SENTENCE]
    Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    _change(folder / "tokenizer_config.json", extra_special_tokens={"image_token": "<image>"})
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    model = Florence2ForConditionalGeneration(_config(len(tokens)))
    if steps:
        _teach(model, AutoProcessor.from_pretrained(folder), len(tokens) - 1, steps)
    model.save_pretrained(folder)
    return folder


_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "Florence2Processor",
    "image_seq_length": 2,
    "size": {"height": _SIDE, "width": _SIDE},
    "do_center_crop": False,
}


def _config(num_tokens: int) -> Florence2Config:
    vision = {
        "depths": (1, 1, 1, 1),
        "embed_dim": (8, 8, 16, 16),
        "num_heads": (1, 1, 2, 2),
        "num_groups": (1, 1, 2, 2),
        "window_size": 4,
        "projection_dim": 16,
        "drop_path_rate": 0.0,
    }
    text = {
        "model_type": "bart",
        "vocab_size": num_tokens,
        "d_model": 16,
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")},
        "max_position_embeddings": 256,
        "dropout": 0.0,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    return Florence2Config(
        vision_config=vision, text_config=text, image_token_id=_SPECIAL.index("<image>")
    )


def _teach(model: Any, processor: Any, sentence: int, steps: int) -> None:
    inputs = processor(
        text="<DETAILED_CAPTION>", images=Image.new("RGB", (48, 48), "red"), return_tensors="pt"
    )
    labels = torch.tensor([[sentence, _SPECIAL.index("</s>")]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
