"""A prompt becomes a bundle with diffusers' pipeline, reproducibly, and can be cancelled."""

from pathlib import Path

import pytest
import torch

from kiss3d_infer.bundle import PUBLISHED, BundleLayout
from kiss3d_infer.errors import InputError
from kiss3d_infer.flux import sampling
from kiss3d_infer.flux.base import create_random_base, load_base
from kiss3d_infer.flux.lora import LoraMetadata, apply_lora, save_lora
from kiss3d_infer.flux.prompt import bundle_prefix, t5_prompt
from kiss3d_infer.flux.sampling import generate_bundle

CONFIGS = Path(__file__).parents[2] / "configs" / "models"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return create_random_base(CONFIGS / "tiny", tmp_path_factory.mktemp("base") / "tiny", seed=0)


@pytest.fixture(scope="module")
def pipeline(base):
    return load_base(base, dtype="float32")


def generate(pipeline, prompt="a red chair", **settings):
    return generate_bundle(pipeline, prompt, **{"tile": 32, "steps": 2, **settings})


def generate_bare(pipeline, monkeypatch, **settings):
    """What the layout's prefix alone gives; no user can ask for it."""
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "t5_prompt", lambda _, picture: bundle_prefix(picture))
        return generate(pipeline, **settings)


def test_the_bundle_has_the_layout_and_range(pipeline):
    bundle = generate(pipeline)
    assert bundle.image.shape == (3, 64, 128)
    assert bundle.image.dtype == torch.float32
    assert bundle.layout == PUBLISHED
    assert 0 <= bundle.image.min() < bundle.image.max() <= 1


def test_the_same_seed_gives_the_same_bundle_and_zero_is_a_seed(pipeline):
    zero = generate(pipeline, seed=0)
    assert torch.equal(generate(pipeline, seed=0).image, zero.image)
    assert not torch.equal(generate(pipeline, seed=1).image, zero.image)


def test_the_prompt_and_the_guidance_matter(pipeline):
    chair = generate(pipeline)
    assert not torch.equal(generate(pipeline, "a blue car").image, chair.image)
    assert not torch.equal(generate(pipeline, guidance=1.0).image, chair.image)


def test_classifier_free_guidance_goes_from_the_bare_prefix_to_the_caption(pipeline, monkeypatch):
    plain = generate(pipeline, steps=1).image
    assert torch.equal(generate(pipeline, steps=1, cfg_scale=1.0).image, plain)
    assert not torch.equal(generate(pipeline, steps=1, cfg_scale=4.0).image, plain)
    # Without a caption both ends are the same, however far one goes.
    bare = generate_bare(pipeline, monkeypatch, steps=1).image
    assert not torch.equal(bare, plain)
    guided = generate_bare(pipeline, monkeypatch, steps=1, cfg_scale=4.0).image
    torch.testing.assert_close(guided, bare)


def test_guided_velocities_extrapolate_by_the_scale(pipeline, monkeypatch):
    """One step moves the latents by bare + scale * (caption - bare)."""
    moved = []
    decode = type(pipeline.vae).decode

    def spy(self, latents, *args, **kwargs):
        moved.append(latents.clone())
        return decode(self, latents, *args, **kwargs)

    monkeypatch.setattr(type(pipeline.vae), "decode", spy)
    generate_bare(pipeline, monkeypatch, steps=1)
    for scale in (1.0, 3.0):
        generate(pipeline, steps=1, cfg_scale=scale)
    bare, caption, guided = moved
    torch.testing.assert_close(guided, bare + 3 * (caption - bare), rtol=1e-3, atol=1e-4)


def test_the_number_of_columns_follows_the_layout(pipeline):
    layout = BundleLayout(azimuths=(0, 120, 240), elevations=(5, 5, 5))
    assert generate(pipeline, layout=layout).image.shape == (3, 64, 96)


def test_a_switch_draws_the_rows_from_one_seed_and_stacks_them(pipeline, monkeypatch):
    asked, shares, draw = [], [], type(pipeline).__call__

    def spy(self, **inputs):
        asked.append((inputs["prompt_2"], inputs["height"], inputs["generator"].initial_seed()))
        return draw(self, **inputs)

    monkeypatch.setattr(type(pipeline), "__call__", spy)
    bundle = generate(
        pipeline, domains="switch", seed=7, on_progress=lambda _, share: shares.append(share)
    )
    rgb, normal = PUBLISHED.pictures("switch")
    prompts = [t5_prompt("a red chair", rgb), t5_prompt("a red chair", normal)]
    assert asked == [(prompt, 32, 7) for prompt in prompts]
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert bundle.image.shape == (3, 64, 128) and bundle.layout == PUBLISHED
    assert not torch.equal(bundle.rgb, bundle.normal_colors)


def test_progress_ends_at_one_and_an_exception_cancels(pipeline):
    seen = []
    generate(pipeline, steps=4, on_progress=lambda stage, share: seen.append((stage, share)))
    assert seen == [("generate", share) for share in (0.25, 0.5, 0.75, 1.0)]

    class Cancelled(Exception):
        pass

    def cancel(stage, share):
        seen.append(share)
        raise Cancelled

    seen.clear()
    with pytest.raises(Cancelled):
        generate(pipeline, steps=4, on_progress=cancel)
    assert seen == [0.25]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": ""}, "the prompt is empty.*say what to draw"),
        ({"prompt": " \t\n\u3000"}, "the prompt is empty"),
        ({"tile": 40}, "multiple of 16, e.g. 32"),
        ({"tile": 0}, "multiple of 16, e.g. 16"),
        ({"steps": 0}, "0 steps"),
        ({"seed": -1}, "seed -1"),
        ({"cfg_scale": 0.5}, "guidance of 0.5"),
        ({"cfg_scale": float("nan")}, "guidance of nan"),
    ],
)
def test_values_that_cannot_be_drawn_are_refused(pipeline, settings, message):
    with pytest.raises(InputError, match=message):
        generate(pipeline, **settings)


def test_a_picture_of_nan_is_refused(base):
    broken = load_base(base, dtype="float32")
    torch.nn.init.constant_(broken.transformer.proj_out.weight, float("nan"))
    with pytest.raises(InputError, match="overflowed"):
        generate(broken)


def test_a_lora_changes_the_picture_and_scale_zero_does_not(base, pipeline, tmp_path):
    layer = "transformer_blocks.0.attn.to_q"
    torch.manual_seed(0)
    weights = {
        f"{layer}.lora_A.weight": torch.randn(4, 64),
        f"{layer}.lora_B.weight": torch.randn(64, 4),
    }
    metadata = LoraMetadata(rank=4, alpha=4, base="", data="", layout=PUBLISHED)
    adapter = save_lora(tmp_path, weights, metadata)
    adapted = load_base(base, dtype="float32")
    apply_lora(adapted, adapter)
    plain = generate(pipeline).image
    assert not torch.allclose(generate(adapted).image, plain, atol=1e-4)
    apply_lora(adapted, adapter, scale=0.0)
    torch.testing.assert_close(generate(adapted).image, plain)
