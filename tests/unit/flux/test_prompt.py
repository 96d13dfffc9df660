import torch

from kiss3d_infer.bundle.layout import PUBLISHED, BundleLayout
from kiss3d_infer.flux.base import load_base
from kiss3d_infer.flux.prompt import clip_prompt, encode_captions, t5_prompt


def test_the_published_layout_gives_the_published_words():
    prefix = "A grid of 2x4 multi-view image, elevation 5. White background."
    assert clip_prompt() == prefix
    assert t5_prompt("  a red chair ") == f"{prefix} a red chair"
    assert t5_prompt("") == prefix


def test_the_prefix_follows_the_layout():
    low = BundleLayout(azimuths=(0, 120, 240), elevations=(20, 20, 20))
    mixed = BundleLayout(azimuths=(0, 180), elevations=(5, -12.5))
    assert clip_prompt(low).startswith("A grid of 2x3 multi-view image, elevation 20. ")
    assert "elevation 5, -12.5." in clip_prompt(mixed)


def test_a_lone_row_is_asked_for_by_name():
    rgb, normal = PUBLISHED.pictures("switch")
    words = "A grid of 1x4 multi-view {}, elevation 5. White background."
    assert clip_prompt(rgb) == words.format("color image")
    assert t5_prompt("a cup", normal) == words.format("normal map") + " a cup"


def test_captions_are_padded_to_the_length_of_the_base(tiny_base):
    encoders = load_base(tiny_base, dtype="float32", parts=("text_encoder", "text_encoder_2"))
    states, pooled = encode_captions(encoders, ["a red chair", "a very long caption " * 20])
    assert states.shape == (2, 32, 32)
    assert pooled.shape == (2, 32)
    assert not torch.equal(states[0], states[1])
    assert torch.equal(pooled[0], pooled[1])  # CLIP reads the prefix only
